"""What a person reads when a run ends: the loss, the costs and what to try next."""

from __future__ import annotations

import shlex
import shutil
import sys
from typing import TYPE_CHECKING

import click

from tutelage.cli.output import is_terminal
from tutelage.runs.drawing import text_plot
from tutelage.runs.history import StageHistory, read_history
from tutelage.runs.listing import runs_root, state_of
from tutelage.runs.words import duration, number

if TYPE_CHECKING:
    from pathlib import Path

    from tutelage.runs.folder import RunFolder, StageRecord


def print_summary(folder: RunFolder) -> None:
    """The loss as a plot (on a terminal), what each stage cost, where all of it lies, and what to try next."""
    histories = read_history(folder)
    for stage in folder.record.stages:
        history = histories.get(stage.name)
        if history and len(history.points("loss")) > 1 and is_terminal(sys.stdout):
            click.echo(loss_plot(history))
        click.echo(f"{stage.name}: {stage.state}{_costs(stage, history)}")
    click.echo(f"run folder: {folder.path}")
    if (folder.path / "report.html").is_file():
        click.echo(f"report: {folder.path / 'report.html'}")
    commands = next_commands(folder)
    if commands:
        click.echo("try next:")
    for command in commands:
        click.echo(f"  {command}")


def loss_plot(history: StageHistory, width: int | None = None, height: int = 12) -> str:
    """The loss by step, drawn with characters; ● marks evaluations."""
    evaluations = history.points("eval_loss")
    title = f"{history.name}: loss by step" + (" (● evaluation)" if evaluations else "")
    width = width or min(shutil.get_terminal_size().columns, 100)
    return f"{title}\n{text_plot(history.points('loss'), evaluations, width, height)}"


def next_commands(folder: RunFolder) -> list[str]:
    """Three commands that make sense now, with names that work from here."""
    name = _reference(folder.path)
    if state_of(folder) == "waiting":
        return [f"tutelage rank {name}", f"tutelage rank {name} --status", f"tutelage resume {name}"]
    if state_of(folder) != "succeeded":
        return [f"tutelage resume {name}", f"tutelage runs show {name}", "tutelage runs list"]
    kinds = [stage.kind for stage in folder.record.stages if stage.artifact and stage.kind not in ("dataset", "report")]
    last = kinds[-1] if kinds else ""
    if last not in ("adapter", "model"):
        return [f"tutelage runs show {name}", f"tutelage runs compare {name} OTHER-RUN", "tutelage runs list"]
    third = f"tutelage runs show {name}"
    if last == "adapter":
        third = f"tutelage merge {name} --out {shlex.quote(folder.path.name + '-merged')}"
    return [f'tutelage generate {name} --prompt "…"', f"tutelage chat {name} --beside-base", third]


def _reference(path: Path) -> str:
    return shlex.quote(path.name if path.parent == runs_root().resolve() else str(path))


def _costs(stage: StageRecord, history: StageHistory | None) -> str:
    if history is None or not history.steps:
        return f" ({stage.kind} in {stage.artifact})" if stage.artifact else ""
    parts = ["1 step" if len(history.steps) == 1 else f"{len(history.steps)} steps"]
    if history.last_loss is not None:
        parts.append(f"loss {number(history.last_loss)}")
    evals = history.points("eval_loss")
    if evals:
        parts.append(f"eval loss {number(evals[-1][1])}")
    if history.seconds:
        parts.append(duration(history.seconds))
    if history.tokens_per_second:
        parts.append(f"{number(round(history.tokens_per_second))} tokens/s")
    if history.peak_memory:
        parts.append(f"peak memory {history.peak_memory:.2f} GiB")
    if stage.artifact:
        parts.append(f"{stage.kind} in {stage.artifact}")
    return " (" + ", ".join(parts) + ")"
