"""Agreement: published examples, definitions computed another way, and laws."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.ranking.agreement import (
    alpha_of_rankings,
    kendall_tau,
    krippendorff_alpha,
    mean_with_interval,
    mid_ranks,
    pairs_alike,
    right_pairs,
)

NONE = None
# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]
UNITS = [[float(value) for value in unit if value is not None] for unit in zip(*OBSERVERS, strict=True)]

values = st.lists(st.lists(st.integers(1, 5).map(float), min_size=0, max_size=5), min_size=1, max_size=12)
rankings = st.integers(2, 6).flatmap(lambda k: st.tuples(*[st.lists(st.integers(1, 4), min_size=k, max_size=k)] * 2))


def naive_alpha(units: list[list[float]]) -> float | None:
    """Alpha from pairs of values, by its definition: disagreement within units over that of all values."""
    units = [unit for unit in units if len(unit) > 1]
    everything = [value for unit in units for value in unit]
    if len(set(everything)) < 2:
        return None

    def apart(one: float, other: float) -> float:
        low, high = min(one, other), max(one, other)
        between = sum(low <= value <= high for value in everything)
        return 0.0 if low == high else (between - (everything.count(low) + everything.count(high)) / 2) ** 2

    within = sum(apart(*pair) / (len(unit) - 1) for unit in units for pair in itertools.permutations(unit, 2))
    among = sum(apart(*pair) for pair in itertools.permutations(everything, 2))
    return 1 - (len(everything) - 1) * within / among


def test_alpha_of_the_published_example() -> None:
    assert krippendorff_alpha(UNITS) == pytest.approx(0.815, abs=5e-4)


@settings(deadline=None)
@given(values)
def test_alpha_is_that_of_its_definition(units: list[list[float]]) -> None:
    found, wanted = krippendorff_alpha(units), naive_alpha(units)
    assert found == wanted if wanted is None else found == pytest.approx(wanted, abs=1e-9)


@settings(deadline=None)
@given(values)
def test_alpha_knows_only_the_order_of_values(units: list[list[float]]) -> None:
    renamed = [[value**3 - 7 for value in unit] for unit in units]
    found, same = krippendorff_alpha(units), krippendorff_alpha(renamed)
    assert same == found if found is None else same == pytest.approx(found, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.permutations([1, 2, 3, 4]), min_size=2, max_size=4), st.integers(2, 3))
def test_people_who_all_agree_have_alpha_and_tau_1(orders: list[list[int]], people: int) -> None:
    alpha, interval = alpha_of_rankings([[order] * people for order in orders])
    assert alpha == pytest.approx(1)
    assert interval == pytest.approx((1, 1))
    assert all(kendall_tau(order, order) == pytest.approx(1) for order in orders)


def test_chance_has_alpha_0_and_the_interval_says_so() -> None:
    generator = random.Random(0)
    tasks = [[generator.sample([1, 2, 3, 4], 4) for _ in range(3)] for _ in range(300)]
    alpha, interval = alpha_of_rankings(tasks)
    assert alpha is not None
    assert interval is not None
    assert abs(alpha) < 0.05
    assert interval[0] < alpha < interval[1]


def test_tau_b_of_known_examples() -> None:
    # the example of scipy.stats.kendalltau, whose answer its documentation gives
    assert kendall_tau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.47140452079103173)
    # by hand: of 6 pairs 4 agree, 1 disagrees, 1 is tied in the second ranking only
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 3]) == pytest.approx(3 / math.sqrt(6 * 5))
    assert kendall_tau([1, 1, 1], [1, 2, 3]) is None


@settings(deadline=None)
@given(rankings)
def test_tau_is_even_and_odd(pair: tuple[list[int], list[int]]) -> None:
    one, other = pair
    tau, turned = kendall_tau(one, other), kendall_tau(one, [-rank for rank in other])
    assert tau == kendall_tau(other, one)
    if tau is not None:
        assert turned == pytest.approx(-tau)
        assert -1 - 1e-12 <= tau <= 1 + 1e-12


@settings(deadline=None)
@given(rankings, st.randoms())
def test_relabelling_the_answers_changes_nothing(pair: tuple[list[int], list[int]], generator: random.Random) -> None:
    order = list(range(len(pair[0])))
    generator.shuffle(order)
    one, other = ([ranks[at] for at in order] for ranks in pair)
    for measure in (kendall_tau, pairs_alike, right_pairs):
        before, after = measure(*pair), measure(one, other)
        assert after == before if before is None else after == pytest.approx(before)
    assert sorted(mid_ranks(one)) == sorted(mid_ranks(pair[0]))


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_mid_ranks_share_the_places_of_a_tie(scores: list[int]) -> None:
    found = mid_ranks(scores)
    assert sum(found) == len(scores) * (len(scores) + 1) / 2
    for score, rank in zip(scores, found, strict=True):
        places = [place for place, other in enumerate(sorted(scores), 1) if other == score]
        assert rank == sum(places) / len(places)


def test_shares_of_pairs() -> None:
    assert pairs_alike([1, 2, 3], [1, 3, 2]) == pytest.approx(2 / 3)
    assert pairs_alike([1, 1, 2], [2, 1, 3]) == 1  # the tied pair is not counted
    assert right_pairs([1, 1, 2], [2, 1, 3]) == pytest.approx((0.5 + 1 + 1) / 3)
    assert right_pairs([1, 2], [1, 1]) is None


def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(100):
        generator = random.Random(seed)
        _, interval = mean_with_interval([generator.gauss(0.3, 1) for _ in range(60)])
        assert interval is not None
        held += interval[0] <= 0.3 <= interval[1]
    assert 88 <= held <= 100  # 95 of 100; fewer than 88 would happen once in 300 times
    assert mean_with_interval([]) == (None, None)
    assert mean_with_interval([0.5]) == (0.5, None)
