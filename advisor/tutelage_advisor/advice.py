"""Advice: the answer to a situation. Everything that a page shows, a script finds here."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tutelage_advisor.costs.results import Costs

Approach = Literal["prompt", "retrieve", "fine-tune", "collect-data"]
Method = Literal["full", "lora", "qlora", "prompt"]


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """An argument that holds here; `tutelage advise --why RULE` tells more."""

    rule: str
    option: str
    side: Literal["for", "against"]
    weight: float
    decisive: bool
    "Whether it rules the option out by itself."
    fields: list[str]
    says: str
    source: str


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """Another value of one field that would change the advice, and the rules that would then hold."""

    field: str
    value: Any
    approach: Approach
    method: Method | None
    because: list[str]


class Confidence(msgspec.Struct, frozen=True, kw_only=True):
    """How sure the approach is: 0.5 is a coin's toss. It hangs on the fields that would change it."""

    value: float
    level: Literal["low", "medium", "high"]
    near_threshold: bool
    near: list[str]
    "Which thresholds are near, as sentences."
    hangs_on: list[Flip]


class Assumption(msgspec.Struct, frozen=True, kw_only=True):
    """A field that was not given. `matters` was found by trying its other values."""

    field: str
    value: Any
    why: str
    matters: Literal["approach", "method", "nothing"]
    flips: list[Flip]


class MethodAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """One method of tuning beside the others: what it takes here, and what speaks for and against it."""

    method: Method
    chosen: bool
    score: float
    fits: bool
    affordable: bool
    hardware: str
    peak_gib: float | None
    memory_gib: float | None
    hours: float | None
    usd: float | None
    trainable_parameters: int | None
    artifact_mib: float | None
    compute: str
    customisation: str
    forgetting: str
    reasons: list[Reason]


class DataAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the data will do, and how much is missing."""

    verdict: Literal["ready", "needs-work", "insufficient"]
    state: Literal["few", "noisy", "enough", "plenty"]
    examples: int
    quality: str
    minimum: int
    robust: int
    collect: int
    "Good examples still to be had before tuning."
    measured: bool
    reasons: list[str]


class LabelCost(msgspec.Struct, frozen=True, kw_only=True):
    """What comparisons of pairs cost, by who makes them."""

    source: Literal["people", "ai-feedback"]
    usd_per_label: float
    agreement: float
    "How often such a label agrees with a person's."
    usd_per_useful_label: float
    "For as much as one label that is surely right teaches."
    labels: int
    "That robust results still take, more where each is worth less."
    usd: float


class PhaseCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one phase takes: a pass over its comparisons or prompts."""

    phase: str
    examples: int
    hardware: str
    peak_gib: float
    fits: bool
    hours: float
    usd: float


class PreferenceAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """Learning from preferences: how many comparisons, whose, and by which phase."""

    advised: bool
    "False where the weights can't be had."
    method: Literal["dpo", "ppo", "grpo"] | None
    feedback: Literal["people", "ai-feedback", "none"]
    "Who makes the comparisons that are missing; none where there are enough, or a program checks answers."
    state: Literal["few", "enough", "plenty"]
    pairs: int
    minimum: int
    robust: int
    collect: int
    "Comparisons still to be had before learning from them."
    labels: list[LabelCost]
    phases: list[PhaseCost]
    reasons: list[Reason]
    notes: list[str]
    "What is assumed, and what may go wrong."
    recipe: dict[str, Any] | None
    "Supervised stages, where tuning is advised, then those of preferences."


class Nearest(msgspec.Struct, frozen=True, kw_only=True):
    """When nothing fits: the nearest that does."""

    model_on_your_hardware: str | None
    method_on_your_hardware: Method | None
    hardware_for_your_model: str | None
    method_for_your_model: Method | None


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, why, at what cost, and how to begin."""

    task: str
    approach: Approach
    combine_with: list[Approach]
    method: Method | None
    confidence: Confidence
    reasons: list[Reason]
    costs: Costs
    methods: list[MethodAdvice]
    nearest: Nearest | None
    data: DataAdvice
    risks: list[str]
    assumptions: list[Assumption]
    next_steps: list[str]
    recipe: dict[str, Any] | None
    preferences: PreferenceAdvice | None = None
