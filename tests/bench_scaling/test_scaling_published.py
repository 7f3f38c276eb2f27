"""Published measurements: that the file is right where it can be checked, and how near the model is."""

import pytest
from bench.scaling import constants
from bench.scaling.fitting import SHARES, WAITINGS, fit
from bench.scaling.networks import Fitted
from bench.scaling.published import Point, compared, errors, published, shape_of

from tutelage_advisor.catalog import load

CATALOG = load()


@pytest.fixture(scope="module")
def points():
    return compared(CATALOG)


@pytest.mark.parametrize("model", published().parameters)
def test_shapes_have_the_parameters_that_were_published(model):
    assert shape_of(model, CATALOG).parameters == published().parameters[model]


def test_every_series_names_its_source_and_starts_with_the_fewest_gpus():
    for series in published().series:
        assert series.source in published().sources
        assert series.rows[0][0] == min(row[0] for row in series.rows)


def test_published_utilisation_agrees_with_throughput():
    """LLM-Foundry's formula for MFU gives its own figure for MPT-7B on 128 A100: 50.14%."""
    count, layers, width, length = 6658859008, 32, 4096, 2048
    row = next(
        row for each in published().series if each.name == "MPT-7B, A100-40" for row in each.rows if row[0] == 128
    )
    flops = 6 * count + 3 * layers * 4 * width * length
    assert row[3] * flops / 312e12 == pytest.approx(0.5014, abs=2e-4)


def test_constants_are_those_that_fit_best():
    found = fit(CATALOG)
    assert found == Fitted()
    assert (found.share, found.waiting) == (constants.NETWORK_SHARE, constants.WAITING)
    assert SHARES[0] < found.share < SHARES[-1]
    assert WAITINGS[0] < found.waiting < WAITINGS[-1]


def test_half_of_what_was_held_out_is_within_a_tenth(points):
    held_out = [point for point in points if not point.fitted]
    assert len(held_out) > len(points) / 2
    assert errors(held_out).median < 0.1
    assert errors(held_out, scaling=True).median < 0.07


def test_where_the_network_shows_it_is_met(points):
    """1,024 GPUs with one micro-batch each keep 57% of the throughput of 8 with four; none of these rows was fitted."""
    found = [point for point in points if point.series == "InternLM-7B, fewer micro-batches" and point.scaling]
    assert {point.gpus for point in found} == {512, 1024}
    assert all(abs(point.scaling_error) < 0.08 for point in found)


def test_falling_memory_is_met():
    """torchtitan's tables 1 and 3: from 8 to 128 GPUs each needs 82.4 - 67.0 GiB less; state is 16 bytes a parameter."""
    count = shape_of("Llama-3.1-8B", CATALOG).parameters
    predicted = 16 * count * (1 / 8 - 1 / 128) / 2**30
    assert predicted == pytest.approx(82.4 - 67.0, rel=0.1)


def test_errors_are_summed_up():
    def point(name, measured, predicted, scaling=None, predicted_scaling=None):
        return Point(
            series=name,
            source="s",
            fitted=False,
            gpus=8,
            micro_batch=1,
            accumulation=1,
            measured=measured,
            predicted=predicted,
            scaling=scaling,
            predicted_scaling=predicted_scaling,
            note="",
        )

    found = errors([point("a", 100, 110), point("b", 100, 70), point("c", 100, 80, 0.5, 0.6)])
    assert (found.points, found.worst_of) == (3, "b, 8 GPUs")
    assert (found.median, found.worst) == pytest.approx((0.2, -0.3))
    assert errors([point("a", 1, 1), point("c", 1, 1, 0.5, 0.6)], scaling=True).worst == pytest.approx(0.2)
