"""What a phase's settings in a recipe mean for an estimate: what it draws, judges and learns, and what it leaves."""

from __future__ import annotations

from typing import Any

import msgspec

from tutelage.phase import Phase
from tutelage.recipe import Resolved, Stage
from tutelage_advisor.estimates.request import MAKING, ONLINE
from tutelage_advisor.estimates.rows import Rows

UNKNOWN = Rows(count=0, prompt=0.0, answer=0.0)
PASSED_ON = 1.3
"How much longer than the longest measured prompt the longest of all is taken to be, and chat templates make it."


def phase_fields(stage: Stage, phase: Phase, rows: Rows) -> dict[str, Any]:
    """Fields of a request that follow from a phase's settings and from the rows that it gets."""
    config: Any = phase.config
    kind = phase.name
    if kind in ("dpo", "reward_model"):
        asked = {"reference": bool(getattr(phase, "needs_reference", False))} if kind == "dpo" else {}
        return {"answers": max(2, rows.answers), **asked}
    if kind in ONLINE:
        shared = stage.adapter.get("kind") in ("lora", "qlora")
        model = "none" if not config.reward_model else "shared" if shared else "separate"
        reference = bool(getattr(phase, "needs_reference", False))
        drawn = {"answers": config.samples, "inner_epochs": config.inner_epochs, "reward_model": model}
        return {**drawn, "reference": reference, **_drawn(rows, config.max_new_tokens)}
    if kind == "comparisons":
        number = max(1, len(config.models)) * config.samples
        return {"answers": number, "micro_batch": config.batch_size, **_drawn(rows, config.max_new_tokens)}
    if kind == "critique_revision":
        thought = {"rounds": config.rounds, "thought_tokens": config.critique_tokens}
        return {**thought, "micro_batch": config.batch_size, **_drawn(rows, config.max_new_tokens)}
    if kind == "ai_feedback":
        thought = {"thought_tokens": config.reasoning_tokens if config.chain_of_thought else 0}
        judged = {"answers": 2, "principles": config.principles, "micro_batch": config.batch_size}
        return {**judged, **thought, **_drawn(rows, max(1, round(rows.answer)))}
    if kind == "evaluation":
        return {"micro_batch": config.batch_size, **_drawn(rows, config.max_new_tokens)}
    return {}


def _drawn(rows: Rows, new_tokens: int) -> dict[str, Any]:
    """Lengths of what is answered; rows are as long as the longest prompt with its answer."""
    if not rows.count:
        return {"new_tokens": new_tokens, "seq_len": 2 * new_tokens}
    longest = max(1, round(PASSED_ON * max(rows.longest, rows.prompt)))
    return {"prompt_tokens": max(1.0, rows.prompt), "new_tokens": new_tokens, "seq_len": longest + new_tokens}


def amount(stage: Stage, phase: Phase, rows: Rows | None, resolved: Resolved) -> dict[str, Any]:
    """Examples, their mean length and epochs; nothing where the data could not be measured."""
    trainer, kind, config = stage.trainer, phase.name, phase.config
    if kind in MAKING:
        if rows is None:
            return {}
        most = config.prompts if kind == "evaluation" else rows.count
        counted = {"examples": min(rows.count, most) * _pairs(phase, rows), "epochs": 1.0}
        return counted | ({"answers": _compared(stage, phase, resolved)} if kind == "evaluation" else {})
    if kind in ONLINE:
        if trainer.max_steps is not None:
            return {"examples": trainer.max_steps * config.prompts_per_step, "epochs": 1.0}
        return {"examples": rows.count, "epochs": trainer.epochs or 3.0} if rows else {}
    if trainer.max_steps is not None:
        return {"examples": trainer.max_steps, "tokens_per_example": float(trainer.tokens_per_step), "epochs": 1.0}
    if rows is None:
        return {}
    if kind == "pretrain":  # windows are full: what counts is the text
        windows = max(1, round(rows.count * rows.tokens / trainer.max_length))
        return {"examples": windows, "tokens_per_example": float(trainer.max_length), "epochs": trainer.epochs or 1.0}
    if kind in ("dpo", "reward_model"):
        each = min(float(trainer.max_length), rows.prompt + rows.answer)
        tokens = max(2, rows.answers) * each
    else:
        tokens = min(float(trainer.max_length), rows.tokens or rows.prompt + rows.answer)
    return {"examples": rows.count, "tokens_per_example": max(1.0, tokens), "epochs": trainer.epochs or 3.0}


def _pairs(phase: Phase, rows: Rows) -> int:
    """Pairs of a prompt's answers that a judge is asked about."""
    if phase.name != "ai_feedback":
        return 1
    every = max(1, rows.answers * (rows.answers - 1) // 2)
    return every if phase.config.pairs == "all" else min(every, int(phase.config.pairs))


def _compared(stage: Stage, phase: Phase, resolved: Resolved) -> int:
    """How many models an evaluation compares: those it names, or the first model and what earlier stages made."""
    if phase.config.models:
        return len(phase.config.models)
    names = [each.name for each in resolved.recipe.stages]
    earlier = names[: names.index(stage.name)]
    return 1 + sum(resolved.phases[name].makes == "model" for name in earlier)


def made_by(phase: Phase, rows: Rows | None) -> Rows | None:
    """The dataset that a phase makes of these rows."""
    if rows is None or phase.makes != "dataset":
        return None
    config: Any = phase.config
    if phase.name == "comparisons":
        number = max(1, len(config.models)) * config.samples
        return msgspec.structs.replace(rows, answer=float(config.max_new_tokens), answers=number, tokens=0.0)
    if phase.name == "critique_revision":
        return msgspec.structs.replace(rows, answer=float(config.max_new_tokens), answers=1, tokens=0.0)
    if phase.name == "ai_feedback":
        return msgspec.structs.replace(rows, count=rows.count * _pairs(phase, rows), answers=2, tokens=0.0)
    return rows
