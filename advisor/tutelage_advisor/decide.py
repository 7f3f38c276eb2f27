"""From facts to a verdict: rules that hold add their points, and a few lines of reading order decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import msgspec

from tutelage_advisor import rules
from tutelage_advisor.advice import Approach, Method
from tutelage_advisor.facts import facts_of, volume

if TYPE_CHECKING:
    from tutelage_advisor.situation import Situation
    from tutelage_advisor.world import World

RETRIEVE = 2.0
"Points for retrieval from which it is needed."

COMPELLING = 3.0
"Points for tuning from which examples are worth collecting even while retrieval already helps."

METHODS: tuple[Method, ...] = get_args(Method)
_OPTIONS: dict[Method, str] = {"full": "full", "lora": "lora", "qlora": "qlora", "prompt": "prompt-tuning"}
"What rules call each method."
_SIGNS = {"fine-tune": 1.0, "prompt": -1.0}
"How points for an option count for tuning."


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict with what it rests on."""

    approach: Approach
    combine_with: list[Approach]
    method: Method | None
    considered: Method
    "The method that tuning would take, whether or not it is advised."
    tune: float
    "Points for tuning less points for prompting."
    retrieve: float
    blocked: bool
    "Whether something rules tuning out."
    held: list[rules.Rule]
    "Rules on the approach that hold."
    method_scores: dict[Method, float]
    method_rules: dict[Method, list[rules.Rule]]
    facts: dict[str, Any]


def decide(case: Situation, world: World) -> Decision:
    """The verdict on a completed situation. The method comes first, since what tuning costs depends on it."""
    facts = facts_of(case, world)
    about_methods = rules.holding("method", facts)
    method_rules = {method: [rule for rule in about_methods if rule.option == _OPTIONS[method]] for method in METHODS}
    scores = {method: sum(rule.weight for rule in found if not rule.blocks) for method, found in method_rules.items()}
    method = choose(scores, method_rules, facts["tuning_route"])
    facts["volume"] = volume(case, world, method)
    held = rules.holding("approach", facts)
    tune = sum(_SIGNS.get(rule.option, 0.0) * rule.weight for rule in held if not rule.blocks)
    retrieve = sum(rule.weight for rule in held if rule.option == "retrieve")
    blocked = any(rule.blocks for rule in held)
    ready = facts["data_state"] in ("enough", "plenty")
    approach, combine_with = verdict(tune, retrieve, blocked, ready)
    return Decision(
        approach=approach,
        combine_with=combine_with,
        method=method if approach == "fine-tune" else None,
        considered=method,
        tune=tune,
        retrieve=retrieve,
        blocked=blocked,
        held=held,
        method_scores=scores,
        method_rules=method_rules,
        facts=facts,
    )


def verdict(tune: float, retrieve: float, blocked: bool, ready: bool) -> tuple[Approach, list[Approach]]:
    """The approach, and what to combine with it, in the order in which a practitioner would ask.

    Is there something to gain by tuning, and can it be done? If not: retrieve where facts are missing, else prompt.
    Is the data there? Then tune. If not: retrieve first where that helps and tuning is not compelling, else collect
    data.
    """
    needs_facts = retrieve >= RETRIEVE
    if blocked or tune <= 0:
        return ("retrieve", []) if needs_facts else ("prompt", [])
    if ready:
        return "fine-tune", ["retrieve"] if needs_facts else []
    if needs_facts and tune < COMPELLING:
        return "retrieve", ["collect-data"]
    return "collect-data", ["retrieve"] if needs_facts else ["prompt"]


def choose(scores: dict[Method, float], found: dict[Method, list[rules.Rule]], route: str) -> Method:
    """The method with the most points among those not ruled out; QLoRA, which needs least, where all are.

    A vendor's tuning leaves no choice; where vendors say what they do, it is LoRA.
    """
    if route == "vendor":
        return "lora"
    allowed = [method for method in METHODS if not any(rule.blocks for rule in found[method])]
    if not allowed:
        return "qlora"
    cheapest_first: list[Method] = ["lora", "qlora", "prompt", "full"]
    return min(allowed, key=lambda method: (-scores[method], cheapest_first.index(method)))
