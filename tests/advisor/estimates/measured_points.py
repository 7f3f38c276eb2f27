"""Reads the published measurements beside this file and holds estimates against them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tutelage.config import convert
from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import Architecture, EstimateRequest, architecture_of, calibration, estimate
from tutelage_advisor.estimates.models import from_config

HERE = Path(__file__).parent
CATALOG = load()
EXTRA = yaml.safe_load((HERE / "extra_models.yaml").read_text())


@dataclass(frozen=True)
class Point:
    id: str
    request: EstimateRequest
    measured: float
    estimated: float
    held_out: bool

    @property
    def error(self) -> float:
        return abs(self.estimated / self.measured - 1)


def architecture(model: str) -> Architecture:
    return from_config(EXTRA[model]) if model in EXTRA else architecture_of(model, CATALOG)


def memory_points() -> list[Point]:
    return [_memory_point(index, *row) for index, row in enumerate(_rows("memory_points.yaml", "groups", "gb"))]


def _memory_point(index: int, name: str, value: float, fields: dict[str, Any], group: dict[str, Any]) -> Point:
    unit, per = fields.pop("unit", group.get("unit")), fields.pop("per", "gpu")
    request = convert(fields, EstimateRequest)
    gib = value * (10**9 / 2**30 if unit == "GB" else 1) / (request.devices if per == "total" else 1)
    memory = estimate(request, CATALOG, architecture(request.model)).memory
    counted = {
        "allocated": memory.allocated_gib,
        "reserved": memory.peak_gib - calibration.CONTEXT_GIB,
        "device": memory.peak_gib,
    }
    return Point(name, request, gib, counted[group["measures"]], index % 3 == 2)


def throughput_points() -> list[Point]:
    rows = enumerate(_rows("throughput_points.yaml", "seconds_per_iteration", "tps"))
    return [_throughput_point(index, *row) for index, row in rows]


def _throughput_point(index: int, name: str, value: float, fields: dict[str, Any], group: dict[str, Any]) -> Point:
    accumulation = fields.pop("accumulation", 1)
    devices = fields.get("gpus", 1) * fields.get("nodes", 1)
    tokens = accumulation * fields["seq_len"] * fields.get("micro_batch", 1)
    request = convert({**fields, "tokens_per_step": tokens * devices}, EstimateRequest)
    per_second = 8 * request.seq_len / value if "seconds_per_iteration" in group else value
    result = estimate(request, CATALOG, architecture(request.model))
    assert result.tokens_per_second is not None
    return Point(name, request, per_second, result.tokens_per_second / devices, index % 3 == 2)


def _rows(file: str, sweep: str, measure: str) -> Iterator[tuple[str, float, dict[str, Any], dict[str, Any]]]:
    """Single points first, then sweeps over the length of rows."""
    for group in yaml.safe_load((HERE / file).read_text()):
        assert group["source"]
        assert group["read"]
        for point in group.get("points", []):
            fields = {**group["request"], **{key: value for key, value in point.items() if key != "note"}}
            yield fields.pop("id"), fields.pop(measure), fields, group
        for entry in group.get(sweep, []):
            for length, value in entry["seq_len"].items():
                fields = {**group["request"], **entry["request"], "seq_len": length}
                if "per" in entry:
                    fields["per"] = entry["per"]
                yield f"{entry['id']}-{length}", value, fields, group
