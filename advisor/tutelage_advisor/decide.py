"""From facts to a verdict: rules that hold add their points, and a few lines of reading order decide."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from tutelage_advisor import rules
from tutelage_advisor.advice import Approach, Method
from tutelage_advisor.facts import facts_of, volume, volumes

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
READY = ("enough", "plenty")
"Data that can be tuned on."


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


def decide(case: Situation, world: World, facts: dict[str, Any] | None = None) -> Decision:
    """The verdict on a completed situation. The method comes first, since what tuning costs depends on it.

    Args:
        facts: of the situation (`facts_of`), where they are at hand.
    """
    facts = facts or facts_of(case, world)
    methods = _weigh_methods(rules.holding("method", facts), facts["tuning_route"])
    facts["volume"] = volume(case, world, methods.best)
    held = rules.holding("approach", facts)
    points = _weigh(held)
    approach, combine_with = verdict(*points, facts["data_state"] in READY)
    tune, retrieve, blocked = points
    return Decision(
        approach=approach,
        combine_with=combine_with,
        method=methods.best if approach == "fine-tune" else None,
        considered=methods.best,
        tune=tune,
        retrieve=retrieve,
        blocked=blocked,
        held=held.rules,
        method_scores=methods.scores,
        method_rules=methods.rules,
        facts=facts,
    )


def outcome(case: Situation, world: World, facts: dict[str, Any] | None = None) -> tuple[Approach, Method | None]:
    """The approach and the method of `decide`, sooner: what tuning costs is found out only where it could matter."""
    facts = facts or facts_of(case, world)
    method = _weigh_methods(rules.holding("method", facts), facts["tuning_route"]).best
    ready = facts["data_state"] in READY
    by_volume = rules.holding_by("approach", facts, "volume", volumes(facts["tuning_route"]))
    possible = {_approach(held, ready) for held in by_volume.values()}
    approach = possible.pop() if len(possible) == 1 else _approach(by_volume[volume(case, world, method)], ready)
    return approach, method if approach == "fine-tune" else None


@lru_cache(maxsize=10_000)
def _approach(held: rules.Held, ready: bool) -> Approach:
    return verdict(*_weigh(held), ready)[0]


@lru_cache(maxsize=10_000)
def _weigh(held: rules.Held) -> tuple[float, float, bool]:
    """Points for tuning less points for prompting, points for retrieval, and whether something rules tuning out."""
    tune = sum(_SIGNS.get(rule.option, 0.0) * rule.weight for rule in held.rules if not rule.blocks)
    retrieve = sum(rule.weight for rule in held.rules if rule.option == "retrieve")
    return tune, retrieve, any(rule.blocks for rule in held.rules)


class Weighed(msgspec.Struct, frozen=True):
    """The methods by what the rules that hold say of each."""

    rules: dict[Method, list[rules.Rule]]
    scores: dict[Method, float]
    best: Method


@lru_cache(maxsize=10_000)
def _weigh_methods(held: rules.Held, route: str) -> Weighed:
    found = {method: [rule for rule in held.rules if rule.option == _OPTIONS[method]] for method in METHODS}
    scores = {method: sum(rule.weight for rule in each if not rule.blocks) for method, each in found.items()}
    return Weighed(found, scores, choose(scores, found, route))


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
