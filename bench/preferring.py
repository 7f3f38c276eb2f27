"""Direct preference optimization with LoRA beside TRL's DPOTrainer."""

from __future__ import annotations

from typing import Any

from bench.contests import Contest
from bench.rows import first_tokens, preferences
from bench.scale import BETA, LEARNING_RATES, LENGTH, Setup
from bench.tuning import LORA, trainer

LETTERS = 4
"Of a token, about."


def contests() -> list[Contest]:
    """The one."""
    return [
        Contest(
            name="dpo",
            title="DPO with LoRA",
            kind="dpo",
            unit="tokens/s",
            data=_pairs,
            stage=lambda setup: {
                "phase": {"kind": "dpo", "beta": BETA},
                "adapter": LORA,
                "trainer": trainer(setup, LEARNING_RATES["lora"]),
            },
            settings=[
                {"batch": 1, "bf16": True, "reference_first": True},
                {"batch": 2, "bf16": True, "reference_first": True, "padding_free": True},
                {"batch": 1, "bf16": True},
            ],
            targets=(2.5, 2.0, 0.6),
            per_row=lambda setup: 2 * sum(setup.counts) / len(setup.counts),
        )
    ]


def _pairs(setup: Setup) -> list[dict[str, Any]]:
    """Pairs with about as many tokens in both sequences as the rows of supervised tuning."""
    pairs = preferences(setup.rows)
    counts = [count + _rejected(pair, count) for pair, count in zip(pairs, setup.counts, strict=False)]
    return first_tokens(pairs[: len(counts)], counts, setup.tokens)


def _rejected(pair: dict[str, Any], chosen: int) -> int:
    """About how many tokens a pair's rejected sequence has, where the chosen one has so many."""
    letters = {name: sum(len(turn["content"]) for turn in pair[name]) for name in ("chosen", "rejected")}
    return min(LENGTH, max(1, chosen + (letters["rejected"] - letters["chosen"]) // LETTERS))
