"""Metrics for MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

import tutelage
from tutelage.runs.files import write_atomically
from tutelage.runs.listing import flatten
from tutelage_plugins.trackers._packages import missing_package, remembered, unreachable

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_VALUE = 500
PARAMS_AT_ONCE = 100
"MLflow's own limits."
STATES = {"succeeded": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class MLflow(tutelage.Tracker):
    """MLflow; a resumed stage goes on in the same MLflow run."""

    name = "mlflow"

    class Config(tutelage.Config):
        """Where the run appears. Credentials come from MLflow's own environment variables."""

        experiment: Annotated[str, Meta(min_length=1, description="The experiment; made if need be.")] = "tutelage"
        uri: Annotated[
            str, Meta(description="The tracking server or database; by default MLFLOW_TRACKING_URI, as MLflow has it.")
        ] = ""

    @classmethod
    def missing(cls) -> str:
        """Says how to get MLflow where it is not installed."""
        return missing_package("mlflow", "mlflow")

    def start(self, folder: Path, name: str, settings: dict[str, Any], resumed_from: int) -> None:
        """Open an MLflow run, or the one that this stage had before."""
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        known = folder / "mlflow-run"
        self._id = remembered(known)
        try:
            self._client: Any = MlflowClient(tracking_uri=self.config.uri or None)
            if self._id:
                self._client.update_run(self._id, status="RUNNING")
                return
            self._id = self._client.create_run(self._experiment(), run_name=name).info.run_id
            params = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in flatten(settings)]
            for start in range(0, len(params), PARAMS_AT_ONCE):
                self._client.log_batch(self._id, params=params[start : start + PARAMS_AT_ONCE])
        except (MlflowException, OSError) as error:
            raise unreachable(self.name, error) from error
        write_atomically(known, self._id)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Send metrics of one step."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(key, value, now, step) for key, value in metrics.items()])

    def finish(self, state: str) -> None:
        """Close the MLflow run with its state."""
        self._client.set_terminated(self._id, status=STATES[state])

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self.config.experiment)
        return str(found.experiment_id if found else self._client.create_experiment(self.config.experiment))
