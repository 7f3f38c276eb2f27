"""What the bench makes of its repeats: intervals, ratios, targets, and what it calls a regression."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bench.figures import Figure, Report, regressions
from bench.intervals import exponent, interval, ratio

ONE = {"processor": "a", "cores": 2}
OTHER = {"processor": "b", "cores": 8}


def figure(ours, peer=(), **fields):
    fields = {"section": "works", "name": "LoRA", "measure": "speed", "better": "higher", **fields}
    return Figure(ours=list(ours), peer=list(peer), **fields)


def report(*figures, machine=ONE, scale=2):
    return Report(made="now", machine=machine, versions={}, scale={"steps": scale}, figures=list(figures))


def test_the_interval_of_three_repeats_is_students():
    # Of the logarithms 1, 2, 3: mean 2, standard error 1/sqrt(3), and t = 4.303 at two degrees of freedom.
    found = interval([math.exp(1), math.exp(2), math.exp(3)])
    assert math.log(found.middle) == pytest.approx(2)
    assert math.log(found.low) == pytest.approx(2 - 4.303 / math.sqrt(3))
    assert math.log(found.high) == pytest.approx(2 + 4.303 / math.sqrt(3))


def test_the_interval_covers_the_truth_nineteen_times_of_twenty():
    draws = np.random.default_rng(0).lognormal(0.0, 0.1, (4000, 3))
    covered = [found.low <= 1.0 <= found.high for found in map(interval, draws.tolist())]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_one_repeat_tells_nothing_of_its_interval():
    assert interval([7.0]) == (7.0, None, None)


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [1.0, -2.0]])
def test_an_interval_is_of_positive_figures(values):
    with pytest.raises(ValueError, match="positive"):
        interval(values)


def test_ratios_are_of_pairs_so_that_what_slows_both_does_not_widen_them():
    found = ratio([10.0, 20.0, 40.0], [5.0, 10.0, 20.0])
    assert found == pytest.approx((2.0, 2.0, 2.0))
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5])
def test_the_exponent_of_a_power_is_found(power):
    sizes = [1e3, 1e4, 1e5]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)


def test_an_exponent_wants_two_sizes():
    with pytest.raises(ValueError, match="two"):
        exponent([10.0, 10.0], [1.0, 2.0])


def test_targets_are_reached_from_the_better_side():
    assert figure([40.0], [10.0], target=4.0).reached()
    assert not figure([39.0], [10.0], target=4.0).reached()
    assert figure([1.0], [2.0], better="lower", target=0.5).reached()  # memory: ours over the peer's
    assert not figure([1.1], [2.0], better="lower", target=0.5).reached()
    assert figure([10.0], [25.0], better="lower", over="peer/ours", target=2.5).reached()  # seconds: how much faster
    assert not figure([10.0], [24.0], better="lower", over="peer/ours", target=2.5).reached()
    assert figure([1.9], better="lower", target=2.0).reached()  # without a peer it is our own figure that counts
    assert figure([1.9], better="lower").reached() is None


def test_what_is_worse_beyond_noise_is_named():
    before = report(figure([100.0, 101.0, 102.0]), figure([5.0, 5.01, 5.02], measure="memory", better="lower"))
    after = report(figure([80.0, 81.0, 82.0]), figure([6.0, 6.01, 6.02], measure="memory", better="lower"))
    assert [line.partition(":")[2].split(",")[1].split(":")[0].strip() for line in regressions(before, after)] == [
        "speed",
        "memory",
    ]
    assert regressions(after, before) == []


def test_what_is_worse_within_noise_is_not():
    assert regressions(report(figure([90.0, 100.0, 110.0])), report(figure([85.0, 95.0, 105.0]))) == []
    assert regressions(report(figure([100.0])), report(figure([80.0]))) == []  # one repeat each may be 15 % off
    assert len(regressions(report(figure([100.0])), report(figure([70.0])))) == 1


def test_on_another_machine_only_ratios_are_compared():
    fast = report(figure([100.0, 100.1], [50.0, 50.0]))
    slow = report(figure([10.0, 10.01], [5.0, 5.0]), machine=OTHER)
    assert regressions(fast, slow) == []
    worse = report(figure([10.0, 10.01], [10.0, 10.0]), machine=OTHER)
    assert len(regressions(fast, worse)) == 1
    alone = report(figure([100.0, 100.1]))
    assert regressions(alone, report(figure([1.0, 1.001]), machine=OTHER)) == []


def test_seconds_beside_a_peer_compare_the_right_way_round_on_another_machine():
    seconds = {"better": "lower", "over": "peer/ours"}
    before = report(figure([10.0, 10.01], [30.0, 30.0], **seconds))
    after = report(figure([20.0, 20.01], [30.0, 30.0], **seconds), machine=OTHER)
    assert len(regressions(before, after)) == 1
    assert regressions(after, before) == []


def test_figures_that_are_new_are_no_regression():
    assert regressions(report(), report(figure([1.0]))) == []


def test_reports_of_another_scale_are_not_compared():
    with pytest.raises(ValueError, match="steps"):
        regressions(report(scale=2), report(scale=3))
