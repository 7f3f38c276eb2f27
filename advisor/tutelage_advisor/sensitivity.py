"""What the advice hangs on, found by trying: each field over its values, and the verdict again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage_advisor.advice import Flip
from tutelage_advisor.assumed import completed, completed_traffic, tried
from tutelage_advisor.decide import Decision, decide, outcome
from tutelage_advisor.facts import facts_with
from tutelage_advisor.situation import Hardware, Situation

if TYPE_CHECKING:
    from tutelage_advisor.world import World

FIELDS = (
    "explainable_in_prompt",
    "base_capability",
    "iteration_speed",
    "examples",
    "example_quality",
    "task_breadth",
    "needs_strict_format",
    "needs_domain_knowledge",
    "knowledge_changes",
    "quality_critical",
    "forgetting_sensitive",
    "weights_access",
    "data_may_leave",
    "traffic",
    "model",
    "hardware",
    "variants",
    "budget_usd",
    "horizon_months",
)
"The fields that advice may hang on, in the order in which a person would be asked."


def flips(case: Situation, decision: Decision, world: World, field: str) -> list[Flip]:
    """Values of one field that change the approach or the method while all others stay as they are."""
    found: list[Flip] = []
    if field == "weights_access" and world.access(case.model) is not None:
        return found  # the catalog knows it
    for value in tried(field):
        other = with_value(case, field, value)
        if other == case:
            continue
        facts = facts_with(decision.facts, other, field, world)
        if outcome(other, world, facts) != (decision.approach, decision.method):
            found.append(_flip(field, value, decision, decide(other, world, facts)))
    return found


def importance(situation: Situation, world: World, completions: int = 24, seed: int = 0) -> dict[str, float]:
    """How often each silent field, drawn anew by itself, changes the approach or the method (0: it no longer matters).

    The other silent fields are drawn too, so that fields which matter only together are found. This is the total-effect
    index of a variance-based analysis (Homma and Saltelli, 1996) with "the verdict differs" for the squared difference.
    """
    draw = random.Random(seed)
    known = {"weights_access"} if world.access(situation.model) else set()
    silent = [field for field in FIELDS if getattr(situation, field) is None and field not in known]
    changed = dict.fromkeys(silent, 0)
    for _ in range(completions):
        case = situation
        for field in silent:
            case = with_value(case, field, draw.choice(tried(field)))
        case, _assumed = completed(case, world.access(case.model))
        before = outcome(case, world)
        for field in silent:
            changed[field] += before != outcome(with_value(case, field, draw.choice(tried(field))), world)
    return {field: count / completions for field, count in changed.items()}


def with_value(case: Situation, field: str, value: Any) -> Situation:
    """The situation with another value of one field, as `tried` gives them."""
    if field == "traffic":
        value = msgspec.structs.replace(completed_traffic(case.traffic), requests_per_month=value)
    elif field == "hardware" and value is not None:
        value = Hardware(gpu=value[0], count=value[1])
    return msgspec.structs.replace(case, **{field: value})


def _flip(field: str, value: Any, old: Decision, new: Decision) -> Flip:
    shown = f"{value[1]} x {value[0]}" if field == "hardware" and value else value
    rules_of = [(each.held, each.method_rules.get(each.method, []) if each.method else []) for each in (old, new)]
    before = {rule.name for found in rules_of[0] for rule in found}
    because = [rule.name for found in rules_of[1] for rule in found if rule.name not in before and field in rule.fields]
    return Flip(field=field, value=shown, approach=new.approach, method=new.method, because=because)
