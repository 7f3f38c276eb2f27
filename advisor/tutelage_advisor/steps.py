"""How to begin: a recipe that can be run as it is, the next commands, and the risks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage_advisor.facts import EPOCHS, max_length

if TYPE_CHECKING:
    from tutelage_advisor.advice import DataAdvice, Nearest, PreferenceAdvice
    from tutelage_advisor.decide import Decision
    from tutelage_advisor.estimates import Architecture
    from tutelage_advisor.situation import Situation
    from tutelage_advisor.world import World

STARTER = "starter:smollm2-135m-instruct"
"What a recipe names where no open model was: it trains anywhere, and tells within minutes whether the data works."

PLACEHOLDER, PROMPTS, PAIRS = "train.jsonl", "prompts.jsonl", "preferences.jsonl"


def recipe(case: Situation, decision: Decision, near: Nearest | None, world: World) -> dict[str, Any]:
    """A recipe for the chosen method: `tutelage check` accepts it once its data is there.

    Where nothing fits the hardware it is for the nearest model that does.
    """
    assert decision.method is not None
    fitting = near.model_on_your_hardware if near else None
    own = case.model is not None and world.trainable(case) == case.model
    model = fitting or (case.model if own else None)
    named = world.hub_name(model) if model else STARTER
    stage = {
        "name": "tune",
        "phase": "sft",
        "adapter": _adapter(decision, world.shape(model or STARTER)),
        "data": {"train": case.data or PLACEHOLDER, "eval_split": 0.1},
        "trainer": {
            "epochs": EPOCHS,
            "max_length": max_length(case),
            "tokens_per_step": 16_384 if (case.examples or 0) >= 1_000 else 4_096,
            "activation_checkpointing": bool(fitting) or world.tunings(case)[decision.method].checkpointing,
            "patience": 2,
        },
    }
    return {"name": slug(case.task), "model": named, "stages": [stage]}


def preference_recipe(
    case: Situation, decision: Decision, advice: PreferenceAdvice, base: dict[str, Any] | None, world: World
) -> dict[str, Any]:
    """A recipe that learns from preferences, after the supervised stage of `base` where there is one.

    Comparisons that are missing are made first: answers are drawn, and ranked by people or by a judge.
    """
    own = case.model is not None and world.trainable(case) == case.model
    model = case.model if own else None
    named = base["model"] if base else world.hub_name(model) if model else STARTER
    _, longest = prompt_and_answer(case)
    made, pairs = _comparing(advice, longest)
    kind = adapter_kind(decision)
    rank = _adapter(msgspec.structs.replace(decision, method="lora"), world.shape(model or STARTER))["rank"]
    common = {"adapter": {"kind": kind, "rank": rank, "targets": "all-linear"}}
    trainer = {"epochs": 1, "learning_rate": 2e-5, "max_length": max_length(case)}
    held_out = {"train": pairs, "eval_split": 0.1}
    if advice.method == "grpo":
        phase = {"kind": "grpo", "rewards": [{"kind": "matches"}], "max_new_tokens": longest}
        learnt = [{"name": "grpo", "phase": phase, **common, "data": PROMPTS, "trainer": trainer}]
    elif advice.method == "dpo":
        learnt = [{"name": "dpo", "phase": "dpo", **common, "data": held_out, "trainer": trainer}]
    else:
        phase = {"kind": "ppo", "reward_model": "stage:reward", "max_new_tokens": longest}
        scoring = {**trainer, "learning_rate": 1e-4}
        learnt = [
            {"name": "reward", "phase": "reward_model", **common, "data": held_out, "trainer": scoring},
            {"name": "ppo", "phase": phase, **common, "data": PROMPTS, "trainer": trainer},
        ]
    return {"name": slug(case.task), "model": named, "stages": [*(base["stages"] if base else []), *made, *learnt]}


def adapter_kind(decision: Decision) -> str:
    """The adapter with which preferences are learnt: on one frozen base, which several roles can share."""
    return decision.considered if decision.considered in ("lora", "qlora") else "lora"


def prompt_and_answer(case: Situation) -> tuple[int, int]:
    """Tokens of a prompt to the tuned model, and the most that an answer is drawn to."""
    traffic = case.traffic
    prompt = (traffic.tuned_prompt_tokens if traffic else None) or 500
    return max(1, prompt), max(1, min(512, (traffic.output_tokens if traffic else None) or 256))


def _comparing(advice: PreferenceAdvice, longest: int) -> tuple[list[dict[str, Any]], str]:
    """The stages that make comparisons where too few are in hand, and what names the comparisons then."""
    if advice.state != "few" or advice.method == "grpo":
        return [], PAIRS
    drawn = {"kind": "comparisons", "samples": 4, "max_new_tokens": longest}
    drawing = {"name": "comparisons", "phase": drawn, "data": PROMPTS}
    kind = "ranking" if advice.feedback == "people" else "ai_feedback"
    return [drawing, {"name": kind, "phase": kind, "data": "stage:comparisons"}], f"stage:{kind}"


def _adapter(decision: Decision, shape: Architecture) -> dict[str, Any]:
    """The adapter's settings; a rank is never more than the smallest dimension of a layer, where it would be full."""
    if decision.method in ("lora", "qlora"):
        scale, deep = decision.facts["data_scale"], decision.facts["needs_domain_knowledge"] == "deep"
        wanted = 16 if scale == "small" else 256 if deep and scale == "huge" else 64
        smallest = min(min(linear.inputs, linear.outputs) for linear in shape.targets("all-linear"))
        return {"kind": decision.method, "rank": min(wanted, smallest), "targets": "all-linear"}
    if decision.method == "prompt":
        return {"kind": "prompt", "virtual_tokens": 20}
    return {"kind": "full"}


