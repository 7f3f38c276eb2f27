"""Supervised fine-tuning beside TRL's SFTTrainer: LoRA, all weights, QLoRA."""

from __future__ import annotations

from typing import Any

from bench.contests import Contest, Settings, Targets
from bench.rows import first_tokens
from bench.scale import ALPHA, CLIP, LEARNING_RATES, RANK, SEED, WEIGHT_DECAY, Setup

PACKED: list[Settings] = [
    {"packing": True, "length": 512, "batch": 1, "bf16": True},
    {"packing": True, "length": 512, "batch": 2, "bf16": True},
    {"packing": True, "length": 1024, "batch": 1, "bf16": True},
]
PADDED: list[Settings] = [
    {"packing": False, "batch": 1, "bf16": True},
    {"packing": False, "batch": 4, "bf16": True},
]
FP32: list[Settings] = [{"packing": True, "length": 512, "batch": 1, "bf16": False}]
COMPILED: list[Settings] = [{"packing": True, "length": 512, "batch": 1, "bf16": True, "compile": True}]
LORA = {"kind": "lora", "rank": RANK, "alpha": ALPHA}
TARGETS: dict[str, Targets] = {"lora": (4.0, 2.5, 0.5), "full": (3.0, 2.0, 0.7), "qlora": (2.0, 2.0, 0.7)}


def trainer(setup: Setup, learning_rate: float) -> dict[str, Any]:
    """The trainer of every contest, with hyperparameters as TRL is given them."""
    return {
        "epochs": 1,
        "tokens_per_step": setup.scale.tokens_per_step,
        "precision": "bf16",
        "seed": SEED,
        "learning_rate": learning_rate,
        "schedule": "constant",
        "warmup": 0.0,
        "weight_decay": WEIGHT_DECAY,
        "clip": CLIP,
    }


def contests() -> list[Contest]:
    """The three adapters; fewer settings are tried where each step takes longer."""
    settings = {
        "lora": [PACKED[1], PACKED[0], *PADDED, PACKED[2], *FP32, *COMPILED],
        "full": [PACKED[1], PADDED[0]],
        "qlora": [PACKED[1], PADDED[0]],
    }
    titles = {"lora": f"LoRA r={RANK} all-linear", "full": "full", "qlora": "QLoRA"}
    adapters = {"lora": LORA, "full": "full", "qlora": {**LORA, "kind": "qlora"}}
    return [_contest(name, titles[name], adapters[name], settings[name]) for name in titles]


def _contest(name: str, title: str, adapter: Any, settings: list[Settings]) -> Contest:
    return Contest(
        name=name,
        title=title,
        kind="sft",
        unit="tokens/s",
        data=lambda setup: [{"messages": row} for row in first_tokens(setup.rows, setup.counts, setup.tokens)],
        stage=lambda setup: {
            "phase": "sft",
            "adapter": adapter,
            "data": {"learn_from": "last"},
            "trainer": trainer(setup, LEARNING_RATES[name]),
        },
        settings=settings,
        targets=TARGETS[name],
        per_row=lambda setup: sum(setup.counts) / len(setup.counts),
    )
