"""LitGPT as a second peer, where a Python that has it is given: one turn at LoRA, because it takes long."""

from __future__ import annotations

import json
from pathlib import Path

from bench import processes
from bench.contests import Contest, Turn, turn_of
from bench.figures import Figure
from bench.scale import ALPHA, LENGTH, RANK, SEED, Setup


def figures(python: Path, contest: Contest, setup: Setup, turns: list[Turn]) -> list[Figure]:
    """Our first turn at LoRA beside LitGPT's.

    Raises:
        Failed: when LitGPT does.
    """
    mine = next((turn for turn in turns if (turn.work, turn.who) == ("lora", "tutelage")), None)
    if mine is None:
        return []
    folder = setup.work / "litgpt"
    file, count = contest.file(setup)
    asked = {
        "model": setup.model, "data": str(file), "out": str(folder / "out"), "rank": RANK, "alpha": ALPHA,
        "length": LENGTH, "seed": SEED, "rows_per_step": max(1, count // (setup.scale.steps + 1)),
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps(asked), encoding="utf-8")
    side = Path(__file__).with_name("litgpt_side.py")
    ended = processes.run([str(python), "-P", str(side), str(folder / "request.json")], folder)
    steps = [(int(line["amount"]), at) for line, at in ended.lines if "amount" in line]
    other = turn_of("lora", "litgpt", 0, steps, ended, str(folder / "out"), [])
    turns.append(other)
    named = {"section": "works", "name": contest.title}
    return [
        Figure(
            **named, measure="speed beside LitGPT", unit="tokens/s", better="higher", ours=[mine.speed],
            peer=[other.speed], note="the peer is LitGPT here: bf16, micro-batches of up to 4 rows; one turn",
        ),
        Figure(
            **named, measure="peak memory beside LitGPT", unit="GiB", better="lower", ours=[mine.peak_gib],
            peer=[other.peak_gib],
        ),
    ]  # fmt: skip
