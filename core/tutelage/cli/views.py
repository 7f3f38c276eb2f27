"""How a run's events are shown while it goes on: as JSON lines, as quiet lines, or as a progress bar."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from tutelage.cli.output import is_terminal, print_json
from tutelage.runs.words import duration, number

Event = dict[str, Any]
View = Callable[[Event], None]

SECONDS_BETWEEN_LINES = 10.0
INNERMOST = 6
"Lines of a stalled rank's stack that are shown."


@contextlib.contextmanager
def view(as_json: bool) -> Iterator[View]:
    """The view that fits: JSON lines on stdout; else, on stderr, a progress bar for a terminal or quiet lines."""
    if as_json:
        yield print_json
    elif is_terminal(sys.stderr):
        with _Bars() as bars:
            yield bars
    else:
        yield _Lines()


class _Lines:
    """A line for everything but steps, which get one every ten seconds."""

    def __init__(self) -> None:
        self._shown = float("-inf")

    def __call__(self, event: Event) -> None:
        if event["event"] == "step":
            first, last = event.get("step") == 1, event.get("step") == event.get("steps")
            if not (first or last) and time.monotonic() - self._shown < SECONDS_BETWEEN_LINES:
                return
            self._shown = time.monotonic()
        line = sentence(event)
        if line:
            click.echo(line, err=True)


class _Bars:
    """A progress bar per stage with loss, tokens/s, memory and the time that is left; other events scroll above."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", style="cyan"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=Console(stderr=True),
            expand=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        stage = str(event.get("stage", ""))
        if event["event"] == "step":
            task = self._task(stage, event.get("steps"), max(int(event.get("step") or 1) - 1, 0))
            self._progress.update(task, completed=event.get("step"), total=event.get("steps"), figures=_figures(event))
            return
        line = sentence(event)
        if line:
            self._progress.console.print(line, markup=False, highlight=False)

    def _task(self, stage: str, steps: Any, done: int) -> Any:
        """The bar of a stage; it starts where a resumed stage does, so that the time left is not guessed too short."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=steps, completed=done, figures="")
        return self._tasks[stage]


def sentence(event: Event) -> str:
    """One event as a line for people; '' for what is not worth one."""
    tell = _SENTENCES.get(event["event"])
    if tell is not None:
        return tell(event)
    told = {key: value for key, value in event.items() if key not in ("time", "event")}
    return f"{event['event']}: " + ", ".join(f"{key} {number(value)}" for key, value in told.items())


def _figures(event: Event) -> str:
    parts = [f"loss {number(event['loss'])}"] if "loss" in event else []
    if event.get("tokens_per_second"):
        parts.append(f"{number(round(event['tokens_per_second']))} tokens/s")
    if event.get("memory_gib"):
        parts.append(f"{event['memory_gib']:.1f} GiB")
    return "  ".join(parts)


def _run_started(event: Event) -> str:
    stages = event.get("stages") or []
    names = ", ".join(str(stage) for stage in stages) if isinstance(stages, list) else str(stages)
    return f"run {event.get('name', '')} in {event.get('run', '')} (stages: {names})"


def _stage_started(event: Event) -> str:
    facts = []
    if event.get("steps"):
        facts.append(f"{number(event['steps'])} steps")
    if event.get("examples"):
        facts.append(f"{number(event['examples'])} examples")
    if event.get("tokens"):
        facts.append(f"{number(event['tokens'])} tokens")
    if event.get("trainable") and event.get("parameters"):
        share = event["trainable"] / event["parameters"]
        facts.append(f"{number(event['trainable'])} of {number(event['parameters'])} parameters learn ({share:.2%})")
    if event.get("resumed_from"):
        facts.append(f"goes on after step {event['resumed_from']}")
    what = " with ".join(str(event[key]) for key in ("phase", "adapter") if event.get(key))
    return f"{event.get('stage')}: {what}; " + ", ".join(facts) if facts else f"{event.get('stage')}: {what}"


def _step(event: Event) -> str:
    left = ""
    step, steps, seconds = event.get("step"), event.get("steps"), event.get("seconds")
    if steps and step and seconds and steps > step:
        left = f", about {duration((steps - step) * seconds)} left"
    figures = _figures(event).replace("  ", ", ")
    return f"{event.get('stage')}: step {step}/{steps}" + (f", {figures}" if figures else "") + left


def _eval(event: Event) -> str:
    figures = {
        key: value
        for key, value in event.items()
        if key not in ("time", "event", "stage", "step", "steps", "epoch", "seconds") and value is not None
    }
    told = ", ".join(f"{key} {number(value)}" for key, value in figures.items())
    return f"{event.get('stage')}: evaluation at step {event.get('step')}: {told}"


def data_sentence(report: dict[str, Any]) -> str:
    """What became of a stage's data: figures that are not zero, in the report's order."""
    return ", ".join(
        f"{key.replace('_', ' ')} {number(value)}"
        for key, value in report.items()
        if isinstance(value, int | float) and value
    )


def _data(event: Event) -> str:
    report = event.get("report")
    return f"{event.get('stage')}: data: {data_sentence(report) if isinstance(report, dict) else report}"


def _rehearsal(event: Event) -> str:
    seconds = f" in {duration(event['seconds'])}" if event.get("seconds") is not None else ""
    memory = f", {event['peak_memory_gib']:.2f} GiB at most" if event.get("peak_memory_gib") else ""
    return f"{event.get('stage')}: rehearsal passed{seconds}{memory}"


def _saved(event: Event) -> str:
    verified = "read back and compared" if event.get("verified") else "not compared"
    stops = ""
    if event.get("stops_by_itself") is not None:
        stops = ", stops by itself" if event["stops_by_itself"] else ", does not stop by itself"
    return f"{event.get('stage')}: saved in {event.get('folder')} ({verified}{stops})"


def _stalled(event: Event) -> str:
    """Where a rank stands; its stack may have hundreds of lines, of which the last thread's first ones tell most."""
    stack = event.get("stack") or ""
    lines = stack if isinstance(stack, list) else str(stack).splitlines()
    threads = [at for at, line in enumerate(lines) if line.startswith("Thread ")]
    innermost = lines[threads[-1] + 1 :] if threads else lines
    shown = "".join(f"\n{line}" for line in innermost[:INNERMOST])
    return (
        f"rank {event.get('rank')} stands still at step {event.get('step')} (its whole stack is in events.jsonl){shown}"
    )


