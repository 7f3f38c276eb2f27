"""What a person reads before a job is submitted: where it will run, what it takes, and what speaks against it."""

from __future__ import annotations

from typing import Any

from tutelage.runs.words import duration
from tutelage_server.cli.calling import say

Plan = dict[str, Any]


def print_plan(plan: Plan) -> None:
    """The plan, on stderr: what was made is printed on stdout."""
    from tutelage.cli.views import data_sentence

    if plan.get("launcher"):
        count = plan.get("jobs") or 1
        say(f"{f'{count} jobs' if count > 1 else 'the job'} would run on {plan['launcher']}")
    for stage, report in (plan.get("data") or {}).items():
        if isinstance(report, dict):
            say(f"{stage}: data: {data_sentence(report)}")
    for name, value in facts(plan.get("estimate") or {}, plan.get("max_usd")):
        say(f"{name}: {value}")
    if plan.get("max_usd") and (plan.get("jobs") or 1) > 1:
        say(f"cost of all {plan['jobs']} jobs: up to ${plan['max_usd'] * plan['jobs']:,.2f}")
    for note in plan.get("notes") or []:
        say(f"note: {note}")


def facts(estimate: dict[str, Any], most: float | None = None) -> list[tuple[str, str]]:
    """Memory, time and money of all stages together, with ranges where they are known.

    Args:
        most: what it may cost at most, in USD, where that is known.
    """
    stages = (estimate.get("stages") or {}).values()
    found = []
    if estimate.get("peak_gib"):
        fits = {"True": ", which fits", "False": ", which does not fit"}.get(str(estimate.get("fits")), "")
        where = _devices(stages)
        found.append(("memory", f"{estimate['peak_gib']:.1f} GiB of {where} at most{fits}"))
    if estimate.get("hours") is not None:
        low, high = _range(stages, "hours", estimate["hours"])
        about = duration(estimate["hours"] * 3600)
        found.append(("time", f"{about} (likely {duration(low * 3600)} to {duration(high * 3600)}), once it runs"))
    if estimate.get("usd") is not None:
        low, high = _range(stages, "usd", estimate["usd"])
        found.append(("cost", f"${estimate['usd']:,.2f} (likely ${low:,.2f} to ${high:,.2f})"))
    elif most is not None:
        found.append(("cost", f"at most ${most:,.2f}, which its time limit bounds"))
    for stage, people in (estimate.get("people") or {}).items():
        told = f"{people['judgements']:,} judgements, {people['hours']:.1f} hours of theirs"
        found.append((f"people for {stage}", told))
    return found


def doubts(plan: Plan) -> list[str]:
    """What somebody should agree to first: money, and what looks unwise."""
    estimate = plan.get("estimate") or {}
    found = []
    most = plan.get("max_usd")
    if most is None and estimate.get("usd"):
        _, most = _range((estimate.get("stages") or {}).values(), "usd", estimate["usd"])
    if most:
        found.append(f"may cost up to ${most * (plan.get('jobs') or 1):,.2f}")
    if estimate.get("fits") is False:
        found.append("is not expected to fit in memory")
    return found


def _devices(stages: Any) -> str:
    return next((f"a {stage['gpu']}" for stage in stages if stage.get("gpu")), "a device")


def _range(stages: Any, name: str, sum_of_all: float) -> tuple[float, float]:
    """The sums of the stages' likely ranges."""
    ranges = [stage["intervals"][name] for stage in stages if name in (stage.get("intervals") or {})]
    if not ranges:
        return sum_of_all, sum_of_all
    return sum(low for low, _ in ranges), sum(high for _, high in ranges)
