"""Models that earlier runs made."""

from __future__ import annotations

from pathlib import Path

import tutelage
from tutelage.config import did_you_mean
from tutelage.errors import TutelageError
from tutelage.models.locating import locate_folder, read_record, run_artifact, runs_folder


class RunSource(tutelage.ModelSource):
    """`run:NAME` or `run:NAME/STAGE`: what the newest finished run of that name made in its last stage, or in STAGE."""

    name = "run"

    def available(self, reference: str, place: str) -> None:
        locate_folder(Path(self.fetch(reference, place)), place)

    def fetch(self, reference: str, place: str) -> str:
        folder = Path(reference).expanduser()
        if (folder / "run.json").is_file():
            return str(run_artifact(folder.resolve(), "", place))
        name, _, stage = reference.partition("/")
        return str(run_artifact(_newest(name, place), stage, place))

    def held(self, reference: str) -> str:
        try:
            return self.fetch(reference, "")
        except TutelageError:
            return ""


def _newest(name: str, place: str) -> Path:
    """The newest finished run called `name`, by its recipe or by its folder; runs are stamped with their start."""
    below = runs_folder()
    records = {path.parent: read_record(path.parent) for path in below.glob("*/run.json")}
    named = [folder for folder, record in records.items() if name in (record.get("name"), folder.name)]
    finished = [folder for folder in named if records[folder].get("state") == "succeeded"]
    if finished:
        return max(finished, key=lambda folder: (str(records[folder].get("created", "")), folder.name))
    if named:
        raise TutelageError.at(place, f"no run called {name} has finished", f"tutelage resume {max(named)}")
    known = sorted({str(record["name"]) for record in records.values() if record.get("name")})
    hint = did_you_mean(name, known) if known else f"there are no runs in {below} (set TUTELAGE_RUNS to look elsewhere)"
    raise TutelageError.at(place, f"no run is called {name}", hint)
