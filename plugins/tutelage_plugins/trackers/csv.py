"""Metrics as a table in the run folder."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import tutelage
from tutelage.runs.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path


class Csv(tutelage.Tracker):
    """A file metrics.csv in each stage's folder, for spreadsheets and pandas."""

    name = "csv"

    def start(self, folder: Path, name: str, settings: dict[str, Any], resumed_from: int) -> None:
        """Keep the rows up to the step that the stage goes on from; the file grows by a row at a time."""
        self._file = folder / "metrics.csv"
        self._columns = ["step"]
        self._rows = [row for row in _read(self._file) if int(row["step"]) <= resumed_from]
        for row in self._rows:
            self._columns += [column for column in row if column not in self._columns]
        self._rewrite()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a row; a metric that is new adds a column."""
        row = {"step": str(step), **{key: str(value) for key, value in metrics.items()}}
        self._rows.append(row)
        new = [column for column in row if column not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
        else:
            with self._file.open("a", encoding="utf-8", newline="") as file:
                file.write(_text([row], self._columns))

    def finish(self, state: str) -> None:
        """Every row is on disk already."""

    def _rewrite(self) -> None:
        header = dict(zip(self._columns, self._columns, strict=True))
        write_atomically(self._file, _text([header, *self._rows], self._columns))


def _text(rows: list[dict[str, str]], columns: list[str]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read(file: Path) -> list[dict[str, str]]:
    """The whole rows of an earlier process; a last line that a kill tore is left out."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    rows = csv.DictReader(whole)
    return [{key: value for key, value in row.items() if value} for row in rows if row["step"].isdigit()]