def slug(task: str) -> str:
    """The first words of a task as a name for files and runs."""
    words = re.findall(r"[a-z0-9]+", task.lower())
    return "-".join(words)[:40].strip("-") or "tune"


def next_steps(case: Situation, decision: Decision, data: DataAdvice, missing: list[str]) -> list[str]:
    """What to do now, with the commands."""
    examples = case.data or PLACEHOLDER
    steps = {
        "prompt": _prompt_steps,
        "retrieve": _retrieve_steps,
        "collect-data": _collect_steps,
        "fine-tune": _tune_steps,
    }[decision.approach](case, data, examples)
    if decision.approach == "retrieve" and "collect-data" in decision.combine_with:
        steps.append(
            f"meanwhile keep good answers: {data.collect:,} more examples make tuning for form worth another look"
        )
    if missing:
        steps.append(
            f"find out {', '.join(missing)}, which this advice hangs on, and ask again: tutelage advise SITUATION.yaml"
        )
    return steps


def _prompt_steps(case: Situation, data: DataAdvice, examples: str) -> list[str]:
    del data, examples
    steps = [
        "write 50 to 200 real inputs with the answers you want; they judge every later step",
        "write instructions with three to five examples in them, and try them on those inputs with your model",
        "put what stays the same first in the prompt, so that it is cached",
    ]
    if case.needs_strict_format:
        steps.insert(
            2, "hold the format by constrained decoding or a JSON schema in the request before thinking of tuning"
        )
    return steps


def _retrieve_steps(case: Situation, data: DataAdvice, examples: str) -> list[str]:
    del case, data, examples
    return [
        "write 50 to 200 real questions with the answers and the passages that hold them",
        "index the documents, and measure first how often the right passage is among those found, then the answers",
        "have every answer cite its passage, and update the index whenever the documents change",
    ]


def _collect_steps(case: Situation, data: DataAdvice, examples: str) -> list[str]:
    if data.state == "noisy" or (case.example_quality == "noisy" and data.examples):
        steps = [
            f"find what is wrong: tutelage audit {examples} --report audit.html",
            f"apply the safe repairs: tutelage data fix {examples} --out mended.jsonl",
            f"keep the best {data.minimum:,} to {data.robust:,} and have people sign them: tutelage review {examples}",
        ]
    else:
        steps = [
            f"collect {data.collect:,} more good examples (better {max(0, data.robust - data.examples):,}) from what "
            "production sends, in production's format, over the whole range of inputs",
            f"check them as they come: tutelage audit {examples} --report audit.html",
            f"have people sign them: tutelage review {examples}",
        ]
    return [*steps, "prompt meanwhile, and keep what people correct: corrected answers are the best examples"]


def _tune_steps(case: Situation, data: DataAdvice, examples: str) -> list[str]:
    del data
    steps = [] if case.data else [f"put the examples into {examples}, a conversation a line"]
    return [
        *steps,
        f"look at the data: tutelage audit {examples}",
        "hold back 200 examples and measure the prompted base on them: that is the mark to beat",
        "write the recipe: tutelage advise SITUATION.yaml --recipe recipe.yaml",
        "check it, then train: tutelage check recipe.yaml && tutelage train recipe.yaml",
    ]


def risks(case: Situation, decision: Decision, data: DataAdvice, near: Nearest | None, world: World) -> list[str]:
    """What may go wrong with this advice."""
    found = [*world.warnings(case)]
    if near is not None:
        recipe_for = near.model_on_your_hardware or "the starter model"
        found.append(f"nothing fits {case.model} on this hardware; the recipe is for {recipe_for}")
    if decision.approach == "fine-tune":
        if decision.method == "full":
            found.append("full tuning forgets other abilities; measure them before and after")
        if data.state == "enough":
            found.append("with this few examples results vary from run to run; try three seeds before believing a gain")
        if decision.facts["tuning_route"] == "vendor":
            found.append(
                "a model tuned by a vendor ends with its service; keep the data, and rehearse with open weights"
            )
        if decision.facts["needs_domain_knowledge"] != "none":
            found.append(
                "tuning teaches manner better than facts; a tuned model states wrong facts as fluently as right ones"
            )
        if decision.facts["volume"] == "never":
            found.append("it doesn't pay back by itself within the horizon; it has to be worth it for quality")
    if decision.approach == "prompt" and decision.blocked and decision.tune > 0:
        found.append(
            "prompting may not get there; a model with open weights would allow the tuning that the task calls for"
        )
    if decision.approach == "prompt" and case.base_capability == "weak":
        found.append("the base is weak at this task; try a stronger model before anything else")
    if case.data_may_leave is False and case.weights_access != "open":
        found.append("examples may not leave, and prompts go to the vendor just as well; see whether they may")
    return found
