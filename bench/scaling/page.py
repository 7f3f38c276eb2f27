"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from bench.scaling.networks import NETWORKS
from bench.scaling.plans import GPU, Plan
from bench.scaling.published import Errors, Point, published
from bench.scaling.survey import COUNTS, GPUS, MODELS, Row
from tutelage.report.plots import Series as Line
from tutelage.report.plots import line_plot
from tutelage.runs.words import number

ACROSS = "GPUs, as a power of two"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1040px;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "table{border-collapse:collapse;font-size:13px;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid #ddd;"
    "text-align:left}td.n,th.n{text-align:right}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,"
    "1fr));gap:1em}figure{margin:0}.scroll{overflow-x:auto}"
)
Value = Callable[[Row], float | None]


def page(
    rows: Sequence[Row],
    memory: dict[str, dict[str, list[tuple[int, float, float]]]],
    plans: Sequence[Plan],
    points: Sequence[Point],
    summed: dict[str, Errors],
    measured: Sequence[str],
) -> str:
    """The whole page; `measured` are lines of what was run here, if anything was."""
    parts = [
        "<h1>From 1 to 1,024 GPUs</h1>",
        "<p>A model of step time and memory for training all weights in bf16 with AdamW, rows of 4,096 tokens. "
        "Nothing here was run on GPUs: the first table says how far the model is from what others measured.</p>",
        "<h2>Against published measurements</h2>",
        _summary(summed),
        _table(_POINT_HEADS, [_point(point) for point in points]),
        "<p>" + "<br>".join(f"{key}: {escape(text)}" for key, text in published().sources.items()) + "</p>",
        "<h2>Plans</h2>",
        _table(
            ("model", "network", "critical batch", "what stops it, and what then", "best before that"), _plans(plans)
        ),
    ]
    if measured:
        parts += ["<h2>Measured on this machine</h2>", f"<pre>{escape(chr(10).join(measured))}</pre>"]
    for model in MODELS:
        parts += [f"<h2>{escape(model)}</h2>", '<div class="plots">', *_plots(model, rows, memory[model]), "</div>"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>From 1 to 1,024 GPUs</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


_POINT_HEADS = ("series", "source", "used", "GPUs", "micro-batch", "accumulation", "measured tokens/s/GPU", "predicted",
                "error", "measured scaling", "predicted", "error", "note")  # fmt: skip


def _point(point: Point) -> tuple[Any, ...]:
    scaling = point.scaling_error
    return (
        point.series,
        point.source,
        "fitted" if point.fitted else "held out",
        point.gpus,
        point.micro_batch,
        point.accumulation,
        round(point.measured),
        round(point.predicted),
        f"{point.error:+.1%}",
        "" if point.scaling is None else f"{point.scaling:.3f}",
        "" if point.predicted_scaling is None else f"{point.predicted_scaling:.3f}",
        "" if scaling is None else f"{scaling:+.1%}",
        point.note,
    )


def _summary(summed: dict[str, Errors]) -> str:
    found = [
        (name, each.points, f"{each.median:.1%}", f"{each.worst:+.1%}", each.worst_of) for name, each in summed.items()
    ]
    return _table(("what", "points", "median absolute error", "worst", "which"), found)


def _plans(plans: Sequence[Plan]) -> Iterable[tuple[Any, ...]]:
    for plan in plans:
        stops = "; ".join(f"{stop.what}, from {stop.gpus:,} GPUs: {stop.then}" for stop in plan.stops)
        yield plan.model, plan.network, f"{plan.critical_batch / 1e6:.1f}M tokens", stops, _best(plan.best)


def _best(row: Row | None) -> str:
    if row is None:
        return "nothing is efficient"
    usd = "" if row.usd_per_billion_tokens is None else f", ${row.usd_per_billion_tokens:,.0f} per billion"
    settings = f"{row.strategy}, {row.micro_batch} x {row.accumulation} rows" + (", recomputing" * row.checkpointing)
    return f"{row.gpus:,} GPUs ({settings}): {row.tokens_per_second:,.0f} tokens/s at {row.efficiency:.0%}{usd}"


def _plots(model: str, rows: Sequence[Row], memory: dict[str, list[tuple[int, float, float]]]) -> list[str]:
    mine = [row for row in rows if row.model == model and row.fits]
    networks = [(network.name, [r for r in mine if r.gpu == GPU and r.network == network.name]) for network in NETWORKS]
    once = [(name, [row for row in found if row.accumulation == 1]) for name, found in networks]
    cards = [(gpu, [r for r in mine if r.gpu == gpu and r.network == NETWORKS[0].name]) for gpu in GPUS]
    held = [Line(name, [(math.log2(gpus), peak) for gpus, peak, _ in found]) for name, found in memory.items()]
    figures = (
        (f"Share of a step that is arithmetic, {GPU}, best strategy, no accumulation", _lines(once, _efficiency, max)),
        ("The same with up to 64 micro-batches a step", _lines(networks, _efficiency, max)),
        ("GiB of each GPU, one row at a time, recomputing", held),
        (f"Dollars per billion tokens, {GPU}, best strategy, no accumulation", _lines(once, _price, min)),
        (f"Dollars per billion tokens by GPU, {NETWORKS[0].name}, up to 64 micro-batches", _lines(cards, _price, min)),
    )
    return [_figure(caption, lines) for caption, lines in figures]


def _efficiency(row: Row) -> float | None:
    return row.efficiency


def _price(row: Row) -> float | None:
    return row.usd_per_billion_tokens


def _lines(groups: Iterable[tuple[str, Sequence[Row]]], value: Value, best: Callable[..., float]) -> list[Line]:
    """A line for each group, of the best value at each number of GPUs."""
    made = []
    for name, rows in groups:
        points = []
        for gpus in COUNTS:
            known = [found for row in rows if row.gpus == gpus and (found := value(row)) is not None]
            if known:
                points.append((math.log2(gpus), best(known)))
        if points:
            made.append(Line(name, points))
    return made


def _figure(caption: str, lines: list[Line]) -> str:
    drawn = line_plot("", lines, ACROSS) if lines else "<p>It does not fit.</p>"
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawn}</figure>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        return f'<td class="n">{number(value)}</td>'
    return f"<td>{escape(str(value))}</td>"
