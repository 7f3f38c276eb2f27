"""Generation beside transformers' generate: what bench/generation.py measures, for the report."""

from __future__ import annotations

import json
import sys

from bench import processes
from bench.figures import Figure
from bench.processes import ROOT
from bench.scale import Setup

SCRIPT = ROOT / "bench" / "generation.py"


def figures(setup: Setup) -> list[Figure]:
    """Tokens a second at batches of 8 and 32 in both dtypes; of a single repeat, at 8 in bf16."""
    out, repeats = setup.work / "generation.json", setup.scale.repeats
    chosen = ["--batch", "8", "--dtype", "bfloat16", "--tokens", "32"]
    if repeats > 1:
        chosen += ["--batch", "32", "--dtype", "float32", "--tokens", "48"]
    chosen += ["--model", setup.model, "--repeats", str(repeats), "--out", str(out)]
    processes.run([sys.executable, str(SCRIPT), *chosen], setup.work / "generation")
    return [Figure(**figure) for figure in json.loads(out.read_text(encoding="utf-8"))]
