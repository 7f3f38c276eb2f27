"""What a recipe names is found wherever it is, valid or not, and can be renamed there."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
import pytest

from tutelage.phase import Phase
from tutelage.plugins import host
from tutelage.references import named_in, renamed
from tutelage.reward import Reward

RECIPE: dict[str, Any] = {
    "name": "x",
    "model": "base",
    "tokenizer": {"chat_template": "chat.jinja"},
    "trackers": ["csv", {"kind": "tensorboard", "folder": "out"}],
    "governance": "reviewed",
    "stages": [
        {"name": "a", "phase": "sft", "adapter": "lora", "data": "rows.jsonl", "model": "other"},
        {
            "name": "b",
            "phase": {"kind": "ppo", "reward_model": "stage:r", "rewards": ["length", {"kind": "model", "model": "m"}]},
            "data": {"mix": [{"source": "one.csv", "format": "messages"}, {"source": "two.csv"}], "eval": "held.csv"},
        },
        {
            "phase": {
                "kind": "ranking",
                "gold": "gold.jsonl",
                "simulated": {"rewards": [{"kind": "model", "model": "w"}]},
            }
        },
        {"name": "c", "phase": {"kind": "ai_feedback", "constitution": "law.yaml", "judge": "j", "human": "h.jsonl"}},
        {"name": "e", "phase": {"kind": "evaluation", "models": ["p", "stage:a"], "text": "t.txt"}},
        {"name": "n", "phase": {"kind": "pretrain", "tokenizer": "tok"}},
        {"name": "s", "phase": {"kind": "comparisons", "models": ["q"]}},
    ],
}
KNOWN = {
    "model": ("base", "model"),
    "tokenizer.chat_template": ("chat.jinja", "file"),
    "trackers.1.folder": ("out", "output"),
    "stages.a.data.train": ("rows.jsonl", "data"),
    "stages.a.model": ("other", "model"),
    "stages.b.phase.reward_model": ("stage:r", "model"),
    "stages.b.phase.rewards.1.model": ("m", "model"),
    "stages.b.data.mix.0.source": ("one.csv", "data"),
    "stages.b.data.mix.1.source": ("two.csv", "data"),
    "stages.b.data.eval": ("held.csv", "data"),
    "stages.2.phase.gold": ("gold.jsonl", "data"),
    "stages.2.phase.simulated.rewards.0.model": ("w", "model"),
    "stages.c.phase.constitution": ("law.yaml", "file"),
    "stages.c.phase.judge": ("j", "model"),
    "stages.c.phase.human": ("h.jsonl", "data"),
    "stages.e.phase.models.0": ("p", "model"),
    "stages.e.phase.models.1": ("stage:a", "model"),
    "stages.e.phase.text": ("t.txt", "data"),
    "stages.n.phase.tokenizer": ("tok", "model"),
    "stages.s.phase.models.0": ("q", "model"),
}


def test_everything_that_a_recipe_names_is_found_at_its_place():
    found = named_in(RECIPE, host())
    assert {each.place: (each.value, each.kind) for each in found.references} == KNOWN


def test_the_plugins_that_it_asks_for_are_found():
    used = {(each.kind, each.name) for each in named_in(RECIPE, host()).plugins}
    phases = {"sft", "ppo", "ranking", "ai_feedback", "evaluation", "pretrain", "comparisons"}
    others = {("reward", "length"), ("reward", "model"), ("tracker", "csv"), ("tracker", "tensorboard")}
    wanted = {("phase", name) for name in phases} | others
    assert wanted | {("adapter", "lora"), ("format", "messages"), ("governance", "reviewed")} == used


def test_renaming_changes_each_place_and_nothing_else():
    values = {each.path: f"new {each.place}" for each in named_in(RECIPE, host()).references}
    made = renamed(RECIPE, values)
    again = named_in(made, host()).references
    assert {each.place: each.value for each in again} == {place: f"new {place}" for place in KNOWN}
    assert renamed(made, {each.path: KNOWN[each.place][0] for each in again}) == renamed(RECIPE, {})


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"stages": None},
        {"stages": ["x", 3, {"phase": 4, "data": [1]}]},
        {"model": 3, "stages": [{"phase": {"kind": []}, "data": {"mix": [None, {"source": 1}]}}]},
        {"trackers": {"kind": "csv"}, "tokenizer": "x"},
    ],
)
def test_a_recipe_that_is_no_recipe_names_little_and_breaks_nothing(broken):
    assert named_in(broken, host()).references == []


def _fields(kind):
    for name, hint in get_type_hints(kind, include_extras=True).items():
        metas = hint.__metadata__ if get_origin(hint) is Annotated else ()
        extra: dict[str, Any] = {}
        for meta in metas:
            extra |= (isinstance(meta, msgspec.Meta) and meta.extra) or {}
        said = " ".join(meta.description or "" for meta in metas if isinstance(meta, msgspec.Meta))
        yield name, get_args(hint)[0] if metas else hint, extra, said


@pytest.mark.parametrize("kind", ["phase", "adapter", "reward", "tracker", "format", "governance"])
def test_every_setting_that_speaks_of_a_file_a_folder_or_a_model_is_marked(kind):
    allowed = {"mlflow.uri"}  # an address, of a tracker that servers don't allow by default
    for plugin in host().classes(kind).values():
        for name, hint, extra, said in _fields(plugin.Config):
            words = said.lower()
            speaks = any(
                word in words for word in ("a yaml file", "folder", "data file", "stage:name", "where to write")
            )
            if "str" in str(hint) and speaks and f"{plugin.name}.{name}" not in allowed:
                assert "reference" in extra, f"{kind} {plugin.name}.{name}: {said}"


@pytest.mark.parametrize("base", [Phase, Reward])
def test_what_plugins_say_that_they_read_is_marked(base):
    """`references()` and `sources()` of every plugin name marked fields alone."""
    for plugin in host().classes(base.__name__.lower()).values():
        kinds = {name: extra for name, _, extra, _ in _fields(plugin.Config) if extra}
        values = {name: ["x"] if "list" in str(hint) else "x" for name, hint, *_ in _fields(plugin.Config)}
        named = {name: values[name] for name, extra in kinds.items() if "reference" in extra}
        if not named:
            assert plugin.references is base.references or "plugin" in str(kinds)
            continue
        made = plugin(msgspec.convert(named, plugin.Config))
        read = {*made.references(), *(made.sources() if base is Phase else ())}
        assert {field.partition(".")[0] for field in read} <= {*kinds}
