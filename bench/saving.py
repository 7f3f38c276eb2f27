"""How long training stands still for checkpoints."""

from __future__ import annotations

from itertools import pairwise

from bench import processes, recipes
from bench.figures import Figure
from bench.processes import Ended, Failed
from bench.rows import first_tokens, write
from bench.scale import Setup

EVERY = 3
DEFAULT_EVERY, DEFAULT_TOKENS = 50, 4096


def figures(setup: Setup) -> list[Figure]:
    """All weights learn, so that checkpoints are as large as they get (weights and two moments, 1.5 GiB).

    What a checkpoint costs is measured at one every three steps, and told as a share of the time between two with
    the trainer's defaults, a checkpoint every 50 steps of 4,096 tokens.
    """
    tokens = setup.scale.tokens_per_step
    rows = first_tokens(setup.rows, setup.counts, 8 * tokens)
    file = write(setup.work / "data" / "saving.jsonl", [{"messages": row} for row in rows])
    trainer = {
        "max_steps": 3 * EVERY + 1, "tokens_per_step": tokens, "checkpoint_every": EVERY, "precision": "bf16",
        "rehearsal": False,
    }  # fmt: skip
    folder = setup.work / "saving"
    command = recipes.train(setup, folder, file, adapter="full", trainer=trainer)
    stops, speed = stopped(processes.run(command, folder, variables=setup.variables("tutelage")))
    stop = max(sum(stops) / len(stops), 1e-4)
    between = DEFAULT_EVERY * DEFAULT_TOKENS / speed
    measured = 1 / (1 + EVERY * tokens / speed / stop)
    told = f"{stop:.2f} s each; with one every {EVERY} steps of {tokens:,} tokens, as run here, {measured:.1%}"
    return [
        Figure(
            section="checkpoints", name="all weights", measure="share of the time that training stands still",
            better="lower", ours=[stop / (between + stop)], target=0.05, note=told,
        )
    ]  # fmt: skip


def stopped(ended: Ended) -> tuple[list[float], float]:
    """Seconds that each checkpoint held up the next step, and the tokens a second of the steps themselves.

    A step's beginning is when it was told to have ended, less its seconds. From what lies between two steps with a
    checkpoint between them, what lies between steps without one is subtracted.
    """
    steps = ended.events("step")
    saved = {event["step"] for event, _ in ended.events("checkpoint")}
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for (before, ended_at), (after, at) in pairwise(steps):
        gaps[before["step"] in saved].append(at - after["seconds"] - ended_at)
    if not gaps[True] or not gaps[False]:
        raise Failed(f"of {len(steps)} steps, none lies after a checkpoint, or none does not")
    usual = sorted(gaps[False])[len(gaps[False]) // 2]
    speed = sum(event["tokens"] for event, _ in steps) / sum(event["seconds"] for event, _ in steps)
    return [max(0.0, gap - usual) for gap in gaps[True]], speed
