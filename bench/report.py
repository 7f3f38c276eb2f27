"""The report of a run of the bench: a page that loads nothing, the same as Markdown, JSON, and a table to print."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench.figures import Figure, Report
from bench.intervals import interval as interval_of
from tutelage.report.blocks import Block, Bullets, Heading, Paragraph, Table, page
from tutelage.runs.files import write_atomically
from tutelage.runs.words import number

SECTIONS = {
    "utilisation": "How near training comes to the machine's own limit: the rate of the matrix products of the model's "
    "layers, forward and for gradients of inputs. What a token costs is what training can't do without.",
    "generation": "Greedy answers, beside transformers' generate in the same dtype.",
    "tokenising": "From rows to the micro-batches of an epoch, with SmolLM2's tokenizer.",
    "start-up": "From a command to the beginning of the first step, with caches warm.",
    "checkpoints": "How long training stands still while a checkpoint is written.",
    "DDP": "Gradients shared by gloo, one thread a process.",
}
COLUMNS = ["work", "measure", "ours", "TRL's best", "ratio", "95 % interval", "target", ""]


def write(report: Report, folder: Path) -> None:
    """Write report.html, report.md and report.json."""
    folder.mkdir(parents=True, exist_ok=True)
    told = blocks(report)
    write_atomically(folder / "report.json", msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n")
    write_atomically(folder / "report.html", page("Tutelage: benchmarks", told))
    write_atomically(folder / "report.md", "\n\n".join(block.markdown() for block in told) + "\n")


def read(file: Path) -> Report:
    """What an earlier run wrote.

    Raises:
        ValueError: when it is no report of the bench.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Report)
    except msgspec.DecodeError as error:
        raise ValueError(f"{file} is no report of the bench: {error}") from None


def blocks(report: Report) -> list[Block]:
    """What the page says, from top to bottom."""
    said = f"Measured {report.made}, in {report.minutes:.0f} minutes. Repeats of contenders are taken in turns."
    found: list[Block] = [Heading("Benchmarks", 1), Paragraph(said), Paragraph(summary(report))]
    works = [figure for figure in report.figures if figure.section == "works"]
    if works:
        found += [Heading("Training beside TRL", 2), Table([row(figure) for figure in works], COLUMNS)]
    for section, told in SECTIONS.items():
        own = [figure for figure in report.figures if figure.section == section]
        if own:
            columns = ["what", *COLUMNS[1:3], "beside", *COLUMNS[4:]]
            found += [Heading(section.capitalize() if section.islower() else section, 2), Paragraph(told)]
            found += [Table([row(figure) for figure in own], columns)]
    notes = [f"{figure.key}: {figure.note}" for figure in report.figures if figure.note]
    found += [Heading("Notes", 2), Bullets([*notes, *report.notes])] if notes or report.notes else []
    found += [Heading("Not measured", 2), Bullets(_failures(report))] if report.failures else []
    found += _settings(report)
    scale = msgspec.to_builtins(report.scale)
    return [
        *found,
        Heading("Machine, versions, scale", 2),
        Table([[name, number(value)] for name, value in _flat(report.machine).items()]),
        Table([[name, each] for name, each in report.versions.items()]),
        Table([[name, str(value)] for name, value in scale.items()]),
    ]


def row(figure: Figure) -> list[str]:
    """A figure as a row of its table."""
    own, beside, reached = figure.own(), figure.beside(), figure.reached()
    shown = beside or own
    interval = "one repeat" if shown.low is None else f"{number(shown.low)} to {number(shown.high)}"
    peer = interval_of(figure.peer).middle if figure.peer else None
    sign = "≥" if (figure.ratio_better if beside else figure.better) == "higher" else "≤"
    unit = f" {figure.unit}".rstrip()
    return [
        figure.name,
        figure.measure,
        f"{number(own.middle)}{unit}",
        f"{number(peer)}{unit}" if peer is not None else "–",
        f"{number(beside.middle)}" if beside else "–",
        interval,
        f"{sign} {number(figure.target)}" if figure.target is not None else "–",
        "" if reached is None else "reached" if reached else "not reached",
    ]


def summary(report: Report) -> str:
    """How many targets are reached."""
    judged = [figure for figure in report.figures if figure.target is not None]
    reached = sum(bool(figure.reached()) for figure in judged)
    failed = f"; {len(report.failures)} could not be measured" if report.failures else ""
    return f"{reached} of {len(judged)} targets reached{failed}."


def text(report: Report) -> str:
    """The figures as a table of plain text."""
    rows = [["", *COLUMNS[1:]], *(row(figure) for figure in report.figures)]
    widths = [max(len(line[column]) for line in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in rows]
    return "\n".join([*lines, "", summary(report), *_failures(report)])


def _failures(report: Report) -> list[str]:
    return [f"{name} was not measured: {reason}" for name, reason in report.failures.items()]


def _settings(report: Report) -> list[Block]:
    if not report.settings:
        return []
    rows = []
    for work, tried in report.settings.items():
        for place, each in enumerate(tried):
            settings = ", ".join(f"{name} {value}" for name, value in each["settings"].items())
            speed = each.get("error") or (number(each["speed"]) if each.get("speed") else "taken untried")
            rows.append([work, settings, str(speed), "taken" if place == 0 else ""])
    told = "Each was trained with for two steps; what counts is the second. The fastest was taken for the repeats."
    columns = ["work", "settings", "tokens (answers) a second", ""]
    return [Heading("TRL's settings", 2), Paragraph(told), Table(rows, columns)]


def _flat(facts: dict[str, object]) -> dict[str, object]:
    made: dict[str, object] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            made |= {f"{name} ({key})": each for key, each in value.items()}
        else:
            made[name] = value
    return made
