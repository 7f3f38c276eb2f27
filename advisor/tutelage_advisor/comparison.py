"""The methods of tuning side by side: what each takes here, and what speaks for and against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage_advisor.advice import Method, MethodAdvice, Nearest
from tutelage_advisor.decide import METHODS, Decision
from tutelage_advisor.explain import reason

if TYPE_CHECKING:
    from tutelage_advisor.situation import Situation
    from tutelage_advisor.world import World

CHARACTER: dict[Method, tuple[str, str, str]] = {
    "full": ("very high", "maximal", "high"),
    "lora": ("low", "high", "low"),
    "qlora": ("very low", "high", "low"),
    "prompt": ("minimal", "limited", "none"),
}
"""Compute, customisation and forgetting of each method."""


def compare_methods(case: Situation, decision: Decision, world: World) -> list[MethodAdvice]:
    """Every method with its estimate on the situation's hardware, or on the cheapest that fits where none is given."""
    found, affordable = [], world.affordable(case, METHODS)
    for method in METHODS:
        tuning = world.timed(case, method)
        compute, customisation, forgetting = CHARACTER[method]
        found.append(
            MethodAdvice(
                method=method,
                chosen=method == decision.method,
                score=decision.method_scores[method],
                fits=tuning.fits,
                affordable=tuning.fits and method in affordable,
                hardware=tuning.hardware,
                peak_gib=tuning.peak_gib,
                memory_gib=tuning.memory_gib,
                hours=tuning.hours,
                usd=tuning.usd,
                trainable_parameters=tuning.trainable_parameters,
                artifact_mib=tuning.artifact_mib,
                compute=compute,
                customisation=customisation,
                forgetting=forgetting,
                reasons=[reason(rule) for rule in decision.method_rules[method]],
            )
        )
    return found


def nearest(case: Situation, decision: Decision, world: World) -> Nearest | None:
    """When nothing fits: the largest common model that does, and the cheapest hardware for the wanted model."""
    if decision.method is None or case.hardware is None or decision.facts["tuning_route"] == "vendor":
        return None
    if any(tuning.fits for tuning in world.tunings(case).values()):
        return None
    smaller = world.largest_that_fits(case)
    rented = world.cheapest_that_fits(case)
    return Nearest(
        model_on_your_hardware=smaller.model if smaller else None,
        method_on_your_hardware=smaller.method if smaller else None,
        hardware_for_your_model=rented.hardware if rented else None,
        method_for_your_model=rented.method if rented else None,
    )
