"""Trackers: what they keep, also across a resume, read back with the plain library."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tutelage.errors import TutelageError
from tutelage.plugins import host

SETTINGS = {"name": "x", "stages": [{"name": "tune", "trainer": {"seed": 1}}]}


def tracker(name: str, **config: Any) -> tutelage.Tracker:
    kind = host().get("tracker", name, "trackers")
    made: tutelage.Tracker = kind(kind.Config(**config))
    return made


def killed_and_resumed(name: str, folder: Path, **config: Any) -> None:
    """Steps 1 to 4 with loss 1/step, killed; resumed from step 2, and steps 3 to 5 with loss 10/step."""
    first = tracker(name, **config)
    first.start(folder, "run/tune", SETTINGS, 0)
    for step in range(1, 5):
        first.log(step, {"loss": 1 / step, "learning_rate": 0.1})
    second = tracker(name, **config)
    second.start(folder, "run/tune", SETTINGS, 2)
    for step in range(3, 6):
        second.log(step, {"loss": 10 / step, "learning_rate": 0.1})
    second.log(5, {"eval_loss": 0.25})
    second.finish("succeeded")


EXPECTED = {1: 1.0, 2: 0.5, 3: 10 / 3, 4: 2.5, 5: 2.0}


def test_csv_keeps_each_step_once_and_grows_columns(tmp_path: Path) -> None:
    killed_and_resumed("csv", tmp_path)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]): float(row["loss"]) for row in rows if row["loss"]} == EXPECTED
    assert [row["eval_loss"] for row in rows] == [""] * 5 + ["0.25"]
    assert list(rows[0]) == ["step", "loss", "learning_rate", "eval_loss"]


def test_csv_leaves_out_a_line_that_a_kill_tore(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.25\n3,0.1")
    again = tracker("csv")
    again.start(tmp_path, "x", {}, 3)
    again.log(3, {"loss": 0.125})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,0.5\n2,0.25\n3,0.125\n"


def test_csv_is_whole_after_every_step(tmp_path: Path) -> None:
    made = tracker("csv")
    made.start(tmp_path, "x", {}, 0)
    for step in (1, 2):
        made.log(step, {"loss": float("nan"), "a,b": 1.0})
        assert (tmp_path / "metrics.csv").read_text().count("\n") == step + 1
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == 'step,loss,"a,b"'


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install 'tutelage[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed_and_resumed("tensorboard", tmp_path)
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {event.step: event.value for event in shown.Scalars("loss")} == pytest.approx(EXPECTED)
    assert len(shown.Scalars("loss")) == 5
    assert [(event.step, event.value) for event in shown.Scalars("eval_loss")] == [(5, 0.25)]
    assert "settings/text_summary" in shown.Tags()["tensors"]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs pip install 'tutelage[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    uri = f"file:{tmp_path / 'mlruns'}"
    killed_and_resumed("mlflow", tmp_path, uri=uri, experiment="tests")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run/tune"
    assert run.data.params["stages.tune.trainer.seed"] == "1"
    latest = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert latest == pytest.approx(EXPECTED)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_that_can_not_be_had_is_told(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs pip install 'tutelage[mlflow]'")
    with pytest.raises(TutelageError, match=r"trackers\.mlflow: can't start: .*; mend it, or take mlflow out"):
        tracker("mlflow", uri="nonsense://x").start(tmp_path, "x", {}, 0)


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_keeps_its_run_across_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs pip install 'tutelage[wandb]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    identities = []
    for resumed_from in (0, 2):
        made = tracker("wandb", mode="offline")
        made.start(tmp_path, "run/tune", SETTINGS, resumed_from)
        made.log(resumed_from + 1, {"loss": 1.0})
        identities.append((tmp_path / "wandb-id").read_text())
        made.finish("succeeded")
    assert identities[0] == identities[1] != ""
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*{identities[0]}"))) >= 1


@pytest.mark.parametrize("name", ["csv", "tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_missing_is_told_with_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage_plugins.trackers import _packages

    monkeypatch.setattr(_packages, "find_spec", lambda module: None)
    missing = host().get("tracker", name, "trackers").missing()
    expected = f"the package {name} is not installed: pip install 'tutelage[{name}]'"
    assert missing == ("" if name == "csv" else expected)


def test_settings_are_refused_where_they_make_no_sense() -> None:
    from tutelage.config import convert

    with pytest.raises(TutelageError, match="mode: Invalid enum value"):
        convert({"mode": "shared"}, host().get("tracker", "wandb", "x").Config)
