"""Runs below one folder: names, states, comparing, pruning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.errors import TutelageError
from tutelage.runs import listing
from tutelage.runs.folder import RunFolder
from tutelage.runs.history import history_of

MakeRun = Callable[..., RunFolder]


def test_new_folders_count_up(root: Path) -> None:
    assert listing.new_folder("a") == root / "a"
    (root / "a").mkdir(parents=True)
    (root / "a-2").mkdir()
    assert listing.new_folder("a") == root / "a-3"


def test_runs_are_listed_newest_first_and_damaged_ones_left_out(make_run: MakeRun, root: Path) -> None:
    first, second = make_run("first"), make_run("second")
    first.update(created="2024-01-01T00:00:00.000Z")
    second.update(created="2024-01-02T00:00:00.000Z")
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    assert [run.path.name for run in listing.all_runs()] == ["second", "first"]


def test_a_run_is_found_by_name_and_by_folder(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("first")
    assert listing.find_run("first").path == run.path
    assert listing.find_run(str(run.path)).path == run.path
    with pytest.raises(TutelageError, match="did you mean first"):
        listing.find_run("frist")


def test_a_run_that_says_running_but_has_no_process_is_interrupted(make_run: MakeRun) -> None:
    run = make_run("first", state="running")
    assert listing.state_of(run) == "interrupted"
    with run.lock():
        assert listing.state_of(run) == "running"


def test_a_summary_has_the_last_figures(make_run: MakeRun) -> None:
    summary = listing.summary_of(make_run("first"))
    assert (summary.steps, summary.loss, summary.eval_loss, summary.seconds) == ("6/6", 1.0, 1.25, 3.0)
    assert summary.stages == ["tune (sft, lora)"]
    assert summary.size > 1000


def test_comparing_shows_what_differs_alone_and_all_metrics(make_run: MakeRun) -> None:
    runs = [make_run("first"), make_run("second", learning_rate=1e-3)]
    runs[1].record.data = {"tune": {"rows.jsonl": "changed"}}
    found = listing.compare(runs)
    assert found.runs == ["first", "second"]
    assert {row.field: row.values for row in found.settings} == {
        "stages.tune.trainer.learning_rate": [2e-4, 1e-3],
        "data.tune.rows.jsonl": ["abc", "changed"],
    }
    metrics = {row.field: row.values for row in found.metrics}
    assert metrics["tune.loss"] == [1.0, 1.0]
    assert metrics["tune.tokens_per_second"] == [200.0, 200.0]


def test_pruning_takes_checkpoints_of_finished_runs_and_nothing_else(make_run: MakeRun) -> None:
    done, failed, busy = make_run("done"), make_run("failed", state="failed"), make_run("busy")
    with busy.lock():
        found = listing.prunable(listing.all_runs())
        assert [(item.run, item.size) for item in found] == [("done", 1000)]
        more = listing.prunable(listing.all_runs(), unfinished=True)
        assert sorted(item.run for item in more) == ["done", "failed"]
    before = {path for path in done.path.rglob("*") if path.is_file() and "checkpoints" not in path.parts}
    assert listing.prune(found) == 1000
    assert not (done.path / "stages/tune/checkpoints").exists()
    assert (failed.path / "stages/tune/checkpoints/step-6/weights").is_file()
    assert before <= {path for path in done.path.rglob("*") if path.is_file()}


def test_a_run_that_is_taken_up_meanwhile_is_not_pruned(make_run: MakeRun) -> None:
    run = make_run("done")
    found = listing.prunable([run])
    with run.lock(), pytest.raises(TutelageError, match="is being written"):
        listing.prune(found)
    assert (run.path / "stages/tune/checkpoints").is_dir()


def test_steps_repeated_after_a_resume_count_once_and_the_last_counts() -> None:
    def step(number: int, loss: float) -> dict[str, object]:
        return {"event": "step", "stage": "tune", "step": number, "loss": loss, "tokens": 10, "seconds": 1.0}

    events = [
        {"event": "stage_started", "stage": "tune", "resumed_from": 0},
        *(step(number, 1.0) for number in range(1, 8)),
        {"event": "eval", "stage": "tune", "step": 7, "eval_loss": 9.0},
        {"event": "stage_started", "stage": "tune", "resumed_from": 4},
        *(step(number, 2.0) for number in range(5, 7)),
    ]
    history = history_of(events)["tune"]
    assert history.points("loss") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0)]
    assert (history.tokens, history.seconds, history.evals) == (60, 6.0, {})
