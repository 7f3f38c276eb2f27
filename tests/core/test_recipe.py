"""Recipes: short forms, plugins' own settings, bounds, and every problem at once."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import TutelageError
from tutelage.plugins import host
from tutelage.recipe import Recipe, Resolved, load, resolve, spelled_out

RECIPE: dict[str, Any] = {
    "name": "invoices",
    "model": "starter:smollm2-135m-instruct",
    "stages": [
        {
            "name": "tune",
            "phase": "sft",
            "adapter": {"kind": "lora", "rank": 16, "targets": "all-linear"},
            "data": "invoices.jsonl",
            "trainer": {"epochs": 3, "learning_rate": 2e-4, "max_length": 512, "precision": "auto", "seed": 0},
        }
    ],
}


def resolved(data: dict[str, Any]) -> Resolved:
    return resolve(copy.deepcopy(data), Path.cwd(), host())


def problems_of(data: dict[str, Any]) -> list[str]:
    with pytest.raises(TutelageError) as caught:
        resolved(data)
    return [str(problem) for problem in caught.value.problems]


def changed(place: str, value: Any) -> dict[str, Any]:
    """The recipe with one field of its stage (or, with a leading /, of itself) set."""
    data = copy.deepcopy(RECIPE)
    target = data if place.startswith("/") else data["stages"][0]
    *parents, last = place.strip("/").split(".")
    for name in parents:
        target = target.setdefault(name, {})
    target[last] = value
    return data


def test_short_forms_mean_what_they_stand_for() -> None:
    stage = resolved(RECIPE).recipe.stages[0]
    assert stage.phase == {"kind": "sft"}
    assert stage.data is not None
    assert stage.data.train == "invoices.jsonl"
    assert stage.trainer.max_length == 512
    short = resolved({**RECIPE, "trackers": ["csv", {"kind": "tensorboard"}]})
    assert [type(tracker).name for tracker in short.trackers] == ["csv", "tensorboard"]


def test_settings_reach_the_plugin() -> None:
    adapter = resolved(RECIPE).adapters["tune"]
    assert (type(adapter).name, adapter.config.rank) == ("lora", 16)


def test_defaults_are_those_of_a_stage_that_says_nothing() -> None:
    found = resolved({"name": "x", "model": "m", "stages": [{"name": "s", "phase": "sft"}]})
    assert found.recipe.stages[0].adapter == {"kind": "lora"}
    assert found.recipe.trackers == [{"kind": "csv"}]


def test_spelling_out_leaves_its_input_alone_and_changes_nothing_twice() -> None:
    before = copy.deepcopy(RECIPE)
    once = spelled_out(RECIPE)
    assert before == RECIPE
    assert spelled_out(once) == once


def test_a_recipe_as_it_is_resolved_resolves_to_the_same() -> None:
    first = resolved(RECIPE).recipe
    assert resolved(msgspec.to_builtins(first)).recipe == first


def test_a_recipe_object_a_mapping_and_a_file_load_alike(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    from_file, base = load(tmp_path / "r.yaml", ["stages.tune.adapter.rank=8"])
    assert base == tmp_path
    from_mapping, _ = load(RECIPE, ["stages.tune.adapter.rank=8"])
    assert from_file == from_mapping
    assert from_mapping["stages"][0]["adapter"]["rank"] == 8
    assert RECIPE["stages"][0]["adapter"]["rank"] == 16
    made = resolved(RECIPE).recipe
    assert resolved(load(made)[0]).recipe == made


WRONG: list[tuple[str, Any, str]] = [
    ("/modle", "x", "modle: unknown field; did you mean model?"),
    ("/name", "a b", "name: "),
    ("/name", "", "name: "),
    ("/model", "", "model: "),
    ("/stages", [], "stages: "),
    ("/stages", "tune", "stages: "),
    ("/stages", ["tune"], "stages.0: expected a mapping"),
    ("/trackers", ["csb"], "trackers.0.kind: no tracker is called 'csb'; did you mean csv?"),
    ("/trackers", [{}], "trackers.0.kind: missing"),
    ("/tokenizer", {"ad": []}, "tokenizer.ad: unknown field; did you mean add?"),
    ("phase", "sfft", "stages.tune.phase.kind: no phase is called 'sfft'; did you mean sft?"),
    ("phase", {"kind": "sft", "x": 1}, "stages.tune.phase.x: unknown field"),
    ("phase", {}, "stages.tune.phase.kind: missing; name the phase: "),
    ("phase", 3, "stages.tune.phase: "),
    ("adapter", "lorra", "stages.tune.adapter.kind: no adapter is called 'lorra'; did you mean lora?"),
    ("adapter", {"kind": "lora", "rnk": 8}, "stages.tune.adapter.rnk: unknown field; did you mean rank?"),
    ("adapter", {"kind": "lora", "rank": 0}, "stages.tune.adapter.rank: "),
    ("adapter", {"kind": "lora", "rank": "8"}, "stages.tune.adapter.rank: "),
    ("adapter", {"kind": "lora", "rank": 8.5}, "stages.tune.adapter.rank: "),
    ("adapter", {"kind": "lora", "rank": True}, "stages.tune.adapter.rank: "),
    ("adapter", {"kind": "lora", "dropout": 1.5}, "stages.tune.adapter.dropout: "),
    ("data", {}, "stages.tune.data: names no data"),
    ("data", {"train": "a", "mix": [{"source": "b"}]}, "stages.tune.data: give either train or mix"),
    ("data", {"train": "a", "eval": "b", "eval_split": 0.1}, "stages.tune.data: give either eval or eval_split"),
    ("data", {"train": "a", "eval_split": 0.9}, "stages.tune.data.eval_split: "),
    ("data", {"mix": [{"source": "b", "weight": 0}]}, "stages.tune.data.mix.0.weight: "),
    ("data", {"mix": [{"weight": 1}]}, "stages.tune.data.mix.0.source: missing"),
    ("data", {"train": "a", "learn_from": "users"}, "stages.tune.data.learn_from: "),
    ("trainer.learning_rate", 0, "stages.tune.trainer.learning_rate: "),
    ("trainer.learning_rate", float("nan"), "stages.tune.trainer.learning_rate: nan is not a finite number"),
    ("trainer.learning_rate", "2e-4", "stages.tune.trainer.learning_rate: "),
    ("trainer.epochs", 0, "stages.tune.trainer: epochs must be over 0"),
    ("trainer.max_steps", 10, "stages.tune.trainer: give either epochs or max_steps, not both"),
    ("trainer.betas", [0.9], "stages.tune.trainer.betas: "),
    ("trainer.betas", [0.9, 2], "stages.tune.trainer.betas"),
    ("trainer.max_length", 1, "stages.tune.trainer.max_length: "),
    ("trainer.precision", "fp8", "stages.tune.trainer.precision: "),
    ("trainer.devices", 0, "stages.tune.trainer.devices: "),
    ("trainer.seed", -1, "stages.tune.trainer.seed: "),
    ("trainer.evalevery", 5, "stages.tune.trainer.evalevery: unknown field; did you mean eval_every?"),
]


@pytest.mark.parametrize(("place", "value", "told"), WRONG)
def test_a_wrong_field_is_told_with_its_place(place: str, value: Any, told: str) -> None:
    problems = problems_of(changed(place, value))
    assert any(problem.startswith(told) for problem in problems), problems


def test_everything_wrong_is_told_at_once() -> None:
    data = changed("adapter", {"kind": "lora", "rnk": 8})
    data["modle"] = "x"
    data["stages"][0]["trainer"]["seed"] = "one"
    data["stages"].append({"name": "second", "phase": "nothing"})
    places = [problem.partition(":")[0] for problem in problems_of(data)]
    assert sorted(places) == [
        "modle",
        "stages.second.phase.kind",
        "stages.tune.adapter.rnk",
        "stages.tune.trainer.seed",
    ]


def test_two_stages_of_one_name_are_refused() -> None:
    data = {**RECIPE, "stages": RECIPE["stages"] * 2}
    assert any(problem.startswith("stages.tune: two stages have this name") for problem in problems_of(data))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=2),
    max_leaves=4,
)
PLACES = [
    "/name",
    "/model",
    "/stages",
    "/trackers",
    "/tokenizer",
    "name",
    "phase",
    "adapter",
    "data",
    "model",
    "trainer",
]


@settings(deadline=None)
@given(st.sampled_from([*PLACES, "trainer.epochs", "trainer.betas", "data.mix", "adapter.rank"]), anything)
def test_whatever_stands_in_a_field_is_taken_or_told_and_never_a_crash(place: str, value: Any) -> None:
    if place.startswith(("data.", "adapter.")):
        place, _, last = place.partition(".")
        value = {"kind": "lora", last: value} if place == "adapter" else {last: value}
    with contextlib.suppress(TutelageError):
        assert isinstance(resolved(changed(place, value)).recipe, Recipe)
