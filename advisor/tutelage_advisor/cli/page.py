"""Advice on a page that a busy person reads in a minute."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tutelage_advisor.advice import Advice, MethodAdvice, PreferenceAdvice, Reason
    from tutelage_advisor.costs.results import Costs
    from tutelage_advisor.rules import Rule

VERDICTS = {
    "prompt": "Prompt it",
    "retrieve": "Retrieve the facts",
    "fine-tune": "Fine-tune it",
    "collect-data": "Collect data first",
}
METHODS = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "prompt": "prompt tuning"}
_REASONS, _MARGIN = 6, 24


def page(advice: Advice) -> str:
    """The advice as text, styled for a terminal; click strips the styles where none is."""
    return "\n".join(_parts(advice)) + "\n"


def brief(advice: Advice) -> str:
    """The verdict with its reasons and costs alone."""
    return "\n".join([*_verdict(advice), *_why(advice), *_paid(advice)]) + "\n"


def why(rule: Rule) -> str:
    """One rule, told in full."""
    when = ", ".join(f"{name} is {_words(value)}" for name, value in rule.when.items()) or "always"
    effect = (
        "rules it out" if rule.blocks else f"{abs(rule.weight):g} points {'for' if rule.weight >= 0 else 'against'} it"
    )
    lines = [click.style(rule.name, bold=True), rule.says, "", *_wrapped(rule.why, ""), ""]
    facts = (("holds when", when), ("about", rule.option), ("effect", effect), ("source", rule.source))
    return "\n".join([*lines, *(f"{click.style(name, dim=True)}: {text}" for name, text in facts)]) + "\n"


def _parts(advice: Advice) -> Iterator[str]:
    yield from _verdict(advice)
    yield from _why(advice)
    yield from _section("Data", (line for text in advice.data.reasons[:3] for line in _wrapped(text, "  ")))
    yield from _paid(advice)
    if advice.method:
        yield from _section("Methods", (*_methods(advice.methods), *_nearest(advice)))
    if advice.preferences:
        yield from _section("Preferences", _preferences(advice.preferences))
    yield from _section("Assumed, and it matters", _assumptions(advice))
    yield from _section("Mind", (line for risk in advice.risks[:5] for line in _wrapped(risk, "  ")))
    steps = enumerate(advice.next_steps, 1)
    yield from _section("Next", (line for number, step in steps for line in _wrapped(f"{number}. {step}", "  ")))


def _why(advice: Advice) -> Iterator[str]:
    return _section("Why", (line for reason in _chosen(advice) for line in _reason(reason)))


def _paid(advice: Advice) -> Iterator[str]:
    return _section(f"Costs over {advice.costs.horizon_months} months", _costs(advice.costs))


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    """A titled block, or nothing where there is nothing to say."""
    shown = list(lines)
    if shown:
        yield from ("", click.style(title, bold=True), *shown)


def _verdict(advice: Advice) -> Iterator[str]:
    verdict = VERDICTS[advice.approach]
    if advice.method:
        verdict += f" with {METHODS[advice.method]}"
    if advice.combine_with:
        verdict += f"; beside it, {' and '.join(advice.combine_with)}"
    sure = advice.confidence
    yield click.style(verdict, fg="green", bold=True) + f"   (confidence {sure.level}, {sure.value:.2f})"
    yield from _wrapped(textwrap.shorten(advice.task, 300), "")
    for sentence in sure.near:
        yield from _wrapped(f"Close call: {sentence}.", "")


def _assumptions(advice: Advice) -> Iterator[str]:
    for each in [each for each in advice.assumptions if each.matters != "nothing"][:5]:
        others = "; ".join(f"{_words(flip.value)}: {_short(flip)}" for flip in each.flips[:3])
        yield from _wrapped(f"{each.field} = {_words(each.value)} ({each.why}). Otherwise {others}", "  ")


def _chosen(advice: Advice) -> list[Reason]:
    """The weightiest reasons on the approach, and the best one for the method."""
    approach = [reason for reason in advice.reasons if reason.option in ("prompt", "retrieve", "fine-tune")]
    weighty = [reason for reason in approach if reason.weight or reason.decisive][:_REASONS]
    chosen = [method for method in advice.methods if method.chosen]
    best = [max(method.reasons, key=lambda reason: reason.weight) for method in chosen if method.reasons]
    return [*weighty, *best]


def _reason(reason: Reason) -> Iterator[str]:
    if reason.decisive:
        side, colour = f"no {reason.option}", "red"
    else:
        side, colour = f"{reason.side} {reason.option} {reason.weight:g}", "green" if reason.side == "for" else "yellow"
    first, *others = _wrapped(f"{reason.says} [{reason.rule}]", " " * _MARGIN)
    yield "  " + click.style(side.ljust(_MARGIN - 2), fg=colour) + first[_MARGIN:]
    yield from others


def _costs(costs: Costs) -> Iterator[str]:
    rows = [["", "upfront", "a month", "total"]]
    for option in costs.options:
        monthly = option.running_usd / costs.horizon_months
        rows.append([option.name, *(_usd(amount) for amount in (option.upfront_usd, monthly, option.total_usd))])
    yield from _table(rows)
    if costs.pays is None:
        return
    month, volume = costs.break_even_month, costs.break_even_requests
    said = f"pays back in month {month}" if costs.pays and month else "doesn't pay back by cost alone"
    at = f"; it would from {volume:,} calls a month" if not costs.pays and volume else ""
    yield from _wrapped(f"Tuning {said}{at} (net present value {_usd(costs.npv_usd or 0)}).", "  ")
    if costs.monte_carlo:
        saving = costs.monte_carlo.saving_usd
        chance = f"Chance that it pays: {costs.monte_carlo.chance_pays:.0%}"
        between = f"saving between {_usd(saving.low)} and {_usd(saving.high)} in 9 of 10 cases"
        yield from _wrapped(f"{chance}; {between}; most hangs on {costs.tornado[0].input}.", "  ")


def _methods(methods: list[MethodAdvice]) -> Iterator[str]:
    rows = [["", "memory", "hardware", "a training", "compute", "can change", "forgets"]]
    for each in methods:
        memory = f"{each.peak_gib:.0f} GiB" if each.peak_gib else ""
        hardware = each.hardware if each.fits else f"doesn't fit {each.hardware}"
        run = f"{_hours(each.hours)}, {_usd(each.usd or 0)}" if each.hours is not None and each.fits else ""
        name = f"{'> ' if each.chosen else '  '}{METHODS[each.method]}"
        rows.append([name, memory, hardware, run, each.compute, each.customisation, each.forgetting])
    yield from _table(rows)


def _preferences(given: PreferenceAdvice) -> Iterator[str]:
    verdict = f"Learn them by {given.method.upper()}" if given.method else "They can't be learnt here"
    whose = {"people": "; let people compare", "ai-feedback": "; let a judge compare", "none": ""}[given.feedback]
    yield "  " + click.style(verdict + whose, fg="green")
    asked = (
        f"{given.pairs:,} comparisons are {given.state}: {given.minimum:,} at the least, {given.robust:,} for robust"
    )
    if given.method != "grpo":
        yield from _wrapped(f"{asked} results", "  ")
        names = {"people": "people", "ai-feedback": "a judge"}
        rows = [["", "a label", "agrees with people", "a useful label", "labels to robust", "total"]]
        rows += [
            [
                names[each.source],
                f"${each.usd_per_label:.3f}",
                f"{each.agreement:.0%}",
                f"${each.usd_per_useful_label:.3f}",
                f"{each.labels:,}",
                _usd(each.usd),
            ]
            for each in given.labels
        ]
        yield from _table(rows)
    rows = [["", "memory", "hardware", "a pass over", "takes"]]
    rows += [
        [
            each.phase,
            f"{each.peak_gib:.0f} GiB{'' if each.fits else ', does not fit'}",
            each.hardware,
            f"{each.examples:,}",
            f"{_hours(each.hours)}, {_usd(each.usd)}",
        ]
        for each in given.phases
    ]
    yield from _table(rows)
    for reason in [each for each in given.reasons if each.weight or each.decisive][:4]:
        yield from _reason(reason)
    for note in given.notes:
        yield from _wrapped(note, "  ")


def _nearest(advice: Advice) -> Iterator[str]:
    near = advice.nearest
    if near and near.model_on_your_hardware:
        yield from _wrapped(
            f"Nearest on your hardware: {near.model_on_your_hardware} by {near.method_on_your_hardware}.", "  "
        )
    if near and near.hardware_for_your_model:
        yield from _wrapped(
            f"Nearest for your model: {near.hardware_for_your_model} by {near.method_for_your_model}.", "  "
        )


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        line = "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield click.style(line, dim=True) if number == 0 else line


def _wrapped(text: str, indent: str) -> list[str]:
    width = min(100, max(60, shutil.get_terminal_size((100, 24)).columns))
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _short(flip: Any) -> str:
    return f"{flip.approach} ({flip.method})" if flip.method else str(flip.approach)


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " or ".join(_words(each) for each in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not set"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _usd(amount: float) -> str:
    if abs(amount) >= 100:
        return f"-${-amount:,.0f}" if amount < 0 else f"${amount:,.0f}"
    return f"-${-amount:.2f}" if amount < 0 else f"${amount:.2f}"


def _hours(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"
