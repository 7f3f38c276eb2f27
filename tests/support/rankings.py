"""Preferences for tests: pairs and rankings whose better answers can be told from their words."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

GOOD, BAD = ["birds", "trees", "cat"], ["mat", "then", "saw"]


def write_pairs(path: Path, rows: int = 60, seed: int = 0, **columns: Any) -> Path:
    """Pairs of ragged lengths; what makes an answer good are its words, whatever its length."""
    generator = random.Random(seed)
    lines = []
    for row in range(rows):
        prompt = f"{row} " + " ".join(generator.choices(GOOD + BAD, k=generator.randint(2, 9)))
        chosen, rejected = (" ".join(generator.choices(kind, k=generator.randint(1, 9))) for kind in (GOOD, BAD))
        lines.append(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_rankings(path: Path, rows: int = 40, answers: int = 4, seed: int = 0, ties: bool = False) -> Path:
    """Rankings: the more good words an answer has, the better; with `ties`, each has two answers of the same rank."""
    generator = random.Random(seed)
    lines = []
    for row in range(rows):
        good = list(range(answers))
        texts = [" ".join(GOOD[:1] * count + BAD[:1] * (answers - count) + [str(row)]) for count in good]
        ranks = [float(answers - count) for count in good]
        if ties:
            ranks[1] = ranks[0]
        order = generator.sample(good, answers)
        made = {"prompt": f"row {row}", "answers": [texts[i] for i in order], "ranks": [ranks[i] for i in order]}
        lines.append(json.dumps(made))
    path.write_text("\n".join(lines) + "\n")
    return path


def reward_recipe(model: Path | str, data: Any, *, adapter: Any = "lora", phase: Any = None, **trainer: Any) -> Any:
    """A recipe of one stage that learns a reward model, exact in float32."""
    settings = {
        "epochs": 2,
        "learning_rate": 5e-3,
        "max_length": 200,
        "tokens_per_step": 1024,
        "precision": "fp32",
        "checkpoint_every": 3,
        "devices": 1,
        **trainer,
    }
    if "max_steps" in trainer:
        settings.pop("epochs")
    source = data if isinstance(data, dict) else {"train": str(data)}
    stage = {"name": "reward", "phase": phase or "reward_model", "adapter": adapter, "data": source}
    return {"name": "tiny-reward", "model": str(model), "stages": [{**stage, "trainer": settings}]}
