"""Two processes on two cores beside one process on one core."""

from __future__ import annotations

import os

from bench import processes, recipes
from bench.contests import UNCOUNTED
from bench.figures import Figure
from bench.processes import Failed
from bench.rows import first_tokens, write
from bench.scale import Setup
from bench.tuning import LORA


def figures(setup: Setup) -> list[Figure]:
    """Steady tokens a second of both, in turns, each process with one thread.

    Raises:
        Failed: when there are no two cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Failed("this takes two cores, and the bench may use only one")
    two, one = [], []
    for repeat in range(setup.scale.repeats):
        one.append(_speed(setup, 1, {cores[0]}, repeat))
        two.append(_speed(setup, 2, set(cores[:2]), repeat))
    return [
        Figure(
            section="DDP", name="LoRA, two processes on two cores", measure="beside one process on one core",
            unit="tokens/s", better="higher", ours=two, peer=one, target=1.7,
        )
    ]  # fmt: skip


def _speed(setup: Setup, devices: int, cores: set[int], repeat: int) -> float:
    tokens = setup.scale.tokens_per_step
    rows = first_tokens(setup.rows, setup.counts, (setup.scale.steps + 1) * tokens)
    file = write(setup.work / "data" / "parallel.jsonl", [{"messages": row} for row in rows])
    trainer = {
        "max_steps": setup.scale.steps, "tokens_per_step": tokens, "precision": "bf16", "devices": devices,
        "accelerator": "cpu", "rehearsal": False,
    }  # fmt: skip
    folder = setup.work / f"parallel-{devices}-{repeat}"
    command = recipes.train(setup, folder, file, adapter=LORA, trainer=trainer)
    variables = {**setup.variables("tutelage"), "OMP_NUM_THREADS": "1"}
    steps = processes.run(command, folder, variables=variables, cores=cores).events("step")
    amount = sum(event["tokens"] for event, _ in steps[UNCOUNTED:])
    return float(amount / (steps[-1][1] - steps[UNCOUNTED - 1][1]))
