"""`tutelage check`, `train` and `resume`: what is printed of a run, and how the command exits.

A stand-in for the engine writes the run folder, so that these tests see the command line alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage.api import CheckReport
from tutelage.cli.views import sentence
from tutelage.errors import Problem, RunFailed, RunStopped, TutelageError
from tutelage.runs.folder import RunFolder

Run = Callable[..., Any]
RECIPE = {"name": "first", "model": "m", "stages": [{"name": "tune", "phase": {"kind": "sft"}}]}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the stand-in was asked, and what it shall raise in the middle (`raises`)."""
    told: dict[str, Any] = {"raises": None}

    def work(run: RunFolder, listener: Any) -> None:
        run.listen(listener)
        run.event("run_started", run=run.path, name="first", stages=["tune"])
        run.event("stage_started", stage="tune", phase="sft", adapter="lora", steps=2, trainable=1, parameters=10)
        for step in (1, 2):
            run.event("step", stage="tune", step=step, steps=2, loss=1.5, tokens_per_second=480.0, memory_gib=2.0)
        if told["raises"] is not None:
            run.update(state="stopped" if isinstance(told["raises"], RunStopped) else "failed")
            raise told["raises"]
        run.update_stage(
            "tune", state="succeeded", kind="adapter", artifact="stages/tune/adapter", metrics={"loss": 1.5}
        )
        run.update(state="succeeded")

    def train(recipe: Any, overrides: Any = None, out: Any = None, listener: Any = None) -> None:
        told.update(recipe=recipe, overrides=overrides, out=out)
        if isinstance(told["raises"], TutelageError) and not isinstance(told["raises"], RunFailed | RunStopped):
            raise told["raises"]
        work(RunFolder.create(out or tmp_path / "run", "first", RECIPE), listener)

    def resume(folder: Any, allow_changes: bool = False, listener: Any = None, overrides: Any = None) -> None:
        told.update(folder=folder, allow_changes=allow_changes, overrides=overrides)
        work(RunFolder.open(folder), listener)

    monkeypatch.setattr("tutelage.api.train", train)
    monkeypatch.setattr("tutelage.api.resume", resume)
    return told


def test_json_is_an_event_a_line_and_the_outcome_last(tutelage: Run, engine: dict[str, Any], tmp_path: Path) -> None:
    outcome = tutelage("train", "r.yaml", "--set", "a=1", "--set", "b=2", "--out", str(tmp_path / "o"), "--json")
    assert outcome.code == 0
    assert engine["recipe"] == Path("r.yaml")
    assert engine["overrides"] == ["a=1", "b=2"]
    assert [line.get("event") for line in outcome.lines] == ["run_started", "stage_started", "step", "step", None]
    folder = tmp_path / "o"
    assert outcome.lines[-1] == {
        "run": str(folder),
        "state": "succeeded",
        "stages": [
            {
                "name": "tune",
                "state": "succeeded",
                "artifact": str(folder / "stages/tune/adapter"),
                "kind": "adapter",
                "metrics": {"loss": 1.5},
            }
        ],
    }


def test_people_get_lines_on_stderr_and_the_summary_on_stdout(tutelage: Run, engine: dict[str, Any]) -> None:
    outcome = tutelage("train", "r.yaml")
    assert "tune: sft with lora; 2 steps, 1 of 10 parameters learn (10.00%)" in outcome.err
    assert "tune: step 2/2, loss 1.5, 480 tokens/s, 2.0 GiB" in outcome.err
    assert outcome.out.startswith("tune: succeeded (2 steps, loss 1.5, peak memory 2.00 GiB, adapter in")
    assert outcome.out.count("\n  tutelage ") == 3


@pytest.mark.parametrize(
    ("error", "code", "state"),
    [(RunFailed.at("step 2", "the loss is NaN"), 1, "failed"), (RunStopped.at("run", "saved"), 130, "stopped")],
)
def test_a_run_that_fails_says_why_and_still_ends_with_its_outcome(
    tutelage: Run, engine: dict[str, Any], error: TutelageError, code: int, state: str
) -> None:
    engine["raises"] = error
    outcome = tutelage("train", "r.yaml", "--json")
    assert outcome.code == code
    assert outcome.lines[-2]["error"]["problems"][0]["wrong"] == error.problems[0].wrong
    assert outcome.lines[-1]["state"] == state
    assert outcome.err == f"error: {error}\n"


def test_a_recipe_that_is_refused_exits_2_with_no_outcome(tutelage: Run, engine: dict[str, Any]) -> None:
    engine["raises"] = TutelageError.at("model", "missing")
    outcome = tutelage("train", "r.yaml", "--json")
    assert outcome.code == 2
    assert outcome.lines == [{"error": {"problems": [{"place": "model", "wrong": "missing", "fix": ""}]}}]


