"""Writes the report on scaling.

python -m bench.scaling [--out DIR] [--json]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec

from bench.scaling import constants, sharding, streaming
from bench.scaling.page import page
from bench.scaling.plans import plans
from bench.scaling.published import Errors, Point, compared, errors
from bench.scaling.sharding import Sharded
from bench.scaling.streaming import Streamed
from bench.scaling.survey import memory_rows, rows
from tutelage_advisor.catalog import load


def summed_up(points: list[Point]) -> dict[str, Errors]:
    """Errors of throughput and of scaling, on the series that constants were fitted to and on those held out."""
    found = {}
    for what, scaling in (("throughput", False), ("scaling", True)):
        for part, fitted in (("fitted", True), ("held out", False)):
            found[f"{what}, {part}"] = errors([point for point in points if point.fitted == fitted], scaling)
    return found


def told(points: list[Point]) -> list[dict[str, Any]]:
    """Points with their errors, as plain values."""
    return [
        {**msgspec.structs.asdict(point), "error": point.error, "scaling_error": point.scaling_error}
        for point in points
    ]


class Measured(msgspec.Struct, frozen=True):
    """What was run on this machine rather than modelled."""

    streamed: Streamed
    sharded: Sharded

    def lines(self) -> list[str]:
        """What was measured, in lines."""
        return [*streaming.lines_of(self.streamed), *sharding.lines_of(self.sharded)]


def measured(gigabytes: float) -> Measured:
    """Stream so many generated gigabytes, and train on two processes that share the state."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "rows").mkdir()
        return Measured(
            streaming.stream(gigabytes, streaming.ROW_BYTES, Path(work) / "rows"), sharding.measure(Path(work))
        )


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for scaling.html and scaling.json."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--measure", is_flag=True, help="Also stream generated rows and train on two processes: minutes.")
@click.option("--gb", type=float, default=2.0, show_default=True, help="Gigabytes to stream with --measure.")
def main(out: Path | None, as_json: bool, measure: bool, gb: float) -> None:
    """Model training on 1 to 1,024 GPUs, and compare with what others measured."""
    catalog = load()
    surveyed, memory, points = list(rows(catalog)), memory_rows(catalog), compared(catalog)
    planned, summed = plans(surveyed, catalog), summed_up(points)
    found = measured(gb) if measure else None
    everything = {
        "constants": {name: value for name, value in vars(constants).items() if name.isupper()},
        "errors": summed,
        "published": told(points),
        "plans": planned,
        "memory": memory,
        "rows": surveyed,
        "measured": found,
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "scaling.json", msgspec.json.encode(everything))
        _write(
            out / "scaling.html",
            page(surveyed, memory, planned, points, summed, found.lines() if found else []).encode(),
        )
    if as_json:
        click.echo(msgspec.json.encode(everything))
        return
    for name, each in summed.items():
        middle = f"{each.points:3} points, median error {each.median:5.1%}"
        click.echo(f"{name:22} {middle}, worst {each.worst:+.1%} ({each.worst_of})")
    for plan in planned:
        stops = "; ".join(f"{stop.what} from {stop.gpus:,} GPUs" for stop in plan.stops)
        click.echo(f"{plan.model:14} {plan.network:15} {stops}")
    for line in found.lines() if found else []:
        click.echo(line)
    if out is not None:
        click.echo(f"{out / 'scaling.html'}")


def _write(path: Path, content: bytes) -> None:
    """Write beside the file, then rename."""
    beside = path.with_suffix(f"{path.suffix}.new")
    beside.write_bytes(content)
    beside.replace(path)


if __name__ == "__main__":
    main()
