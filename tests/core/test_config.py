"""Turning plain data into configs: every problem at once, each with its place and a hint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta, field

from tutelage.config import Config, convert, did_you_mean, override, parse_yaml, read_file
from tutelage.errors import TutelageError


class Leaf(Config):
    """The innermost."""

    depth: Annotated[int, Meta(ge=1)] = 1
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5


class Item(Config):
    """In a list."""

    name: str
    leaf: Leaf | None = None


class Root(Config):
    """The outermost."""

    title: str
    leaf: Leaf = field(default_factory=Leaf)
    items: list[Item] = []

    def __post_init__(self) -> None:
        if self.title == "forbidden":
            raise ValueError("the title is forbidden")


def problems_of(data: Any) -> list[str]:
    with pytest.raises(TutelageError) as caught:
        convert(data, Root)
    return [str(problem) for problem in caught.value.problems]


def test_all_problems_are_told_at_once_each_with_its_place() -> None:
    data = {
        "titel": "x",
        "leaf": {"depth": 0, "share": "half"},
        "items": [{"name": "first", "leaf": {"dpth": 3}}, {"leaf": {}}, "text"],
    }
    assert problems_of(data) == [
        "titel: unknown field; did you mean title?",
        "title: missing; it has no default: add it",
        "leaf.depth: expected int >= 1 (it is 0)",
        "leaf.share: expected float, got str (it is 'half')",
        "items.first.leaf.dpth: unknown field; did you mean depth?",
        "items.1.name: missing; it has no default: add it",
        "items.2: expected a mapping (key: value), got str (it is 'text')",
    ]


def test_a_check_across_fields_is_told_at_its_place() -> None:
    assert problems_of({"title": "forbidden"}) == ["the title is forbidden"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_everywhere(number: float) -> None:
    assert problems_of({"title": "x", "leaf": {"share": number}}) == [f"leaf.share: {number} is not a finite number"]


names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)
KNOWN = {"title", "leaf", "items", "depth", "share", "name"}


@settings(deadline=None)
@given(names.filter(lambda name: name not in KNOWN), st.integers(0, 3))
def test_an_unknown_field_is_told_at_any_depth(name: str, level: int) -> None:
    data: dict[str, Any] = {"title": "x", "leaf": {}, "items": [{"name": "one", "leaf": {}}]}
    places = [data, data["leaf"], data["items"][0], data["items"][0]["leaf"]]
    places[level][name] = 1
    prefix = ["", "leaf.", "items.one.", "items.one.leaf."][level]
    (told,) = problems_of(data)
    assert told.startswith(f"{prefix}{name}: unknown field; ")


@settings(deadline=None)
@given(st.sampled_from(sorted(KNOWN)), st.integers(0, 11), st.sampled_from("xqz"))
def test_one_wrong_letter_is_mended_by_the_hint(name: str, at: int, letter: str) -> None:
    at %= len(name)
    typo = name[:at] + letter + name[at + 1 :]
    if typo not in KNOWN:
        assert did_you_mean(typo, sorted(KNOWN)) == f"did you mean {name}?"


def test_nothing_near_lists_what_there_is() -> None:
    assert did_you_mean("zzz", ["beta", "alpha"]) == "known are alpha, beta"
    assert did_you_mean("zzz", []) == "there are none"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("1_000", 1000),
        ("010", 10),
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("true", True),
        ("1:30", "1:30"),
        ("0x1f", "0x1f"),
        ("~", None),
        ("'2e-4'", "2e-4"),
    ],
)
def test_yaml_reads_numbers_and_words_as_yaml_1_2_has_them(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**12), 10**12))
def test_yaml_reads_every_number_as_python_writes_it(number: float) -> None:
    assert parse_yaml(f"a: {number!r}")["a"] == number


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("r.yaml", "a: 1\nb: 2\na: 3\n", "line 3: the key 'a' appears twice"),
        ("r.yaml", "a: [1\nb: 2", "malformed: line 2"),
        ("r.yaml", "a: !!python/object/apply:os.getcwd []", "malformed: line 1"),
        ("r.json", '{"a": 1, "a": 2}', "the key 'a' appears twice"),
        ("r.json", "[" * 100_000, "malformed"),
        ("r.toml", "a = 1\na = 2\n", "malformed"),
        ("r.ini", "a", "unknown kind of file '.ini'"),
    ],
)
def test_malformed_files_are_told_with_a_sentence(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TutelageError, match=r".") as caught:
        read_file(tmp_path / name)
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_files_that_are_no_text_or_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    for path, told in (
        (tmp_path / "r.yaml", "not UTF-8"),
        (tmp_path / "x.yaml", "no such file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(TutelageError, match=told):
            read_file(path)


def test_the_three_kinds_of_files_say_the_same(tmp_path: Path) -> None:
    data = {"name": "x", "list": [1, 2.5, True], "inner": {"text": "no"}}
    (tmp_path / "r.json").write_text(json.dumps(data))
    (tmp_path / "r.yaml").write_text("name: x\nlist: [1, 2.5, true]\ninner: {text: no}\n")
    (tmp_path / "r.toml").write_text('name = "x"\nlist = [1, 2.5, true]\n[inner]\ntext = "no"\n')
    assert all(read_file(tmp_path / f"r.{suffix}") == data for suffix in ("json", "yaml", "toml"))


RECIPE = {"stages": [{"name": "tune", "adapter": "lora", "data": "a.jsonl", "trainer": {"seed": 1}}, {"name": "2nd"}]}


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("stages.tune.trainer.seed=2e3", ("stages", 0, "trainer", "seed"), 2000.0),
        ("stages.0.trainer.seed=7", ("stages", 0, "trainer", "seed"), 7),
        ("stages.tune.adapter.rank=8", ("stages", 0, "adapter"), {"kind": "lora", "rank": 8}),
        ("stages.tune.adapter=full", ("stages", 0, "adapter"), "full"),
        ("stages.tune.data.eval_split=0.1", ("stages", 0, "data"), {"train": "a.jsonl", "eval_split": 0.1}),
        ("stages.2nd.trainer.betas=[0.8, 0.9]", ("stages", 1, "trainer", "betas"), [0.8, 0.9]),
        ("model=a=b", ("model",), "a=b"),
        ("tokenizer.chat_template=", ("tokenizer", "chat_template"), None),
    ],
)
def test_set_reaches_any_field(assignment: str, path: tuple[Any, ...], value: Any) -> None:
    data = json.loads(json.dumps(RECIPE))
    override(data, assignment)
    for step in path:
        data = data[step]
    assert data == value


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("rank", "is not FIELD=VALUE"),
        ("=3", "is not FIELD=VALUE"),
        ("stages.tone.trainer.seed=1", "nothing is called tone; did you mean tune?"),
        ("stages.7.trainer.seed=1", "nothing is called 7"),
        ("stages.tune.trainer.seed.x=1", "seed leads into 1, which has no fields"),
        ("stages.tune.trainer.seed.x.y=1", "leads into"),
        ("a=[1", "the value is malformed"),
    ],
)
def test_set_that_leads_nowhere_is_told(assignment: str, told: str) -> None:
    with pytest.raises(TutelageError) as caught:
        override(json.loads(json.dumps(RECIPE)), assignment)
    assert str(caught.value).startswith(f"--set {assignment}: ")
    assert told in str(caught.value)
