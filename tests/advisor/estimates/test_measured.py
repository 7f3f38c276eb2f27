"""Estimates against published measurements."""

from __future__ import annotations

from statistics import median

import pytest
import yaml
from measured_points import HERE, Point, memory_points, throughput_points

MEMORY = memory_points()
THROUGHPUT = throughput_points()
MISSES = yaml.safe_load((HERE / "memory_misses.yaml").read_text())


def test_there_are_enough_points_and_none_twice():
    assert len(MEMORY) >= 60
    assert len({point.id for point in MEMORY}) == len(MEMORY)
    methods = {point.request.adapter for point in MEMORY}
    assert methods == {"full", "lora", "qlora", "prompt"}
    assert {point.request.strategy for point in MEMORY} >= {"auto", "ddp", "fsdp", "zero2", "zero3"}
    assert {point.request.checkpointing for point in MEMORY} == {True, False}
    assert {point.request.chunked_loss for point in MEMORY} == {True, False}


@pytest.mark.parametrize("point", MEMORY, ids=lambda point: point.id)
def test_memory_is_within_15_percent_or_the_miss_is_explained(point: Point):
    if point.id in MISSES:
        assert point.error > 0.15, f"{point.id} is listed as a miss and passes: take it off the list"
        assert MISSES[point.id]
    else:
        assert point.error <= 0.15, f"measured {point.measured:.2f} GiB, estimated {point.estimated:.2f}"


def test_every_listed_miss_is_a_point():
    assert set(MISSES) <= {point.id for point in MEMORY}


@pytest.mark.parametrize("held_out", [False, True])
def test_median_error_of_memory_is_below_8_percent(held_out: bool):
    errors = [point.error for point in MEMORY if point.held_out == held_out]
    assert len(errors) > 20
    assert median(errors) < 0.08


@pytest.mark.parametrize("held_out", [False, True])
def test_median_error_of_throughput_is_below_20_percent(held_out: bool):
    errors = [point.error for point in THROUGHPUT if point.held_out == held_out]
    assert len(errors) > 20
    assert median(errors) < 0.20


def test_no_single_source_carries_the_throughput_figure():
    errors = [point.error for point in THROUGHPUT if point.held_out and not point.id.startswith("qwen")]
    assert median(errors) < 0.20


def test_qlora_is_slower_on_short_rows_and_catches_up_on_long_ones():
    rate = {point.id: point.estimated for point in THROUGHPUT}
    slower = {length: rate[f"qwen-7b-lora-{length}"] / rate[f"qwen-7b-qlora-{length}"] for length in (256, 2048, 8192)}
    assert slower[256] > 1.5
    assert slower[256] > slower[2048] > slower[8192] > 1.0
    assert slower[8192] < 1.2


def test_most_measurements_lie_within_the_intervals():
    from tutelage_advisor.estimates import calibration

    low, high = calibration.MEMORY_INTERVAL
    inside = [low <= point.measured / point.estimated <= high for point in MEMORY]
    assert sum(inside) / len(inside) >= 0.85
    low, high = calibration.SPEED_INTERVAL
    inside = [low <= point.measured / point.estimated <= high for point in THROUGHPUT]
    assert sum(inside) / len(inside) >= 0.85
