"""Learning from own answers: GRPO beside TRL's GRPOTrainer, and PPO beside the same.

Both draw 16 answers of up to 32 tokens an iteration, are rewarded for answers of 8 words, keep to the reference at the
same price and update once. PPO also has a value model, which TRL 1.x has no trainer for.
"""

from __future__ import annotations

from typing import Any

from bench.contests import Contest, Settings, Targets
from bench.rows import prompts
from bench.scale import KL, LEARNING_RATES, NEW_TOKENS, PROMPTS, SAMPLES, WORDS, Setup
from bench.tuning import LORA, trainer

ANSWERS = PROMPTS * SAMPLES
SETTINGS: list[Settings] = [
    {"batch": ANSWERS, "bf16": True},
    {"batch": ANSWERS // 4, "bf16": True},
]
TARGETS: Targets = (3.0, 2.0, 0.6)


def contests() -> list[Contest]:
    """GRPO, then PPO, which stands beside TRL's turns at GRPO."""
    return [_contest("grpo", "GRPO with LoRA", SETTINGS), _contest("ppo", "PPO with LoRA (TRL: GRPO)", [])]


def _contest(name: str, title: str, settings: list[Settings]) -> Contest:
    phase = {
        "kind": name,
        "rewards": [{"kind": "length", "target": WORDS, "unit": "words"}],
        "prompts_per_step": PROMPTS,
        "samples": SAMPLES,
        "max_new_tokens": NEW_TOKENS,
        "inner_epochs": 1,
        "kl_coefficient": KL,
        "show": 0,
    }
    return Contest(
        name=name,
        title=title,
        kind="grpo",
        unit="answers/s",
        data=_prompts,
        stage=lambda setup: {"phase": phase, "adapter": LORA, "trainer": trainer(setup, LEARNING_RATES["lora"])},
        settings=settings,
        targets=TARGETS,
        per_row=lambda _: SAMPLES,
        peer="grpo",
    )


def _prompts(setup: Setup) -> list[dict[str, Any]]:
    """As many as fill all steps."""
    count = setup.scale.steps * PROMPTS
    rows = (setup.rows * (count // len(setup.rows) + 1))[:count]
    return prompts(rows)