def test_resume_finds_the_run_and_passes_the_consent_on(
    tutelage: Run, engine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_RUNS", str(tmp_path))
    RunFolder.create(tmp_path / "mine", "first", RECIPE)
    outcome = tutelage("resume", "mine", "--allow-changes", "--set", "a=1", "--json")
    assert outcome.lines[-1]["state"] == "succeeded"
    assert engine["folder"] == tmp_path / "mine"
    assert engine["allow_changes"] is True
    assert engine["overrides"] == ["a=1"]
    assert tutelage("resume", "mnie").code == 2


def test_check_prints_all_problems_and_exits_2(tutelage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [Problem(place="stages.tune.adapter.rnk", wrong="unknown field", fix="did you mean rank?")]
    report = CheckReport(ok=False, problems=problems, notes=["slow"], data={"tune": {"read": 3, "dropped": 0}})
    monkeypatch.setattr("tutelage.api.check", lambda recipe, overrides: report)
    outcome = tutelage("check", "r.yaml")
    assert outcome.code == 2
    assert outcome.err == "error: stages.tune.adapter.rnk: unknown field; did you mean rank?\n"
    assert outcome.out == "tune: data: read 3\nnote: slow\n"
    (told,) = tutelage("check", "r.yaml", "--json").lines
    assert told["ok"] is False
    assert told["problems"][0]["place"] == "stages.tune.adapter.rnk"


def test_check_of_a_good_recipe_says_how_to_go_on(tutelage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    report = CheckReport(ok=True, problems=[], notes=[], data={})
    monkeypatch.setattr("tutelage.api.check", lambda recipe, overrides: report)
    assert "go on with: tutelage train r.yaml" in tutelage("check", "r.yaml").out
    assert tutelage("check", "r.yaml", "--json").lines == [{"ok": True, "problems": [], "notes": [], "data": {}}]


EVENTS = [
    ({"event": "notice", "text": "micro-batch halved"}, "note: micro-batch halved"),
    ({"event": "data", "stage": "t", "report": {"read": 1200, "dropped": 0}}, "t: data: read 1,200"),
    (
        {"event": "rehearsal", "stage": "t", "seconds": 2.14, "peak_memory_gib": 1.5},
        "t: rehearsal passed in 2.1 s, 1.50 GiB at most",
    ),
    (
        {"event": "step", "stage": "t", "step": 10, "steps": 70, "loss": 0.12345, "seconds": 2.0},
        "t: step 10/70, loss 0.1235, about 2 min 00 s left",
    ),
    ({"event": "step", "stage": "t", "step": 1, "steps": 1, "loss": None}, "t: step 1/1, loss –"),
    ({"event": "eval", "stage": "t", "step": 5, "eval_loss": 1.5}, "t: evaluation at step 5: eval_loss 1.5"),
    ({"event": "checkpoint", "stage": "t", "step": 5, "path": "x", "seconds": 1}, "t: checkpoint at step 5"),
    (
        {"event": "saved", "stage": "t", "folder": "f", "verified": True, "stops_by_itself": False},
        "t: saved in f (read back and compared, does not stop by itself)",
    ),
    (
        {"event": "stalled", "rank": 1, "step": 3, "stack": "Thread 1\n  a\nThread 2\n  b\n  c"},
        "rank 1 stands still at step 3 (its whole stack is in events.jsonl)\n  b\n  c",
    ),
    ({"event": "stage_finished", "stage": "t", "state": "succeeded", "metrics": {"loss": 1}}, "t: succeeded (loss 1)"),
    ({"event": "run_finished", "state": "failed"}, "run failed"),
    ({"event": "made_up", "time": "now", "score": 0.5}, "made_up: score 0.5"),
    ({"event": "error", "wrong": "printed at the end"}, ""),
]


@pytest.mark.parametrize(
    ("event", "said"), EVENTS, ids=lambda value: value.get("event") if isinstance(value, dict) else ""
)
def test_every_event_has_its_sentence(event: dict[str, Any], said: str) -> None:
    assert sentence(event) == said


def test_a_terminal_gets_a_bar_with_the_time_that_is_left(
    engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from tutelage.cli import views

    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(views, "is_terminal", lambda stream: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with views.view(as_json=False) as show:
        show({"event": "notice", "text": "[bold]as it is[/bold]"})
        show({"event": "step", "stage": "tune", "step": 3, "steps": 9, "loss": 0.5, "tokens_per_second": 481.2})
    shown = screen.getvalue()
    assert "note: [bold]as it is[/bold]" in shown
    assert "3/9" in shown
    assert "loss 0.5  481 tokens/s" in shown