def _section(event: Event) -> str:
    """A table as lines, and a prompt with its answers not at all: that is for the report."""
    rows, columns = event.get("rows") or [], event.get("columns") or []
    if "answer" in columns:
        return ""
    lines = [f"{event.get('stage')}: {event.get('title')}", *map(str, event.get("text") or [])]
    lines += [
        "  " + ", ".join(f"{name} {cell}" for name, cell in zip(columns, row, strict=False) if str(cell))
        for row in rows
    ]
    return "\n".join(lines)


def _samples(event: Event) -> str:
    lines = []
    for each in event.get("samples") or []:
        prompt = each.get("prompt")
        asked = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""
        said = f"  {_short(asked)} → {_short(str(each.get('answer')))} (reward {number(each.get('reward'))})"
        lines.append(said)
    return "\n".join(lines)


def _short(text: str, longest: int = 100) -> str:
    """On one line, and without what would move a terminal's cursor: a model may write anything."""
    line = "".join(each if each.isprintable() else "·" for each in " ".join(text.split()))
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _told(event: Event, what: str) -> str:
    hidden = ("time", "event", "stage")
    told = {name: value for name, value in event.items() if name not in hidden and isinstance(value, int | float | str)}
    return f"{event.get('stage')}: {what}: " + ", ".join(f"{name} {number(value)}" for name, value in told.items())


def _stage_finished(event: Event) -> str:
    metrics = event.get("metrics") or {}
    told = ", ".join(f"{key} {number(value)}" for key, value in metrics.items())
    return f"{event.get('stage')}: {event.get('state')}" + (f" ({told})" if told else "")


_SENTENCES: dict[str, Callable[[Event], str]] = {
    "run_started": _run_started,
    "stage_started": _stage_started,
    "notice": lambda event: f"note: {event.get('text', '')}",
    "data": _data,
    "rehearsal": _rehearsal,
    "step": _step,
    "eval": _eval,
    "checkpoint": lambda event: f"{event.get('stage')}: checkpoint at step {event.get('step')}",
    "saved": _saved,
    "section": _section,
    "models": lambda event: _told(event, "models"),
    "samples": _samples,
    "conclusion": lambda event: _told(event, "conclusion"),
    "stalled": _stalled,
    "stage_finished": _stage_finished,
    "run_finished": lambda event: f"run {event.get('state')}",
    "error": lambda _: "",  # the command ends by printing it
}
