"""Reasons, assumptions and confidence, from a decision."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from tutelage_advisor import rules
from tutelage_advisor.advice import Assumption, Confidence, Flip, Reason
from tutelage_advisor.decide import COMPELLING, RETRIEVE, Decision
from tutelage_advisor.facts import CLEAR_SAVING, MINIMUM
from tutelage_advisor.sensitivity import FIELDS, flips

if TYPE_CHECKING:
    from tutelage_advisor.assumed import Assumed
    from tutelage_advisor.rules import Rule
    from tutelage_advisor.situation import Situation
    from tutelage_advisor.world import World

NEAR = 0.75
"Points within which a threshold is near."

_PENALTY, _LARGEST_PENALTY = 0.05, 0.2


def reason(rule: Rule) -> Reason:
    """A rule that holds, as an argument for or against its option."""
    return Reason(
        rule=rule.name,
        option=rule.option,
        side="for" if rule.weight >= 0 else "against",
        weight=abs(rule.weight),
        decisive=rule.blocks,
        fields=rule.fields,
        says=rule.says,
        source=rule.source,
    )


def reasons_for(decision: Decision) -> list[Reason]:
    """All arguments that hold, on the approach, then on methods where one is chosen; the decisive and weighty first."""
    methods: list[Rule] = []
    if decision.method is not None:
        others = [name for name in decision.method_rules if name != decision.method]
        methods = [rule for name in (decision.method, *others) for rule in decision.method_rules[name]]
    ordered = [*sorted(decision.held, key=_by_weight), *sorted(methods, key=_by_weight)]
    return [reason(rule) for rule in ordered]


def _by_weight(rule: Rule) -> tuple[bool, float]:
    return not rule.blocks, -abs(rule.weight)


def hangs_on(case: Situation, decision: Decision, world: World) -> dict[str, list[Flip]]:
    """For each field, its other values that would change the approach or the method."""
    found = {field: flips(case, decision, world, field) for field in FIELDS}
    return {field: changes for field, changes in found.items() if changes}


def assumptions(assumed: list[Assumed], decision: Decision, hanging: dict[str, list[Flip]]) -> list[Assumption]:
    """Every assumption with how much it matters, those that matter most first."""
    made = []
    for each in assumed:
        changes = hanging.get(each.field.partition(".")[0], [])
        approach = any(flip.approach != decision.approach for flip in changes)
        matters: Literal["approach", "method", "nothing"] = (
            "approach" if approach else "method" if changes else "nothing"
        )
        made.append(Assumption(field=each.field, value=each.value, why=each.why, matters=matters, flips=changes))
    return sorted(made, key=lambda each: ("approach", "method", "nothing").index(each.matters))


def confidence(
    case: Situation, decision: Decision, world: World, assumed: list[Assumption], hanging: dict[str, list[Flip]]
) -> Confidence:
    """How far the nearest threshold is, less what hangs on assumptions.

    The value is 0.95 - 0.45 exp(-d / 1.5) for a distance of d points: a coin's toss at the threshold, 0.72 at one
    point, 0.83 at two, never over 0.95. Each assumed field that could change the approach takes 0.05 off, 0.2 at most.
    """
    distances = thresholds(case, decision, world)
    nearest = min((distance for distance, _ in distances), default=4.0)
    shaky = sum(each.matters == "approach" for each in assumed)
    value = max(0.5, 0.95 - 0.45 * math.exp(-nearest / 1.5) - min(_LARGEST_PENALTY, _PENALTY * shaky))
    approach = [flip for changes in hanging.values() for flip in changes if flip.approach != decision.approach]
    return Confidence(
        value=round(value, 3),
        level="high" if value >= 0.8 else "medium" if value >= 0.65 else "low",
        near_threshold=nearest < NEAR,
        near=[sentence for distance, sentence in distances if distance < NEAR],
        hangs_on=approach,
    )


def thresholds(case: Situation, decision: Decision, world: World) -> list[tuple[float, str]]:
    """Distances, in points, to the thresholds that would change the approach if crossed, each with a sentence."""
    if decision.blocked:
        return []
    found = [
        (abs(decision.tune), f"the case for tuning stands at {decision.tune:+.2f} points, and 0 is where it turns")
    ]
    state = decision.facts["data_state"]
    if decision.tune > 0 and state != "noisy":
        minimum, examples = MINIMUM[case.task_breadth or "medium"], case.examples or 0
        if case.example_quality != "noisy":
            distance = 2 * abs(math.log((examples + 1) / (minimum + 1)))
            found.append(
                (distance, f"{examples} examples are near the {minimum} that a {case.task_breadth} task takes")
            )
    if decision.retrieve >= RETRIEVE and decision.tune > 0 and state in ("few", "noisy"):
        found.append((abs(decision.tune - COMPELLING), "whether to collect data beside retrieval is a close call"))
    if decision.facts["volume"] != "not-tunable" and _hangs_on_volume(decision):
        share = world.tuned_to_prompt(case, decision.considered)
        edge = min((1.0, CLEAR_SAVING), key=lambda edge: abs(share - edge))
        distance = 5 * abs(math.log(max(share, 1e-9) / edge))
        found.append((distance, f"tuning costs {share:.0%} of what prompting does, near the edge of what pays"))
    return found


def _hangs_on_volume(decision: Decision) -> bool:
    """Whether the case for tuning would turn if tuning paid clearly, or didn't."""
    points = {
        str(rule.when["volume"]): rule.weight if rule.option == "fine-tune" else -rule.weight
        for rule in rules.load("approach")
        if "volume" in rule.when
    }
    without = decision.tune - points[decision.facts["volume"]]
    return (without + points["pays"] > 0) != (without + points["never"] > 0)
