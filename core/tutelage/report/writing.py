"""Writes a run's report from its record and its events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tutelage.report.blocks import Block, Bullets, Code, Heading, Paragraph, Plot, Table, page
from tutelage.report.plots import Series, line_plot
from tutelage.runs.files import write_atomically
from tutelage.runs.folder import RECIPE
from tutelage.runs.history import StageHistory, read_history
from tutelage.runs.listing import flatten, state_of
from tutelage.runs.words import duration, number

if TYPE_CHECKING:
    from tutelage.runs.folder import RunFolder, StageRecord

PLOTS = "plots"
LONGEST_TABLE = 200


def write_report(folder: RunFolder) -> None:
    """Write report.html (whole in itself), report.md and the plots it links, over what an earlier report said.

    Raises:
        OSError: when the disk is full or the folder can't be written.
    """
    blocks = report_blocks(folder)
    for block in blocks:
        if isinstance(block, Plot):
            file = folder.path / block.file
            file.parent.mkdir(exist_ok=True)
            write_atomically(file, block.svg)
    write_atomically(folder.path / "report.html", page(f"Run {folder.record.name}", blocks))
    write_atomically(folder.path / "report.md", "\n\n".join(block.markdown() for block in blocks) + "\n")


def report_blocks(folder: RunFolder) -> list[Block]:
    """What a report says, from top to bottom."""
    record = folder.record
    blocks: list[Block] = [Heading(f"Run {record.name}", 1), Paragraph(_state(folder)), Table(_facts(folder))]
    histories = read_history(folder)
    for stage in record.stages:
        blocks += _stage_blocks(stage, histories.get(stage.name) or StageHistory(stage.name))
    blocks += [
        Heading("Recipe", 2),
        Paragraph("As it was resolved: every default is spelled out."),
        Code((folder.path / RECIPE).read_text(encoding="utf-8"), "yaml"),
    ]
    return blocks


def _state(folder: RunFolder) -> str:
    reason = folder.record.reason
    return f"State: {state_of(folder)}." + (f" {reason}" if reason else "")


def _facts(folder: RunFolder) -> list[list[str]]:
    record = folder.record
    versions = {"tutelage": record.tutelage, **record.versions}
    return [
        ["created", record.created],
        ["folder", str(folder.path)],
        ["platform", record.platform],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
    ]


def _stage_blocks(stage: StageRecord, history: StageHistory) -> list[Block]:
    what = f" ({stage.phase} with {stage.adapter})" if stage.adapter else f" ({stage.phase})"
    blocks: list[Block] = [Heading(f"Stage {stage.name}{what}", 2), Table(_stage_facts(stage, history))]
    if stage.metrics:
        rows = [[name, number(value)] for name, value in stage.metrics.items()]
        blocks += [Heading("Metrics", 3), Table(rows, ["metric", "value"])]
    for section in history.sections:
        blocks += _section(section)
    plots = _plots(history)
    if plots:
        blocks += [Heading("Course", 3), *plots]
    if history.samples:
        rows = [[_asked(each), str(each.get("answer")), number(each.get("reward"))] for each in history.samples]
        blocks += [Heading("Answers of the last step", 3), Table(rows, ["prompt", "answer", "reward"])]
    if history.evals:
        blocks += [Heading("Evaluations", 3), _evaluations(history)]
    if history.data:
        rows = [[name, _shown(value)] for name, value in flatten(history.data)]
        blocks += [Heading("Data", 3), Table(rows[:LONGEST_TABLE])]
    if history.notices:
        blocks += [Heading("Notes", 3), Bullets(history.notices[:LONGEST_TABLE])]
    return blocks


def _asked(sample: dict[str, Any]) -> str:
    prompt = sample.get("prompt")
    if isinstance(prompt, list):
        return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in prompt)
    return str(prompt)


def _section(section: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = [Heading(str(section.get("title")), 3)]
    blocks += [Paragraph(str(text)) for text in section.get("text") or []]
    rows = [[str(cell) for cell in row] for row in section.get("rows") or []]
    if rows:
        columns = section.get("columns")
        blocks.append(Table(rows[:LONGEST_TABLE], [str(name) for name in columns] if columns else None))
    return blocks


def _stage_facts(stage: StageRecord, history: StageHistory) -> list[list[str]]:
    started, saved = history.started, history.saved
    steps = max(stage.steps_done, max(history.steps, default=0))
    facts: dict[str, Any] = {
        "state": stage.state,
        "steps": f"{steps} of {stage.steps_planned}" if stage.steps_planned else steps or None,
        "examples": started.get("examples"),
        "tokens computed": history.tokens or None,
        "parameters that learn": _share(started),
        "time in steps": duration(history.seconds) if history.seconds else None,
        "tokens per second": round(history.tokens_per_second) if history.tokens_per_second else None,
        "peak memory": f"{history.peak_memory:.2f} GiB" if history.peak_memory else None,
        "started": stage.started or None,
        "ended": stage.ended or None,
        "artifact": f"{stage.artifact} ({stage.kind})" if stage.artifact else None,
        "read back and compared": _yes(saved.get("verified")),
        "stops by itself": _yes(saved.get("stops_by_itself")),
    }
    return [[name, number(value)] for name, value in facts.items() if value is not None]


def _plots(history: StageHistory) -> list[Block]:
    lines = [
        ("loss", "loss", [("training", "loss"), ("evaluation", "eval_loss")]),
        ("reward", "reward", [("training", "reward"), ("held-out prompts", "eval_reward")]),
        ("held-out-reward", "rewards that nothing learns from", [("held-out prompts", "eval_held_out")]),
        ("kl", "KL from the reference, nats an answer", [("training", "kl"), ("held-out prompts", "eval_kl")]),
        ("accuracy", "accuracy on pairs", [("training", "accuracy"), ("evaluation", "eval_accuracy")]),
        ("length", "tokens an answer", [("training", "length"), ("held-out prompts", "eval_length")]),
        ("learning-rate", "learning rate", [("learning rate", "learning_rate")]),
        ("tokens-per-second", "tokens per second", [("tokens per second", "tokens_per_second")]),
        ("gradient-norm", "gradient norm", [("gradient norm", "grad_norm")]),
    ]
    plots: list[Block] = []
    for file, title, wanted in lines:
        series = [Series(label, history.points(key)) for label, key in wanted]
        if any(each.points for each in series):
            title = f"{history.name}: {title}"
            plots.append(Plot(title, line_plot(title, series), f"{PLOTS}/{history.name}-{file}.svg"))
    return plots


def _evaluations(history: StageHistory) -> Table:
    hidden = ("time", "event", "stage", "step")
    keys = list(dict.fromkeys(key for event in history.evals.values() for key in event if key not in hidden))
    rows = [
        [str(step), *(number(history.evals[step].get(key)) for key in keys)]
        for step in sorted(history.evals)[-LONGEST_TABLE:]
    ]
    return Table(rows, ["step", *keys])


def _share(started: dict[str, Any]) -> str | None:
    trainable, parameters = started.get("trainable"), started.get("parameters")
    if not trainable or not parameters:
        return None
    return f"{trainable:,} of {parameters:,} ({trainable / parameters:.2%})"


def _yes(value: Any) -> str | None:
    return None if value is None else "yes" if value else "no"


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else number(value)
    return text if len(text) <= 300 else text[:299] + "…"
