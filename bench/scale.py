"""How much is measured, and with which hyperparameters: the same for all contenders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bench.rows import Rows

LENGTH = 512
"Longest example, in tokens; answers beyond are cut."
SEED = 0
RANK, ALPHA = 16, 32
LEARNING_RATES = {"lora": 2e-4, "full": 2e-5, "qlora": 2e-4}
WEIGHT_DECAY, CLIP = 0.01, 1.0
BETA = 0.1
"Of DPO."
PROMPTS, SAMPLES, NEW_TOKENS, WORDS = 4, 4, 32, 8
"Of GRPO and PPO: prompts of an iteration, answers to each, their longest, and how many words are wanted."
KL = 0.04
"What leaving the reference costs, in GRPO and PPO."


class Scale(msgspec.Struct, kw_only=True, frozen=True):
    """How much is measured."""

    repeats: int
    steps: int
    "Steps of each training, the first two of which are not counted."
    tokens_per_step: int
    held_out: int
    "Rows that the final loss is measured on."
    trials: int
    "How many of a peer's settings are tried; with one, the first is taken untried."
    row_counts: tuple[int, ...]
    "Sizes of data for the cost by rows."


WHOLE = Scale(repeats=3, steps=4, tokens_per_step=1024, held_out=8, trials=6, row_counts=(1_000, 10_000, 100_000))
QUICK = Scale(repeats=1, steps=3, tokens_per_step=512, held_out=4, trials=1, row_counts=(1_000, 10_000))


@dataclass
class Setup:
    """What all works need: the model's folder, the rows to learn and those held out, and where to work."""

    model: str
    rows: Rows
    held_out: Rows
    counts: list[int]
    "How many tokens each of `rows` has."
    scale: Scale
    work: Path
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """That a training learns from, about: some more than the steps have, so that none is missing."""
        return round((self.scale.steps + 0.1) * self.scale.tokens_per_step)

    def variables(self, who: str) -> dict[str, str]:
        """A contender's caches, which stay from one repeat to the next, as they do between a user's runs."""
        return {
            "TUTELAGE_CACHE": str(self.work / "caches" / who / "tutelage"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "caches" / who / "inductor"),
        }
