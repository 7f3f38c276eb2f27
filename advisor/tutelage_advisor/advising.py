"""`advise`: a situation in, advice out; the same on the same day with the same catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tutelage_advisor import explain, steps
from tutelage_advisor.advice import Advice
from tutelage_advisor.assumed import completed
from tutelage_advisor.comparison import compare_methods, nearest
from tutelage_advisor.decide import decide
from tutelage_advisor.readiness import data_advice, measured
from tutelage_advisor.situation import Situation, situation_from
from tutelage_advisor.world import World

if TYPE_CHECKING:
    import datetime

    from tutelage_advisor.advice import PreferenceAdvice
    from tutelage_advisor.catalog import Catalog
    from tutelage_advisor.decide import Decision


def advise(
    situation: Situation | dict[str, Any],
    catalog: Catalog | None = None,
    *,
    today: datetime.date | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Advice:
    """Say whether to prompt, retrieve, collect data or fine-tune, and how, at what cost, with what next.

    Args:
        situation: what the model is wanted for; plain data will do.
        catalog: GPUs, models and prices; the shipped one by default.
        today: the day on which hosted tuning must still be open and prices fresh; by default the real one.
        draws: of the Monte Carlo over uncertain costs; 0 leaves it out.
        seed: of those draws.

    Raises:
        TutelageError: when the situation is not valid, or names a model, a GPU or data that can't be found.
    """
    return advise_in(World(catalog, today), situation, draws, seed)


def advise_in(world: World, situation: Situation | dict[str, Any], draws: int = 10_000, seed: int = 0) -> Advice:
    """The same in a world that is kept for many questions, which looks things up once for all of them.

    Raises:
        TutelageError: as `advise`.
    """
    given, audited = measured(situation_from(situation))
    world.check(given)
    case, assumed = completed(given, world.access(given.model))
    decision = decide(case, world)
    hanging = explain.hangs_on(case, decision, world)
    assumptions = explain.assumptions(assumed, decision, hanging)
    data = data_advice(case, audited)
    missing = [each.field for each in assumptions if each.matters == "approach"]
    near = nearest(case, decision, world)
    recipe = steps.recipe(case, decision, near, world) if decision.method else None
    return Advice(
        task=case.task,
        approach=decision.approach,
        combine_with=decision.combine_with,
        method=decision.method,
        confidence=explain.confidence(case, decision, world, assumptions, hanging),
        reasons=explain.reasons_for(decision),
        costs=world.costs(case, decision.considered, decision.retrieve > 0, draws, seed),
        methods=compare_methods(case, decision, world),
        nearest=near,
        data=data,
        risks=steps.risks(case, decision, data, near, world),
        assumptions=assumptions,
        next_steps=steps.next_steps(case, decision, data, missing),
        recipe=recipe,
        preferences=_preferences(case, decision, recipe, world),
    )


def _preferences(
    case: Situation, decision: Decision, recipe: dict[str, Any] | None, world: World
) -> PreferenceAdvice | None:
    if case.preferences is None:
        return None
    from tutelage_advisor.preferring import preference_advice

    return preference_advice(case, case.preferences, decision, recipe, world)
