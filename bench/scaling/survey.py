"""The model asked of many runs: sizes, GPUs, networks, strategies, with and without accumulation, 1 to 1,024 GPUs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import get_args

import msgspec

from bench.scaling.batches import critical_batch, tokens_needed
from bench.scaling.networks import NETWORKS, Network, cluster_of
from bench.scaling.step import Run, Strategy, memory_of, state_bytes, step_time
from tutelage_advisor.catalog import Catalog, Gpu
from tutelage_advisor.estimates import Architecture, architecture_of

MODELS = ("Llama-3.2-1B", "Llama-3.1-8B", "Llama-2-13B", "Llama-3.1-70B")
GPUS = ("A100-80GB", "H100-SXM", "H200", "B200")
COUNTS = tuple(2**power for power in range(11))
MICRO_BATCHES = (8, 4, 2, 1)
ACCUMULATIONS = (1, 8, 64)
SEQ_LEN = 4096
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One run: its settings, and what the model says of it."""

    model: str
    gpu: str
    network: str
    strategy: Strategy
    gpus: int
    micro_batch: int
    accumulation: int
    checkpointing: bool
    fits: bool
    memory_gib: float
    seconds: float
    compute: float
    exposed: float
    waiting: float
    tokens: int
    "Of a step."
    tokens_needed: float
    "How many times the tokens of small steps a loss needs with so large ones."
    tokens_per_second: float
    efficiency: float
    "Share of the step that is arithmetic."
    usd_per_billion_tokens: float | None


def rows(catalog: Catalog) -> Iterator[Row]:
    """All runs of the survey."""
    for model, gpu in itertools.product(MODELS, GPUS):
        architecture, card = architecture_of(model, catalog), catalog.gpu(gpu)
        for network, strategy, accumulation, gpus in itertools.product(NETWORKS, STRATEGIES, ACCUMULATIONS, COUNTS):
            yield row(model, architecture, card, network, strategy, gpus, accumulation)


def first_run(
    architecture: Architecture, gpu: Gpu, network: Network, strategy: Strategy, gpus: int, accumulation: int = 1
) -> Run:
    """The run that others of the survey are changed from: one row at a time, nothing recomputed, compiled."""
    return Run(
        architecture=architecture,
        gpu=gpu,
        cluster=cluster_of(gpu, network),
        gpus=gpus,
        strategy=strategy,
        micro_batch=1,
        seq_len=SEQ_LEN,
        accumulation=accumulation,
        compile=True,
    )


def row(
    model: str, architecture: Architecture, gpu: Gpu, network: Network, strategy: Strategy, gpus: int, accumulation: int
) -> Row:
    """The fastest run that fits, of all micro-batches that make a step no larger than the critical batch.

    Activations may be recomputed.
    """
    run, needed = _fitting(first_run(architecture, gpu, network, strategy, gpus, accumulation))
    time = step_time(run)
    price = gpu.typical_price
    return Row(
        model=model,
        gpu=gpu.name,
        network=network.name,
        strategy=strategy,
        gpus=gpus,
        micro_batch=run.micro_batch,
        accumulation=accumulation,
        checkpointing=run.checkpointing,
        fits=needed <= gpu.usable,
        memory_gib=needed,
        seconds=time.seconds,
        compute=time.compute,
        exposed=time.exposed,
        waiting=time.waiting,
        tokens=time.tokens,
        tokens_needed=tokens_needed(time.tokens, critical_batch(architecture.parameters)),
        tokens_per_second=time.tokens_per_second,
        efficiency=time.compute / time.seconds,
        usd_per_billion_tokens=None if price is None else price * gpus * 1e9 / time.tokens_per_second / 3600,
    )


def _fitting(start: Run) -> tuple[Run, float]:
    """The fastest of the settings that fit, else the smallest; with its GiB."""
    critical = critical_batch(start.architecture.parameters)
    useful = [size for size in MICRO_BATCHES if size * start.tokens <= critical] or [1]
    settings = [
        msgspec.structs.replace(start, micro_batch=size, checkpointing=again)
        for again, size in itertools.product((False, True), useful)
    ]
    needed = [(run, memory_of(run).peak_gib) for run in settings]
    fitting = [(run, gib) for run, gib in needed if gib <= run.gpu.usable]
    return max(fitting, key=lambda pair: step_time(pair[0]).tokens_per_second) if fitting else needed[-1]


def memory_rows(catalog: Catalog, gpu: str = "H100-SXM") -> dict[str, dict[str, list[tuple[int, float, float]]]]:
    """By model and strategy: GPUs, GiB of each at the peak, and GiB of it that are weights, gradients and optimizer.

    One row at a time with activations recomputed: the least that a strategy needs.
    """
    card = catalog.gpu(gpu)
    found: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    for model, strategy in itertools.product(MODELS, STRATEGIES):
        architecture = architecture_of(model, catalog)
        runs = [
            msgspec.structs.replace(first_run(architecture, card, NETWORKS[0], strategy, gpus), checkpointing=True)
            for gpus in COUNTS
        ]
        found.setdefault(model, {})[strategy] = [
            (run.gpus, memory_of(run).peak_gib, state_bytes(run) / 2**30) for run in runs
        ]
    return found
