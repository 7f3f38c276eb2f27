"""Tokenising and packing rows of Alpaca's size, then the same from the cache.

As a module of its own, `python -m bench.preparing REQUEST.json` prepares one file twice.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

from bench import processes
from bench.figures import Figure
from bench.intervals import exponent
from bench.rows import alpaca_sized, write
from bench.scale import LENGTH, SEED, Setup

TOKENS_PER_STEP = 4096


def figures(setup: Setup) -> list[Figure]:
    """Rows a minute, seconds from the cache, and the power of rows that the cost grows with."""
    first, again, memory = [], [], []
    for count in setup.scale.row_counts:
        file = rows_of(setup, count)
        asked = {"model": setup.model, "data": str(file), "cache": str(setup.work / f"prepared-{count}")}
        told = processes.ask("bench.preparing", asked, setup.work / f"preparing-{count}").lines[-1][0]
        first.append(float(told["first"]))
        again.append(float(told["again"]))
        memory.append(float(told["peak_gib"]))
    count = setup.scale.row_counts[-1]
    spread = f"{setup.scale.row_counts[0]:,} to {count:,} rows"
    name = f"{count:,} Alpaca-sized rows"
    section, told = "tokenising", "seconds: " + ", ".join(f"{each:.2f}" for each in first)
    return [
        Figure(
            section=section, name=name, measure="tokenise and pack", unit="rows/min", better="higher",
            ours=[60 * count / first[-1]], target=200_000.0,
        ),
        Figure(
            section=section, name=name, measure="again, from the cache", unit="s", better="lower", ours=[again[-1]],
            target=2.0,
        ),
        Figure(
            section=section, name=name, measure="peak memory", unit="GiB", better="lower", ours=[memory[-1]],
            note="of the process that prepares, with its libraries",
        ),
        Figure(
            section=section, name=spread, measure="cost grows with rows to the power", better="lower",
            ours=[exponent(setup.scale.row_counts, first)], note=told,
        ),
    ]  # fmt: skip


def rows_of(setup: Setup, count: int) -> Path:
    """A file of so many generated rows."""
    file = setup.work / "data" / f"alpaca-{count}.jsonl"
    return file if file.is_file() else write(file, alpaca_sized(count))


def _prepare(model: str, data: str, cache: str) -> float:
    """Seconds from rows to the micro-batches of an epoch."""
    from transformers import AutoTokenizer

    from tutelage.data.batches import Plan, split_packed
    from tutelage.data.preparing import prepare
    from tutelage.plugins import host
    from tutelage.recipe import Data

    tokenizer = AutoTokenizer.from_pretrained(model)
    plugins = host()
    phase = plugins.get("phase", "sft", "phase")()
    began = time.perf_counter()
    prepared = prepare(
        phase,
        Data(train=data, too_long="cut", allow_loss=1.0),
        Path.cwd(),
        tokenizer,
        max_length=LENGTH,
        seed=SEED,
        host=plugins,
        place="data",
        cache=Path(cache),
    )
    lengths = prepared.train.lengths
    plan = Plan(lengths, tokens_per_step=TOKENS_PER_STEP, epochs=1.0, max_steps=None, seed=SEED)
    for step in plan.iterate(0):
        split_packed(step.examples, lengths, tokens=TOKENS_PER_STEP, devices=1)
    return time.perf_counter() - began


def main() -> None:
    """Answer the request."""
    request = processes.request()
    first, again = _prepare(**request), _prepare(**request)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    processes.tell(first=first, again=again, peak_gib=peak)


if __name__ == "__main__":
    main()
