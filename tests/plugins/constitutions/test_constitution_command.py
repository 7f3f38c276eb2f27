"""`tutelage constitution`, and the constitution that ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tutelage.constitution import doubts, load
from tutelage.errors import TutelageError
from tutelage.plugins import load_command, plugin_commands
from tutelage_plugins.constitutions import DEFAULT

PROMPTS = Path(__file__).parents[3] / "examples" / "data" / "constitution_prompts.jsonl"


def run(*arguments: str):
    command = load_command(plugin_commands()["constitution"])
    return CliRunner().invoke(command, list(arguments), catch_exceptions=True)


def test_the_constitution_that_ships_is_whole_and_consistent():
    found = load(DEFAULT, ("critique", "revision", "preference"))
    assert 12 <= len(found.principles) <= 16
    assert doubts(found) == []
    assert {principle.source for principle in found.principles} == set(found.sources)


def test_show_prints_what_json_holds():
    plain, found = run("show"), json.loads(run("show", "--json").stdout)
    assert plain.exit_code == 0
    for principle in found["principles"]:
        assert all(principle[field] in plain.stdout for field in ("id", "text", "critique", "revision", "preference"))


def test_check_names_what_to_look_at_and_refuses_what_is_wrong(tmp_path):
    path = tmp_path / "mine.yaml"
    whole = "critique: C., revision: R, preference: P"
    path.write_text(
        f"name: mine\nprinciples:\n- {{id: a, text: Be brief., {whole}1}}\n- {{id: b, text: Be thorough., {whole}2}}\n"
    )
    told = run("check", str(path))
    assert told.exit_code == 0
    assert "principles.1.text" in told.stderr
    (doubt,) = json.loads(run("check", str(path), "--json").stdout)["doubts"]
    assert (doubt["kind"], doubt["principles"]) == ("contradictory", ["a", "b"])
    path.write_text("name: mine\nprinciples: []\n")
    error = run("check", str(path)).exception
    assert isinstance(error, TutelageError)
    assert error.exit_code == 2


def test_check_says_that_a_file_is_missing(tmp_path):
    error = run("check", str(tmp_path / "none.yaml")).exception
    assert isinstance(error, TutelageError)
    assert "no such file" in str(error)


@pytest.mark.skipif(not PROMPTS.is_file(), reason="examples are not here")
def test_the_prompts_that_ship_are_half_borderline_and_all_different():
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    kinds = [row["kind"] for row in rows]
    assert kinds.count("borderline") == kinds.count("ordinary") == len(rows) / 2
    assert len({row["prompt"] for row in rows}) == len(rows)
