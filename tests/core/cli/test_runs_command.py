"""`tutelage runs`, by what it prints."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage.cli.summary import loss_plot, next_commands
from tutelage.runs.folder import RunFolder
from tutelage.runs.history import read_history

Run = Callable[..., Any]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunFolder]:
    """Two finished runs, `a` and `b`."""
    monkeypatch.setenv("TUTELAGE_RUNS", str(tmp_path))
    made = []
    for name, seed in (("a", 1), ("b", 2)):
        stage = {"name": "tune", "phase": {"kind": "sft"}, "adapter": {"kind": "lora"}, "trainer": {"seed": seed}}
        run = RunFolder.create(tmp_path / name, name, {"name": name, "model": "m", "stages": [stage]})
        for step in (1, 2, 3):
            run.event("step", stage="tune", step=step, steps=3, loss=1 / step, tokens=10, seconds=1.0)
        (run.stage_folder("tune") / "checkpoints").mkdir()
        (run.stage_folder("tune") / "checkpoints" / "x").write_bytes(b"1" * 2048)
        run.update_stage("tune", state="succeeded", kind="adapter", artifact="stages/tune/adapter", steps_done=3)
        run.update(state="succeeded", created=f"2024-01-0{seed}T00:00:00.000Z")
        made.append(run)
    return made


def test_list(tutelage: Run, runs: list[RunFolder]) -> None:
    lines = tutelage("runs", "list").out.splitlines()
    assert lines[0].split("\t")[:2] == ["run", "state"]
    assert [line.split("\t")[:4] for line in lines[1:]] == [
        ["b", "succeeded", "2024-01-02 00:00", "3"],
        ["a", "succeeded", "2024-01-01 00:00", "3"],
    ]
    (listed,) = tutelage("runs", "list", "--json").lines
    assert [run["name"] for run in listed] == ["b", "a"]


def test_list_of_nothing_says_what_to_do(tutelage: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_RUNS", str(tmp_path / "none"))
    assert "start one with: tutelage train" in tutelage("runs", "list").err
    assert tutelage("runs", "list", "--json").lines == [[]]


def test_show(tutelage: Run, runs: list[RunFolder]) -> None:
    out = tutelage("runs", "show", "a").out
    assert "tune: succeeded (3 steps, loss 0.3333, 3.0 s, 10 tokens/s, adapter in stages/tune/adapter)" in out
    assert f"run folder: {runs[0].path}" in out
    assert "tutelage merge a --out a-merged" in out
    (shown,) = tutelage("runs", "show", "a", "--json").lines
    assert shown["run"] == str(runs[0].path)
    assert shown["stages"][0]["artifact"] == str(runs[0].path / "stages/tune/adapter")


def test_compare(tutelage: Run, runs: list[RunFolder]) -> None:
    out = tutelage("runs", "compare", "a", "b").out.splitlines()
    assert out[:3] == ["setting\ta\tb", "name\ta\tb", "stages.tune.trainer.seed\t1\t2"]
    assert "tune.loss\t0.3333\t0.3333" in out
    (found,) = tutelage("runs", "compare", "a", "b", "--json").lines
    assert found["runs"] == ["a", "b"]
    assert tutelage("runs", "compare", "a").code == 2


def test_prune_asks_and_a_dry_run_removes_nothing(
    tutelage: Run, runs: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "would free 4.0 KiB" in tutelage("runs", "prune", "--dry-run").out
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert tutelage("runs", "prune").code == 130
    assert all((run.path / "stages/tune/checkpoints/x").is_file() for run in runs)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    unasked = tutelage("runs", "prune")
    assert (unasked.code, "add --yes" in unasked.err) == (2, True)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert "freed 2.0 KiB" in tutelage("runs", "prune", "a").out
    (told,) = tutelage("runs", "prune", "--yes", "--json").lines
    assert told["removed"] is True
    assert told["bytes"] == 2048
    assert tutelage("runs", "prune", "--yes").out == "nothing to remove\n"


def test_what_to_try_next_fits_what_there_is(runs: list[RunFolder], tmp_path: Path) -> None:
    run = runs[0]
    assert next_commands(run)[0] == 'tutelage generate a --prompt "…"'
    run.update(state="failed")
    assert next_commands(run)[0] == "tutelage resume a"
    run.update(state="succeeded")
    run.update_stage("tune", kind="dataset")
    assert all("generate" not in command for command in next_commands(run))


def test_the_plot_names_its_stage(runs: list[RunFolder]) -> None:
    assert loss_plot(read_history(runs[0])["tune"], width=40).startswith("tune: loss by step\n     1 ┤")
