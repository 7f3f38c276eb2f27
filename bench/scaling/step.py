"""How long an optimizer step takes on n GPUs, and what memory each needs.

What one GPU does alone (arithmetic, traffic, launches, optimizer) and what it holds are the advisor's own estimates;
here the collective operations are added, and hidden behind the arithmetic as far as they can be.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec

from bench.scaling import constants
from bench.scaling.collectives import Cluster, Group, all_gather, all_reduce, group_of, reduce_scatter
from tutelage_advisor.catalog import Gpu
from tutelage_advisor.estimates import Architecture, EstimateRequest, Memory
from tutelage_advisor.estimates import calibration as known
from tutelage_advisor.estimates.memory import learning, memory, widths
from tutelage_advisor.estimates.speed import passes, speed

PRECISION: Final = "bf16"
Strategy = Literal["ddp", "fsdp", "hybrid"]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Training of all weights, in bf16 with float32 weights and AdamW, on so many GPUs."""

    architecture: Architecture
    gpu: Gpu
    cluster: Cluster
    gpus: int
    strategy: Strategy
    "ddp copies the model; fsdp shards it over all GPUs; hybrid shards it in each node and copies it between nodes."
    micro_batch: int
    seq_len: int
    accumulation: int = 1
    checkpointing: bool = False
    compile: bool = False
    reduce_bytes: float = 4.0
    "Bytes of a gradient on its way."
    optimizer_shards: int = 1
    "Of ddp: how many neighbours share the optimizer's state (ZeRO-1 in a node), and gather the weights after a step."

    @property
    def tokens(self) -> int:
        """Tokens of a step over all GPUs."""
        return self.micro_batch * self.seq_len * self.accumulation * self.gpus

    @property
    def shards(self) -> int:
        """GPUs that hold the model's state together."""
        whole = min(self.gpus, self.cluster.per_node)
        return {"ddp": 1, "fsdp": self.gpus, "hybrid": whole}[self.strategy]

    def request(self, gpus: int) -> EstimateRequest:
        """The advisor's request for this run on `gpus` GPUs that share what their strategy has them share."""
        per_step = self.micro_batch * self.seq_len * gpus * self.accumulation
        return EstimateRequest(
            model="bench",
            adapter="full",
            phase="pretrain",
            gpus=gpus,
            strategy="ddp" if self.strategy == "ddp" else "fsdp",
            micro_batch=self.micro_batch,
            seq_len=self.seq_len,
            tokens_per_step=per_step,
            precision=PRECISION,
            checkpointing=self.checkpointing,
            compile=self.compile,
        )


class StepTime(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a step, and what follows.

    `communication` is all of it, `exposed` what nothing hides, `waiting` is for the slowest of many nodes.
    """

    compute: float
    optimizer: float
    communication: float
    exposed: float
    waiting: float
    tokens: int
    gpus: int

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.optimizer + self.exposed + self.waiting

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs."""
        return self.tokens / self.seconds

    @property
    def per_gpu(self) -> float:
        """Tokens a second of one GPU."""
        return self.tokens_per_second / self.gpus


class _Work(msgspec.Struct, frozen=True):
    """Seconds of one micro-batch and of an unshared optimizer step."""

    forward: float
    backward: float
    optimizer: float

    @classmethod
    def of(cls, run: Run) -> _Work:
        alone = msgspec.structs.replace(run, accumulation=1).request(1)
        found = speed(run.architecture, alone, run.gpu, PRECISION, "single").seconds
        whole = found["arithmetic"] + found["traffic"] + found["launches"]
        forward = whole / passes(alone)
        return cls(forward, whole - forward, found["optimizer"])


def step_time(run: Run) -> StepTime:
    """Predict a step.

    Raises:
        ValueError: when the GPUs do not fill their nodes.
    """
    group = group_of(run.gpus, run.cluster)
    work = _Work.of(run)
    if run.strategy == "ddp":
        total, exposed = _copies(run, group, work)
        optimizer = work.optimizer / run.optimizer_shards
    else:
        total, exposed = _shards(run, group, work)
        optimizer = work.optimizer / run.shards
    compute = (work.forward + work.backward) * run.accumulation
    return StepTime(
        compute=compute,
        optimizer=optimizer,
        communication=total,
        exposed=exposed,
        waiting=compute * run.cluster.waiting * math.log2(group.nodes),
        tokens=run.tokens,
        gpus=run.gpus,
    )


def _hidden(seconds: float, least: float, behind: float) -> float:
    """What of communication remains to be waited for; the first or last operation has nothing to hide behind."""
    return max(least, seconds - known.OVERLAP * behind)


def _copies(run: Run, group: Group, work: _Work) -> tuple[float, float]:
    """DistributedDataParallel: gradients are reduced in buckets while the last micro-batch's backward pass goes on."""
    size = run.architecture.parameters * run.reduce_bytes
    buckets = math.ceil(size / constants.BUCKET_BYTES)
    each = all_reduce(size / buckets, group, run.cluster)
    reducing = each * buckets
    neighbours = Group(min(run.optimizer_shards, group.per_node))
    gathering = all_gather(run.architecture.parameters * 2.0, neighbours, run.cluster)
    return reducing + gathering, _hidden(reducing, each, work.backward) + gathering


def _shards(run: Run, group: Group, work: _Work) -> tuple[float, float]:
    """FSDP: layers are gathered for each pass, gradients scattered after it, with every micro-batch.

    Hybrid does so inside a node, and reduces each shard's gradients over the nodes with the last micro-batch.
    """
    inner = Group(group.per_node) if run.strategy == "hybrid" else group
    outer = Group(1, group.nodes if run.strategy == "hybrid" else 1)
    layer = run.architecture.layer_parameters
    rest = run.architecture.parameters - layer * run.architecture.layers
    units = [(layer, run.architecture.layers), (rest, 1)]
    gather = sum(count * all_gather(2.0 * size, inner, run.cluster) for size, count in units)
    scatter = sum(count * reduce_scatter(run.reduce_bytes * size, inner, run.cluster) for size, count in units)
    shard = run.reduce_bytes / inner.ranks
    across = sum(count * all_reduce(shard * size, outer, run.cluster) for size, count in units)
    first = all_gather(2.0 * rest, inner, run.cluster)
    last = reduce_scatter(run.reduce_bytes * layer, inner, run.cluster)
    forward = _hidden(gather, first, work.forward)
    backward = _hidden(gather + scatter, last, work.backward)
    ending = _hidden(gather + scatter + across, last, work.backward)
    often = run.accumulation
    return often * (2 * gather + scatter) + across, often * forward + (often - 1) * backward + ending


def memory_of(run: Run) -> Memory:
    """Memory of each GPU."""
    sharing = run.gpus if run.strategy == "ddp" else run.shards
    strategy = "single" if run.gpus == 1 else ("ddp" if run.strategy == "ddp" else "fsdp")
    return memory(run.architecture, run.request(sharing), PRECISION, strategy)


def state_bytes(run: Run) -> float:
    """Bytes of weights, gradients and optimizer state that each GPU keeps (Rajbhandari et al. 2020, figure 1)."""
    alone = run.request(1)
    width = widths(alone, PRECISION)
    learnt = learning(run.architecture, alone).learnt
    return learnt * (width.learnt + width.gradient + width.state) / run.shards
