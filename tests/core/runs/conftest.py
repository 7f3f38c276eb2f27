"""A run folder as the engine leaves it, written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.recipe import Data, Recipe, Stage, Trainer, load
from tutelage.report import write_report
from tutelage.runs.folder import RunFolder

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where runs lie."""
    monkeypatch.setenv("TUTELAGE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def make_run(root: Path) -> MakeRun:
    """Makes a run of one stage `tune` with six steps of loss 6, 5 … 1, and a checkpoint of 1000 bytes."""

    def make(name: str = "invoices", state: str = "succeeded", learning_rate: float = 2e-4) -> RunFolder:
        stage = Stage(
            name="tune",
            phase={"kind": "sft"},
            adapter={"kind": "lora", "rank": 16},
            data=Data(train="rows.jsonl"),
            trainer=Trainer(learning_rate=learning_rate, seed=7),
        )
        recipe, _ = load(Recipe(name="invoices", model="starter:small", stages=[stage]))
        folder = RunFolder.create(root / name, "invoices", recipe)
        with folder.lock():
            folder.update(state="running")
            folder.event("run_started", run=folder.path, name="invoices", stages=["tune"])
            folder.event("data", stage="tune", report={"read": 40, "kept": 39, "dropped": 1})
            folder.event("stage_started", stage="tune", steps=6, examples=39, trainable=10, parameters=1000)
            for step in range(1, 7):
                folder.event("step", stage="tune", step=step, steps=6, loss=7.0 - step, tokens=100, seconds=0.5)
            folder.event("eval", stage="tune", step=6, eval_loss=1.25)
            folder.event("notice", stage="tune", text="<script>alert(1)</script> | `x`")
            folder.event("saved", stage="tune", folder="x", verified=True, stops_by_itself=False)
            checkpoint = folder.stage_folder("tune") / "checkpoints" / "step-6"
            checkpoint.mkdir(parents=True)
            (checkpoint / "weights").write_bytes(b"x" * 1000)
            artifact = folder.stage_folder("tune") / "adapter"
            artifact.mkdir()
            (artifact / "adapter_config.json").write_text("{}")
            folder.record.data = {"tune": {"rows.jsonl": "abc"}}
            folder.update_stage(
                "tune",
                state=state,
                kind="adapter",
                artifact="stages/tune/adapter",
                metrics={"loss": 1.0, "eval_loss": 1.25},
                steps_planned=6,
                steps_done=6,
            )
            folder.update(state=state)
            write_report(folder)
        return folder

    return make
