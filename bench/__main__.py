"""Measures Tutelage beside other libraries and beside what the machine can do, and writes a report.

python -m bench [--quick] [--only NAME] [--data FILE] [--out DIR] [--compare OLD.json]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from bench import (
    contests,
    generating,
    machine,
    parallel,
    preferring,
    preparing,
    processes,
    report,
    rollouts,
    rows,
    saving,
    second,
    starting,
    tuning,
)
from bench.contests import Contest, Settings, Turn
from bench.figures import Figure, Report, regressions
from bench.processes import Failed
from bench.scale import QUICK, WHOLE, Scale, Setup

SECTIONS: dict[str, Callable[[Setup], list[Figure]]] = {
    "generation": generating.figures,
    "tokenising": preparing.figures,
    "start-up": starting.figures,
    "checkpoints": saving.figures,
    "ddp": parallel.figures,
}
WORKS = {contest.name: contest for module in (tuning, preferring, rollouts) for contest in module.contests()}
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
NAMES = (*WORKS, *SECTIONS)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One short repeat of everything, and none of the peers' settings tried.")
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Measure only this; may be given several times.")
@click.option("--data", type=FILE, default=rows.DEMO, help="JSONL with messages, or Alpaca's JSON; else the demo's.")
@click.option("--model", default="starter:smollm2-135m-instruct", show_default=True)
@click.option("--repeats", type=click.IntRange(1), help="Of every work.")
@click.option("--steps", type=click.IntRange(3), help="Of every training; the first two don't count.")
@click.option("--tokens-per-step", type=click.IntRange(64))
@click.option("--trials", type=click.IntRange(1), help="How many of TRL's settings are tried for each work.")
@click.option("--litgpt", type=FILE, help="A Python with LitGPT, to measure it, too.")
@click.option("--out", type=FOLDER, default=Path("build/bench"), show_default=True)
@click.option("--compare", type=FILE, help="An older report.json.")
@click.option("--read", type=FILE, help="Measure nothing; compare this report.json.")
def main(
    quick: bool, only: tuple[str, ...], data: Path, model: str, litgpt: Path | None, out: Path, compare: Path | None,
    read: Path | None, **sizes: int | None,
) -> None:  # fmt: skip
    """Measure, write report.html and report.json into --out, and print the figures.

    With --compare, figures that are worse than in an older report beyond what repeats differ by are named, and the
    exit code is 1 when there are any.
    """
    old = _read(compare) if compare else None
    if read:
        found = _read(read)
    else:
        scale = msgspec.structs.replace(QUICK if quick else WHOLE, **{name: n for name, n in sizes.items() if n})
        with tempfile.TemporaryDirectory(prefix="bench-") as work:
            found = Bench(scale, only or NAMES, data, model, litgpt, Path(work), out).run()
        click.echo(report.text(found))
        click.echo(f"\nreport: {out / 'report.html'}")
    worse = _worse(old, found) if old else []
    if worse or found.failures:
        sys.exit(1)


T = TypeVar("T")


class Bench:
    """One run of the bench; what it has found so far is always in `report`, and written after every part."""

    def __init__(
        self, scale: Scale, names: tuple[str, ...], data: Path, model: str, litgpt: Path | None, work: Path, out: Path
    ) -> None:
        self.names = names
        self.litgpt = litgpt
        self.out = out
        self.began = time.monotonic()
        all_rows = rows.read_rows(data)
        held_out, learnt = all_rows[-scale.held_out :], all_rows[: -scale.held_out]
        folder, counts = _fetched(model, all_rows, work)
        self.setup = Setup(folder, learnt, held_out, counts[: len(learnt)], scale, work)
        self.report = Report(
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            machine=machine.facts(),
            versions=machine.versions(),
            scale={**msgspec.to_builtins(scale), "data": data.name, "rows": len(all_rows), "model": model},
        )

    def run(self) -> Report:
        """Measure all that is asked for."""
        self._say("the machine's own limit")
        limits = self._tried("machine", partial(machine.limits, self.setup))
        self.setup.machine = self.report.machine
        self.report.machine["limits"] = {name: round(each, 1) for name, each in (limits or {}).items()}
        works = [WORKS[name] for name in WORKS if name in self.names]
        if works:
            self._hold(works)
        for name, figures in SECTIONS.items():
            if name in self.names:
                self._say(name)
                self.report.figures += self._tried(name, partial(figures, self.setup)) or []
                self._write()
        self._write()
        return self.report

    def _hold(self, works: list[Contest]) -> None:
        """Contests: settings, all repeats in turns, and what follows from them."""
        report, setup = self.report, self.setup
        chosen: dict[str, Settings] = {}
        for name in dict.fromkeys(contest.asked for contest in works):  # PPO stands beside TRL's GRPO: one for both
            source = WORKS[name]
            self._say(f"TRL's settings for {name}")
            if tried := self._tried(f"{name}, trl", partial(contests.try_settings, source, setup)):
                chosen[name] = tried[0]["settings"]
                report.settings[name] = tried
        turns = contests.hold(works, chosen, setup, self._say, report.failures)
        second_peer = self._beside_litgpt(turns) if WORKS["lora"] in works else []
        report.turns = [msgspec.to_builtins(turn) for turn in turns]
        report.figures += contests.figures(works, turns, setup) + second_peer
        self._say("final losses")
        report.figures += self._tried("final losses", partial(contests.losses, works, turns, setup)) or []
        titles = [contest.title for contest in works]
        report.figures.sort(key=lambda figure: titles.index(figure.name))
        tuned = [turn for turn in turns if turn.who == "tutelage" and WORKS[turn.work].kind == "sft"]
        report.figures += machine.utilisation(setup, tuned)
        self._write()

    def _beside_litgpt(self, turns: list[Turn]) -> list[Figure]:
        if self.litgpt is None:
            self.report.notes.append("LitGPT was not measured: no Python that has it was given (--litgpt).")
            return []
        self._say("LitGPT")
        return self._tried("litgpt", partial(second.figures, self.litgpt, WORKS["lora"], self.setup, turns)) or []

    def _tried(self, name: str, measure: Callable[[], T]) -> T | None:
        try:
            return measure()
        except Exception as error:  # whatever it is, the other parts are still measured, and it is told
            told = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            self.report.failures[name] = told
            self._say(f"{name} was not measured: {told}")
            return None

    def _say(self, said: str) -> None:
        click.echo(f"{(time.monotonic() - self.began) / 60:5.1f} min  {said}", err=True)

    def _write(self) -> None:
        self.report.minutes = (time.monotonic() - self.began) / 60
        report.write(self.report, self.out)


def _fetched(model: str, all_rows: rows.Rows, work: Path) -> tuple[str, list[int]]:
    """The model's folder, and the tokens of each row."""
    file = work / "rows.json"
    file.write_text(json.dumps(all_rows), encoding="utf-8")
    told = processes.ask("bench.fetching", {"model": model, "rows": str(file)}, work / "fetching").lines[-1][0]
    return told["path"], told["counts"]


def _read(file: Path) -> Report:
    try:
        return report.read(file)
    except ValueError as error:
        raise click.ClickException(str(error)) from None


def _worse(old: Report, new: Report) -> list[str]:
    try:
        worse = regressions(old, new)
    except ValueError as error:
        raise click.ClickException(f"the reports can't be compared: {error}") from None
    click.echo(f"\nregressions since {old.made}: {len(worse)}")
    for each in worse:
        click.echo(f"- {each}")
    return worse


if __name__ == "__main__":
    main()
