"""From a command to its first step, warm, beside a bare script that imports and loads; and from `resume` likewise."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import processes, recipes
from bench.figures import Figure
from bench.intervals import exponent
from bench.preparing import rows_of
from bench.processes import Ended, Failed
from bench.scale import Setup
from bench.tuning import LORA

BARE = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoTokenizer.from_pretrained({model!r})
AutoModelForCausalLM.from_pretrained({model!r}, dtype=torch.bfloat16)
print('{{"loaded": true}}', flush=True)
"""
"What no trainer can do without."


def figures(setup: Setup) -> list[Figure]:
    """Starting beside the bare script and resuming beside starting, in turns; and starting by the number of rows."""
    rows = rows_of(setup, setup.scale.row_counts[0])
    start(setup, rows, "warm-up")
    bare, starts, resumes = [], [], []
    for repeat in range(setup.scale.repeats):
        bare.append(_bare(setup, repeat))
        starts.append(start(setup, rows, f"start-{repeat}"))
        resumes.append(resume(setup, rows, repeat))
    made = [
        Figure(
            section="start-up", name="command to first step", measure="beside a bare script that loads the model",
            unit="s", better="lower", ours=starts, peer=bare, target=1.5,
        ),
        Figure(
            section="start-up", name="resume to first step", measure="beside a start", unit="s", better="lower",
            ours=resumes, peer=starts, target=1.0,
        ),
    ]  # fmt: skip
    counts = setup.scale.row_counts
    if setup.scale.repeats == 1:
        return made
    times = [_warm(setup, rows_of(setup, count), f"rows-{count}") for count in counts]
    told = f"seconds {', '.join(f'{each:.2f}' for each in times)}: to the power {exponent(counts, times):.3f} of rows"
    made.append(
        Figure(
            section="start-up", name=f"{counts[-1]:,} rows, prepared before", measure=f"beside {counts[0]:,} rows",
            unit="s", better="lower", ours=[times[-1]], peer=[times[0]], note=told,
        )
    )  # fmt: skip
    return made


def start(setup: Setup, rows: Path, name: str) -> float:
    """Seconds from the command to the beginning of the first step."""
    folder = setup.work / f"starting-{name}"
    command = _train(setup, rows, folder, steps=1)
    return _first_step(processes.run(command, folder, variables=setup.variables("tutelage")))


def resume(setup: Setup, rows: Path, repeat: int) -> float:
    """The same of going on with a run that was stopped after its first checkpoint."""
    folder = setup.work / f"resuming-{repeat}"
    options: dict[str, Any] = {"variables": setup.variables("tutelage"), "may_end": [128 + signal.SIGTERM]}
    first = _train(setup, rows, folder, steps=1000)
    processes.run(first, folder, listen=_stopping_at("checkpoint"), **options)
    again = [processes.TUTELAGE, "resume", str(folder / "run"), "--json"]
    return _first_step(processes.run(again, folder, listen=_stopping_at("step"), **options))


def _stopping_at(name: str) -> Callable[[dict[str, Any], int], None]:
    """Asks a process to stop, once, when it tells of such an event; a second time it would end without saving."""
    asked = []

    def listen(event: dict[str, Any], process: int) -> None:
        if event.get("event") == name and not asked:
            asked.append(event)
            os.kill(process, signal.SIGTERM)

    return listen


def _warm(setup: Setup, rows: Path, name: str) -> float:
    """A start from the cache: the second of two."""
    start(setup, rows, f"{name}-first")
    return start(setup, rows, f"{name}-again")


def _bare(setup: Setup, repeat: int) -> float:
    command = [sys.executable, "-c", BARE.format(model=setup.model)]
    return processes.run(command, setup.work / f"bare-{repeat}").lines[-1][1]


def _train(setup: Setup, rows: Path, folder: Path, steps: int) -> list[str]:
    trainer = {"max_steps": steps, "tokens_per_step": 512, "checkpoint_every": 1}
    return recipes.train(setup, folder, rows, adapter=LORA, trainer=trainer)


def _first_step(ended: Ended) -> float:
    steps = ended.events("step")
    if not steps:
        raise Failed("no step was told")
    event, at = steps[0]
    return at - float(event["seconds"])
