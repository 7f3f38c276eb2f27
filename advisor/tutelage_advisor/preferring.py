"""Advice on learning from preferences: how many comparisons, whose, and by which phase."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tutelage_advisor import rules
from tutelage_advisor.advice import LabelCost, PhaseCost, PreferenceAdvice
from tutelage_advisor.catalog import Catalog
from tutelage_advisor.estimates import Architecture, EstimateRequest, estimate
from tutelage_advisor.explain import reason
from tutelage_advisor.fitting import cheapest
from tutelage_advisor.labelling import AGREEMENT, GOAL, label_costs
from tutelage_advisor.steps import adapter_kind, preference_recipe, prompt_and_answer

if TYPE_CHECKING:
    from tutelage_advisor.catalog import Gpu
    from tutelage_advisor.decide import Decision
    from tutelage_advisor.estimates.request import PhaseName
    from tutelage_advisor.situation import Preferences, Situation
    from tutelage_advisor.world import World

MINIMUM = {"narrow": 500, "medium": 2_000, "broad": 5_000}
"""Comparisons to begin with. Judgement: some three doublings below what follows, of about a point of accuracy each."""

ROBUST = {"narrow": 5_000, "medium": 10_000, "broad": 30_000}
"""Comparisons that published work did well with: 5,000 for a style (Ziegler et al. 2019, arXiv 1909.08593), 10,000
careful ones for an assistant's reward model (HelpSteer2, arXiv 2406.08673), rankings to 33,000 prompts for anything
that people ask (InstructGPT, arXiv 2203.02155)."""

MANY_PROMPTS = 10_000
POOR, CLOSE, FAR = 0.60, 0.05, 0.10


def preference_advice(
    case: Situation, given: Preferences, decision: Decision, base: dict[str, Any] | None, world: World
) -> PreferenceAdvice:
    """Advice on learning the preferences that a situation names.

    Args:
        base: the recipe of supervised tuning, where that is advised: preferences are learnt after it.
    """
    breadth, pairs = case.task_breadth or "medium", given.pairs or 0
    minimum, robust = MINIMUM[breadth], ROBUST[breadth]
    state: Literal["few", "enough", "plenty"] = "few" if pairs < minimum else "plenty" if pairs >= robust else "enough"
    people, judge = label_costs(case, given, max(0, robust - pairs), world)
    phases = phase_costs(case, given, decision, max(pairs, robust), world)
    facts = _facts(case, given, state, judge.usd_per_useful_label < people.usd_per_useful_label, phases)
    held = [rule for rule in rules.load("preferences") if rule.holds(facts)]
    method: Any = _best(held, ("dpo", "ppo", "grpo"))
    learnable = decision.facts["tuning_route"] == "open"
    needless = not learnable or method == "grpo" or state == "plenty"
    feedback: Any = "none" if needless else _best(held, ("people", "ai-feedback"))
    told = [rule for rule in sorted(held, key=lambda rule: -abs(rule.weight)) if rule.option in _told(method)]
    advice = PreferenceAdvice(
        advised=learnable,
        method=method if learnable else None,
        feedback=feedback,
        state=state,
        pairs=pairs,
        minimum=minimum,
        robust=robust,
        collect=0 if method == "grpo" else max(0, minimum - pairs),
        labels=[people, judge],
        phases=phases,
        reasons=[reason(rule) for rule in told],
        notes=_notes(case, given, decision, feedback, method, people, judge),
        recipe=None,
    )
    if not learnable:
        return advice
    return msgspec.structs.replace(advice, recipe=preference_recipe(case, decision, advice, base, world))


def _facts(
    case: Situation, given: Preferences, state: str, judge_cheaper: bool, phases: list[PhaseCost]
) -> dict[str, Any]:
    """What the rules on preferences look at."""
    return {
        "goal": given.goal or GOAL,
        "checkable": bool(given.checkable),
        "pairs_state": state,
        "prompts_state": "many" if (given.prompts or 0) >= MANY_PROMPTS else "few",
        "judge_cheaper": judge_cheaper,
        "judge_state": _judge_state(given),
        "ppo_fits": all(cost.fits for cost in phases if cost.phase == "ppo"),
        "quality_critical": case.quality_critical,
        "needs_domain_knowledge": case.needs_domain_knowledge,
    }


def phase_costs(case: Situation, given: Preferences, decision: Decision, pairs: int, world: World) -> list[PhaseCost]:
    """What each phase takes on the hardware of supervised tuning, activations recomputed, in one pass.

    dpo and reward_model go over `pairs`; ppo and grpo answer the prompts in hand, or as many as there are pairs.
    """
    kind: Any = adapter_kind(decision)
    tuning, job = world.timed(case, kind), world.job(case)
    gpu = next(gpu for gpu in world.gpus(case) if gpu.name == tuning.gpu)
    prompt, answer = prompt_and_answer(case)
    base = EstimateRequest(
        model=job.model,
        adapter=kind,
        gpu=gpu.name,
        gpus=tuning.count,
        nodes=tuning.nodes,
        strategy=tuning.strategy,
        checkpointing=True,
        seq_len=max(job.seq_len, answer + 8),
        prompt_tokens=float(prompt),
        new_tokens=answer,
        epochs=1.0,
        usd_per_gpu_hour=job.usd_per_gpu_hour if job.usd_per_gpu_hour is not None or not gpu.prices else cheapest(gpu),
    )
    amounts: dict[PhaseName, dict[str, Any]] = {
        "dpo": {"examples": max(1, pairs), "tokens_per_example": 2.0 * (prompt + answer)},
        "reward_model": {"examples": max(1, pairs), "tokens_per_example": 2.0 * (prompt + answer)},
        "ppo": {"examples": given.prompts or max(1, pairs)},
        "grpo": {"examples": given.prompts or max(1, pairs)},
    }
    return [_phase_cost(base, phase, fields, gpu, job.shape) for phase, fields in amounts.items()]


def _phase_cost(
    base: EstimateRequest, phase: PhaseName, fields: dict[str, Any], gpu: Gpu, shape: Architecture
) -> PhaseCost:
    made = estimate(msgspec.structs.replace(base, phase=phase, **fields), Catalog(gpus=[gpu]), shape)
    return PhaseCost(
        phase=phase,
        examples=fields["examples"],
        hardware=f"{made.devices} x {gpu.name}",
        peak_gib=made.memory.peak_gib,
        fits=made.memory.peak_gib <= gpu.usable,
        hours=made.hours or 0.0,
        usd=made.usd or 0.0,
    )


def _best(held: list[rules.Rule], options: tuple[Any, ...]) -> Any:
    """The option with the most points that nothing rules out; the first of equal ones."""
    points = {option: sum(rule.weight for rule in held if rule.option == option) for option in options}
    allowed = [option for option in options if not any(rule.blocks and rule.option == option for rule in held)]
    return max(allowed, key=lambda option: points[option])


def _told(method: str) -> tuple[str, ...]:
    """Options whose reasons are told: who compares doesn't matter where a program does."""
    methods = ("dpo", "ppo", "grpo")
    return methods if method == "grpo" else ("people", "ai-feedback", *methods)


