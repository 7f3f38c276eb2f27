"""Whether the data will do: measured by the audit where a path is given, else by what the situation says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tutelage_advisor.advice import DataAdvice
from tutelage_advisor.facts import MINIMUM, NOISY_YIELD, ROBUST, data_state

if TYPE_CHECKING:
    from tutelage_advisor.situation import Situation

_VERDICTS = {"few": "insufficient", "noisy": "needs-work", "enough": "ready", "plenty": "ready"}


def measured(situation: Situation) -> tuple[Situation, Any]:
    """The situation with examples and quality as the audit finds them, and the audit's readiness (or None).

    Data that needs work for another reason than noise (secrets, leakage) is no more fit to be trained on than noise.
    """
    if situation.data is None:
        return situation, None
    from tutelage_advisor.audit import readiness

    found = readiness(situation.data)
    quality = "noisy" if found.verdict == "needs-work" else found.quality
    return msgspec.structs.replace(situation, examples=found.examples, example_quality=quality), found


def data_advice(case: Situation, audited: Any) -> DataAdvice:
    """How the data stands, how much is missing, and why."""
    state = data_state(case)
    examples, breadth, quality = case.examples or 0, case.task_breadth or "medium", case.example_quality or "clean"
    minimum, robust = MINIMUM[breadth], ROBUST[breadth]
    usable = int(examples * NOISY_YIELD) if quality == "noisy" else examples
    verdict: Any = _VERDICTS[state]
    if audited is not None and verdict == "ready":
        verdict = audited.verdict
    return DataAdvice(
        verdict=verdict,
        state=state,
        examples=examples,
        quality=quality,
        minimum=minimum,
        robust=robust,
        collect=max(0, minimum - usable),
        measured=audited is not None,
        reasons=[*_said(state, examples, usable, breadth, minimum, robust), *(audited.reasons if audited else [])],
    )


def _said(state: str, examples: int, usable: int, breadth: str, minimum: int, robust: int) -> list[str]:
    asked = f"a {breadth} task takes {minimum:,} good examples at the least and {robust:,} for robust results"
    if state == "few" and usable < examples:
        return [f"of {examples:,} noisy examples about {usable:,} would be worth keeping; {asked}"]
    if state == "few":
        return [f"{examples:,} examples are too few: {asked}"]
    if state == "noisy":
        return [f"{examples:,} noisy examples are a cleaning job first: about {usable:,} may be worth keeping; {asked}"]
    if state == "enough":
        return [f"{examples:,} examples are enough to begin with; {asked}"]
    return [f"{examples:,} examples are enough for robust results: {asked}"]
