"""`tutelage train` on a recipe of one stage, as a command to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.processes import TUTELAGE
from bench.scale import LENGTH, Setup


def train(setup: Setup, folder: Path, rows: Path, *, trainer: dict[str, Any], **stage: Any) -> list[str]:
    """Write a recipe into a new folder, and return the command that runs it there.

    Args:
        rows: what to learn from; rows that are too long are cut.
        trainer: fields of the trainer, besides the longest example and one device.
        stage: further fields of the stage: `phase`, `adapter`, and `data`, fields of the data.
    """
    settings = {"max_length": LENGTH, "devices": 1, **trainer}
    data = {"train": str(rows), "too_long": "cut", "allow_loss": 1.0, **stage.pop("data", {})}
    recipe = {
        "name": "bench",
        "model": setup.model,
        "stages": [{"name": "tune", "phase": "sft", **stage, "data": data, "trainer": settings}],
    }
    folder.mkdir(parents=True)
    file = folder / "recipe.json"
    file.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return [TUTELAGE, "train", str(file), "--out", str(folder / "run"), "--json"]
