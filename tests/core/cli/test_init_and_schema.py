"""`tutelage init`, `schema` and `plugins`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage.config import read_file
from tutelage.plugins import host
from tutelage.recipe import load, resolve
from tutelage_plugins.formats import Messages

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("template", "adapter"), [("starter", "lora"), ("qlora", "qlora"), ("prompt", "prompt"), ("full", "full")]
)
def test_init_writes_a_recipe_that_is_valid_and_data_that_fits_it(
    tutelage: Run, tmp_path: Path, template: str, adapter: str
) -> None:
    outcome = tutelage("init", str(tmp_path / "new" / "place"), "--from", template)
    assert outcome.code == 0, outcome.err
    recipe = tmp_path / "new/place/recipe.yaml"
    resolved = resolve(*load(recipe), host())
    assert type(resolved.adapters["tune"]).name == adapter
    data = resolved.recipe.stages[0].data
    assert data is not None
    rows = [json.loads(line) for line in (resolved.base / data.train).read_text().splitlines()]
    assert len(rows) >= 30
    assert all(Messages().matches(row) and Messages().convert(row) for row in rows)
    assert "  # " in next(line for line in recipe.read_text().splitlines() if "adapter:" in line)


def test_init_never_writes_over_anything(tutelage: Run, tmp_path: Path) -> None:
    (tmp_path / "examples.jsonl").write_text("mine")
    outcome = tutelage("init", str(tmp_path), "--json")
    assert (outcome.code, outcome.lines[0]["error"]["problems"][0]["wrong"]) == (2, "exists already")
    assert [path.name for path in tmp_path.iterdir()] == ["examples.jsonl"]
    assert (tmp_path / "examples.jsonl").read_text() == "mine"


def test_init_says_in_json_what_it_wrote(tutelage: Run, tmp_path: Path) -> None:
    assert tutelage("init", str(tmp_path), "--json").lines == [
        {"recipe": str(tmp_path / "recipe.yaml"), "data": str(tmp_path / "examples.jsonl")}
    ]


def test_schema_is_printed_or_written(tutelage: Run, tmp_path: Path) -> None:
    printed = json.loads(tutelage("schema").out)
    assert tutelage("schema", "--out", str(tmp_path / "s.json")).out == ""
    assert read_file(tmp_path / "s.json") == printed
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_plugins_lists_the_built_in_ones(tutelage: Run) -> None:
    out = tutelage("plugins").out
    assert "\nbuiltin (tutelage " in f"\n{out}"
    for line in ("adapter lora: LoRA", "format messages: ", "phase sft: ", "tracker csv: ", "model source starter: "):
        assert f"\n  {line}" in out
    (listed,) = tutelage("plugins", "--json").lines
    (builtin,) = [info for info in listed if info["name"] == "builtin"]
    assert "lora" in builtin["provides"]["adapter"]
