"""Published measurements, and how far the model is from each.

Two questions are kept apart. Throughput: tokens a second of one GPU, in which the advisor's estimate of a single GPU is
judged with the rest. Scaling: throughput beside that of the fewest GPUs of the same series, in which what is wrong with
the single GPU cancels, and communication is judged.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from bench.scaling import constants
from bench.scaling.networks import Fitted, Network, cluster_of
from bench.scaling.step import Run, Strategy, step_time
from tutelage_advisor.catalog import Catalog, load
from tutelage_advisor.estimates import Architecture, architecture_of
from tutelage_advisor.estimates.models import from_config


class Series(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Runs of one model on one kind of cluster; rows are GPUs, rows of a micro-batch, micro-batches, tokens/s/GPU."""

    name: str
    source: str
    model: str
    gpu: str
    node_gb_s: float
    seq_len: int
    rows: list[tuple[int, int, int, float]]
    strategy: Strategy = "fsdp"
    per_node: int = 8
    optimizer_shards: int = 1
    reduce_bytes: float = 4.0
    checkpointing: bool = False
    compile: bool = False
    fitted: bool = False
    "Whether constants were chosen by it; all others were held out."
    note: str = ""


class Published(msgspec.Struct, forbid_unknown_fields=True):
    """The file of measurements."""

    shapes: dict[str, dict[str, Any]]
    "Of models that the catalog lacks, as a config.json."
    parameters: dict[str, int]
    "As published, to check the shapes by."
    sources: dict[str, str]
    series: list[Series]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement and its prediction; both in tokens a second of one GPU."""

    series: str
    source: str
    fitted: bool
    gpus: int
    micro_batch: int
    accumulation: int
    measured: float
    predicted: float
    scaling: float | None
    "Measured scaling from the series' first row."
    predicted_scaling: float | None
    note: str

    @property
    def error(self) -> float:
        """Of the throughput: predicted over measured, less 1."""
        return self.predicted / self.measured - 1

    @property
    def scaling_error(self) -> float | None:
        """The same of the scaling; None for the row that it starts from."""
        if self.scaling is None or self.predicted_scaling is None:
            return None
        return self.predicted_scaling / self.scaling - 1


class Errors(msgspec.Struct, frozen=True):
    """Of so many points: the median of the absolute errors, the worst error with its sign, and whose it is."""

    points: int
    median: float
    worst: float
    worst_of: str


@functools.cache
def published() -> Published:
    """The measurements that ship with this bench."""
    return msgspec.json.decode((Path(__file__).parent / "published.json").read_bytes(), type=Published)


def shape_of(model: str, catalog: Catalog) -> Architecture:
    """The inventory of a model of the file or of the catalog."""
    shapes = published().shapes
    return from_config(shapes[model], model) if model in shapes else architecture_of(model, catalog)


def runs_of(series: Series, catalog: Catalog, fitted: Fitted | None = None) -> list[Run]:
    """A run for each row."""
    gpu = catalog.gpu(series.gpu)
    network = Network(series.name, series.node_gb_s, constants.RDMA_HOP, series.source)
    cluster = cluster_of(gpu, network, series.per_node, fitted)
    architecture = shape_of(series.model, catalog)
    return [
        Run(
            architecture=architecture,
            gpu=gpu,
            cluster=cluster,
            gpus=gpus,
            strategy=series.strategy,
            micro_batch=micro_batch,
            seq_len=series.seq_len,
            accumulation=accumulation,
            checkpointing=series.checkpointing,
            compile=series.compile,
            reduce_bytes=series.reduce_bytes,
            optimizer_shards=series.optimizer_shards,
        )
        for gpus, micro_batch, accumulation, _ in series.rows
    ]


def compared(catalog: Catalog | None = None) -> list[Point]:
    """Every measurement with its prediction."""
    catalog = catalog or load()
    return [point for series in published().series for point in _points(series, catalog)]


def _points(series: Series, catalog: Catalog) -> list[Point]:
    predicted = [step_time(run).per_gpu for run in runs_of(series, catalog)]
    measured = [row[3] for row in series.rows]
    return [
        Point(
            series=series.name,
            source=series.source,
            fitted=series.fitted,
            gpus=row[0],
            micro_batch=row[1],
            accumulation=row[2],
            measured=row[3],
            predicted=found,
            scaling=row[3] / measured[0] if index else None,
            predicted_scaling=found / predicted[0] if index else None,
            note=series.note,
        )
        for index, (row, found) in enumerate(zip(series.rows, predicted, strict=True))
    ]


def errors(points: Iterable[Point], scaling: bool = False) -> Errors:
    """Sum up the errors of points, of which at least one must have one."""
    found = [(each.scaling_error if scaling else each.error, each) for each in points]
    known = [(error, point) for error, point in found if error is not None]
    worst, whose = max(known, key=lambda pair: abs(pair[0]))
    middle = statistics.median(abs(error) for error, _ in known)
    return Errors(len(known), middle, worst, f"{whose.series}, {whose.gpus} GPUs")