def _judge_state(given: Preferences) -> str:
    if given.judge_agrees is None:
        return "unmeasured"
    people = given.annotators_agree or AGREEMENT
    if given.judge_agrees < POOR or given.judge_agrees < people - FAR:
        return "poor"
    return "good" if given.judge_agrees >= people - CLOSE else "fair"


def _notes(
    case: Situation,
    given: Preferences,
    decision: Decision,
    label: str,
    method: str,
    people: LabelCost,
    judge: LabelCost,
) -> list[str]:
    """What is assumed, and what may go wrong."""
    found = []
    if decision.facts["tuning_route"] != "open":
        found.append("learning from preferences takes open weights; this model's can't be had")
    if method != "grpo":
        measured = [("annotators_agree", people.agreement), ("judge_agrees", judge.agreement)]
        found += [
            f"preferences.{field} was not given; {value:.0%} is taken"
            for field, value in measured
            if getattr(given, field) is None
        ]
        ceiling = (1 + math.sqrt(max(0.0, 2 * people.agreement - 1))) / 2
        found.append(
            f"two of your people agree on {people.agreement:.0%}, so no reward model can agree with one of them on "
            f"more than {ceiling:.0%}"
        )
    if label == "ai-feedback":
        found.append("have people judge 200 pairs too, and give them as `human:`, so that the judge itself is judged")
        found.append(
            "in the recipe the model judges its own answers; name a stronger open model as `judge:` where you can"
        )
    if method == "ppo":
        found.append("watch a held-out reward and the answers' length: PPO finds what the reward model got wrong")
    if case.base_capability == "weak" and decision.approach != "fine-tune":
        found.append(
            "the base is weak at the task: answers worth comparing come from a model that was taught by examples first"
        )
    return found
