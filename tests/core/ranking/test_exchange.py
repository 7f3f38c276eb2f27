"""Questions out, judgements in: as other tools write them, and everything that can be wrong with a file."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutelage.errors import TutelageError
from tutelage.ranking.desk import Desk
from tutelage.ranking.exchange import Imported, export, read_judgements
from tutelage.ranking.shapes import text_of
from tutelage.ranking.tasks import Plan, Task, task_id

ANSWERS = ["best", "good", "poor"]
"In the order of quality: a careful person gives them the ranks 1, 2, 3."


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = [
        Task(id=task_id(f"prompt {number}", ANSWERS), prompt=f"prompt {number}", answers=ANSWERS) for number in range(3)
    ]
    return Desk.set_up(tmp_path / "desk", Plan(tasks=made, people=["ann", "bob"], seats=2, overlap=2))


def rows_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def ranks(desk: Desk) -> dict[str, dict[str, tuple[str, list[float]]]]:
    return {
        desk.tasks[task].prompt: {name: (entry.kind, entry.ranks) for name, entry in given.items()}
        for task, given in desk.said().items()
    }


def annotate(kind: str, row: dict[str, Any]) -> None:
    """Rank a row as the tool would write it: best, then good and poor."""
    if kind == "jsonl":
        row["ranks"] = [ANSWERS.index(answer) + 1 for answer in row["answers"]]
    elif kind == "argilla":
        names = {text: name for name, text in row["fields"].items()}
        value = [{"value": names[answer], "rank": rank} for rank, answer in enumerate(ANSWERS, 1)]
        row["responses"] = {"ranking": [{"value": value, "user_id": "ann", "status": "submitted"}]}
    else:
        ids = {item["body"]: item["id"] for item in row["data"]["items"]}
        result = [
            {
                "type": "ranker",
                "from_name": "rank",
                "to_name": "answers",
                "value": {"ranker": {"rank": [ids[answer] for answer in ANSWERS]}},
            }
        ]
        row["id"] = 7
        row["annotations"] = [
            {"completed_by": {"email": "ann"}, "lead_time": 4.5, "created_at": "2024-01-01T00:00:00Z", "result": result}
        ]


@pytest.mark.parametrize("name", ["out.jsonl", "out.json"])
@pytest.mark.parametrize("kind", ["jsonl", "argilla", "label-studio"])
def test_what_a_tool_was_given_comes_back_ranked(desk: Desk, tmp_path: Path, kind: str, name: str) -> None:
    assert export(desk, tmp_path / name, kind, "ann") == 3
    rows = rows_of(tmp_path / name)
    for row in rows[:2]:
        annotate(kind, row)
    back = write(tmp_path / f"back-{name}", rows)
    assert read_judgements(desk, back, kind) == Imported(judgements=2, known=0, open=1)
    found = ranks(desk)
    assert len(found) == 2
    assert all(given == {"ann": ("ranking", [1, 2, 3])} for given in found.values())
    assert all(entry.by == "import" for given in desk.said().values() for entry in given.values())
    assert read_judgements(desk, back, kind) == Imported(judgements=0, known=2, open=1)
    assert export(desk, tmp_path / name, kind, "ann") == (3 if kind == "jsonl" else 1)


def test_order_as_shown_and_time_are_kept(desk: Desk, tmp_path: Path) -> None:
    export(desk, tmp_path / "out.json", "label-studio", "ann")
    rows = rows_of(tmp_path / "out.json")
    annotate("label-studio", rows[0])
    read_judgements(desk, write(tmp_path / "back.json", rows), "label-studio")
    ((entry,),) = [list(given.values()) for given in desk.said().values()]
    assert (entry.seconds, entry.at) == (4.5, "2024-01-01T00:00:00Z")


def test_plain_rows_hold_all_that_was_said(desk: Desk, tmp_path: Path) -> None:
    first, second, third = desk.plan.tasks
    desk.judge("ann", first, "ranking", [1, 2, 2])
    desk.judge("ann", second, "bad")
    desk.judge("bob", third, "skip")
    export(desk, tmp_path / "all.jsonl", "jsonl")
    other = Desk.set_up(tmp_path / "other", desk.plan)
    assert read_judgements(other, tmp_path / "all.jsonl", "jsonl") == Imported(judgements=3, known=0, open=3)
    assert ranks(other) == ranks(desk)


def test_argilla_as_its_server_and_its_package_write_it(desk: Desk, tmp_path: Path) -> None:
    export(desk, tmp_path / "out.jsonl", "argilla")
    one, two, three = rows_of(tmp_path / "out.jsonl")
    names = [{text: name for name, text in row["fields"].items()} for row in (one, two, three)]
    one["responses"] = {"ranking": [{"value": [names[0][answer] for answer in ANSWERS], "user_id": "u1"}]}
    tied = [
        {"value": names[1]["best"], "rank": 1},
        {"value": names[1]["poor"], "rank": 1},
        {"value": names[1]["good"], "rank": 2},
    ]
    two["responses"] = [
        {"status": "submitted", "user_id": "u1", "values": {"ranking": {"value": tied}}},
        {"status": "draft", "user_id": "u2", "values": {"ranking": {"value": []}}},
    ]
    three["responses"] = [{"status": "discarded", "user_id": "u1", "values": {}}]
    read_judgements(desk, write(tmp_path / "back.jsonl", [one, two, three]), "argilla", "bob")
    found = ranks(desk)
    assert found[one["fields"]["prompt"]] == {"bob": ("ranking", [1, 2, 3])}
    assert found[two["fields"]["prompt"]] == {"bob": ("ranking", [1, 2, 1])}
    assert found[three["fields"]["prompt"]] == {"bob": ("skip", [])}


def test_label_studio_annotations_that_were_skipped(desk: Desk, tmp_path: Path) -> None:
    export(desk, tmp_path / "out.json", "label-studio")
    (row, *_) = rows_of(tmp_path / "out.json")
    row["annotations"] = [{"completed_by": {"email": "bob"}, "was_cancelled": True, "result": []}]
    read_judgements(desk, write(tmp_path / "back.json", [row]), "label-studio")
    assert list(ranks(desk).values()) == [{"bob": ("skip", [])}]


def plain(desk: Desk, number: int = 0, **changes: Any) -> dict[str, Any]:
    row = {"id": desk.plan.tasks[number].id, "person": "ann", "answers": ANSWERS, "ranks": [1, 2, 3]}
    return {**row, **changes}


BAD = {
    "a missing answer": (
        lambda d: [plain(d, answers=ANSWERS[:2], ranks=[1, 2])],
        r"line 1: the answer 'poor' is missing",
    ),
    "a missing rank": (lambda d: [plain(d, ranks=[1, None, 3])], r"line 1: answer 2 has no rank"),
    "too few ranks": (lambda d: [plain(d, ranks=[1, 2])], r"line 1: ranks has 2 and answers 3"),
    "ranks that are words": (lambda d: [plain(d, ranks=[1, "two", 3])], r"the rank of answer 2 is 'two', not a number"),
    "ranks that are true": (lambda d: [plain(d, ranks=[1, True, 3])], r"the rank of answer 2 is True"),
    "no answers": (lambda d: [plain(d, answers=None)], r"answers is not a list of texts"),
    "another answer": (lambda d: [plain(d, answers=["best", "good", "other"])], r"'other' is none of the question's"),
    "an answer twice": (lambda d: [plain(d, answers=["best", "best", "poor"])], r"the answer 'best' is there twice"),
    "an unknown question": (lambda d: [plain(d, id="0000")], r"line 1: '0000' is no question of this stage"),
    "no question": (lambda d: [plain(d, id=None)], r"line 1: id is missing"),
    "an unknown person": (
        lambda d: [plain(d, person="eve")],
        r"line 1: 'eve' is not asked to rank here; those who are: ann, bob",
    ),
    "no person": (lambda d: [plain(d, person="")], r"line 1: says not who judged"),
    "a repeated judgement": (lambda d: [plain(d), plain(d)], r"line 2: says again what \S+ line 1 says"),
    "a contradiction": (lambda d: [plain(d), plain(d, ranks=[3, 2, 1])], r"line 2: contradicts \S+ line 1"),
    "both bad and ranked": (lambda d: [plain(d, bad=True)], r"has more than one of ranks, bad and skip"),
    "no object": (lambda d: [[1]], r"line 1: is a list, not an object"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_with_a_bad_row_is_refused_whole_with_its_line(desk: Desk, tmp_path: Path, case: str) -> None:
    make, wrong = BAD[case]
    rows = [*make(desk), plain(desk, 2)]
    with pytest.raises(TutelageError, match=wrong) as raised:
        read_judgements(desk, write(tmp_path / "bad.jsonl", rows), "jsonl")
    assert raised.value.exit_code == 2
    assert "nothing of it was taken" in str(raised.value)
    assert desk.said() == {}
    assert desk.log.read() == []


def test_what_contradicts_the_record_is_refused_whole(desk: Desk, tmp_path: Path) -> None:
    desk.judge("ann", desk.plan.tasks[0], "ranking", [3, 2, 1])
    file = write(tmp_path / "f.jsonl", [plain(desk, 1), plain(desk, 0)])
    with pytest.raises(TutelageError, match=r"line 2: ann answered this question otherwise"):
        read_judgements(desk, file, "jsonl")
    assert len(desk.said()) == 1


@pytest.mark.parametrize(
    ("kind", "row", "wrong"),
    [
        ("argilla", {}, "is it a record of Argilla"),
        (
            "argilla",
            {"id": "x", "fields": {}, "responses": {"ranking": [{"value": ["answer-9"]}]}},
            "'answer-9', which is no field",
        ),
        ("argilla", {"id": "x", "fields": {}, "responses": {"ranking": [{"value": "a"}]}}, "is no list"),
        ("argilla", {"id": "x", "fields": {}, "responses": [3]}, "responses is not a list of objects"),
        ("label-studio", {}, "is it a task of Label Studio"),
        ("label-studio", {"data": {"items": []}, "annotations": [{"result": []}]}, "no result of a Ranker"),
        (
            "label-studio",
            {
                "data": {"items": []},
                "annotations": [{"result": [{"type": "ranker", "value": {"ranker": {"a": [], "b": []}}}]}],
            },
            "several columns",
        ),
        (
            "label-studio",
            {
                "data": {"items": []},
                "annotations": [{"result": [{"type": "ranker", "value": {"ranker": {"rank": ["z"]}}}]}],
            },
            "'z', which is none of data.items",
        ),
    ],
)
def test_rows_that_other_tools_would_not_write(desk: Desk, tmp_path: Path, kind: str, row: Any, wrong: str) -> None:
    with pytest.raises(TutelageError, match=wrong):
        read_judgements(desk, write(tmp_path / "bad.jsonl", [row]), kind)
    assert desk.said() == {}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "ann", "best", "rank"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rank", "value", "ranking"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(["jsonl", "argilla", "label-studio"]), VALUES)
def test_whatever_stands_in_a_row_is_told_in_a_sentence(
    desk: Desk, tmp_path: Path, data: st.DataObject, kind: str, value: Any
) -> None:
    export(desk, tmp_path / "out.jsonl", kind, "ann")
    row = rows_of(tmp_path / "out.jsonl")[0]
    annotate(kind, row)
    *parents, last = data.draw(st.sampled_from(places(row)[1:]))
    target = row
    for key in parents:
        target = target[key]
    target[last] = value
    with contextlib.suppress(TutelageError):
        read_judgements(desk, write(tmp_path / "in.jsonl", [row]), kind)
    desk.log.path.unlink(missing_ok=True)


def test_files_that_are_not_there_or_can_not_be_written(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="there is no file or folder"):
        read_judgements(desk, tmp_path / "none.jsonl", "jsonl")
    (tmp_path / "broken.jsonl").write_text('{"id": \n')
    with pytest.raises(TutelageError, match=r"line 1: malformed JSON"):
        read_judgements(desk, tmp_path / "broken.jsonl", "jsonl")
    with pytest.raises(TutelageError, match="can't be written"):
        export(desk, tmp_path / "no" / "folder.jsonl", "jsonl")


def test_a_conversation_is_shown_with_who_speaks() -> None:
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert text_of(turns) == "system: be kind\n\nuser: hello"
    assert text_of(turns[1:]) == text_of("hello") == "hello"
