"""A plan for each size: what stops it first (memory, network or batch size), and what then."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench.scaling.batches import critical_batch
from bench.scaling.survey import MODELS, SEQ_LEN, Row
from tutelage_advisor.catalog import Catalog
from tutelage_advisor.estimates import architecture_of

ENOUGH = 0.8
"The efficiency below which the network is said to stop a run."
GPU = "H100-SXM"


class Stop(msgspec.Struct, frozen=True):
    """What stops a way of training, from how many GPUs on, and what to do then."""

    what: str
    gpus: int
    then: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """For one model on one network."""

    model: str
    gpu: str
    network: str
    copies_fit: bool
    "Whether one GPU can hold a copy of the model, its gradients and its optimizer state."
    sharded_from: int | None
    "The fewest GPUs over which it fits when sharded."
    critical_batch: float
    stops: list[Stop]
    "In the order in which they come as GPUs are added."
    best: Row | None
    "The fastest run before the batch is too large and the network too slow."


def plans(rows: Sequence[Row], catalog: Catalog) -> list[Plan]:
    """A plan for each model on each network, from the survey's rows."""
    networks = list(dict.fromkeys(row.network for row in rows))
    return [plan(model, network, rows, catalog) for model in MODELS for network in networks]


def plan(model: str, network: str, rows: Sequence[Row], catalog: Catalog) -> Plan:
    """The plan of one model on one network."""
    critical = critical_batch(architecture_of(model, catalog).parameters)
    mine = [row for row in rows if (row.model, row.network, row.gpu) == (model, network, GPU)]
    fitting = [row for row in mine if row.fits]
    copies = any(row.strategy == "ddp" for row in fitting)
    sharded = min((row.gpus for row in fitting if row.strategy != "ddp"), default=None)
    useful = [row for row in fitting if row.tokens <= critical and row.efficiency >= ENOUGH]
    stops = [*_memory(copies, sharded), *_network(fitting, critical), *_batch(critical)]
    return Plan(
        model=model,
        gpu=GPU,
        network=network,
        copies_fit=copies,
        sharded_from=sharded,
        critical_batch=critical,
        stops=sorted(stops, key=lambda stop: stop.gpus),
        best=max(useful, key=lambda row: row.tokens_per_second, default=None),
    )


def _memory(copies: bool, sharded: int | None) -> list[Stop]:
    if copies:
        return []
    if sharded is None:
        return [Stop("memory", 1, "no number of GPUs holds it sharded as a whole: split layers (tensor parallelism)")]
    return [Stop("memory", 1, f"shard the state (fsdp) over at least {sharded} GPUs, recomputing activations")]


def _network(fitting: Sequence[Row], critical: float) -> list[Stop]:
    """From where on no strategy is efficient, each step being no larger than is useful: as it is, and accumulating."""
    once = _inefficient_from([row for row in fitting if row.accumulation == 1 and row.tokens <= critical])
    ever = _inefficient_from([row for row in fitting if row.tokens <= critical])
    found = []
    if once is not None and once != ever:
        found.append(Stop("network, without accumulation", once, "accumulate gradients, as far as the batch size lets"))
    if ever is not None:
        found.append(Stop("network, even with accumulation", ever, "a faster network, or no more nodes than these"))
    return found


def _inefficient_from(rows: Sequence[Row]) -> int | None:
    """The fewest GPUs from which on the best of these runs is inefficient; None where the largest is efficient."""
    best: dict[int, float] = {}
    for row in rows:
        best[row.gpus] = max(row.efficiency, best.get(row.gpus, 0.0))
    found = None
    for gpus in sorted(best, reverse=True):
        if best[gpus] >= ENOUGH:
            break
        found = gpus
    return found


def _batch(critical: float) -> list[Stop]:
    """From where one row on each GPU is more than the critical batch."""
    gpus = 1
    while gpus * SEQ_LEN <= critical:
        gpus *= 2
    then = "more copies hardly help: split rows and layers over GPUs (context, tensor, pipeline parallelism)"
    return [Stop("batch size", gpus, then)]
