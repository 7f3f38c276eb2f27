"""Bradley-Terry and Plackett-Luce, by enumeration of everything that could have been ranked."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.objectives.rankings import bradley_terry_loss, centring_loss, ordered_pairs, plackett_luce_loss

SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=5)


def luce(loss_scores, ranks):
    scores = torch.tensor(loss_scores, dtype=torch.double)
    group = torch.zeros(len(scores), dtype=torch.long)
    return float(plackett_luce_loss(scores, torch.tensor(ranks, dtype=torch.double), group, 1))


def chance(weights, order):
    """Of drawing in this order, without replacement, in proportion to the weights."""
    product = 1.0
    for at, index in enumerate(order):
        product *= weights[index] / sum(weights[other] for other in order[at:])
    return product


@given(scores=SCORES)
@settings(deadline=None)
def test_each_order_has_its_chance_and_all_sum_to_one(scores):
    weights, total = np.exp(scores), 0.0
    for order in itertools.permutations(range(len(scores))):
        ranks = [order.index(index) + 1 for index in range(len(scores))]
        likelihood = math.exp(-luce(scores, ranks))
        assert likelihood == pytest.approx(chance(weights, order), rel=1e-9)
        total += likelihood
    assert total == pytest.approx(1.0)


@given(scores=SCORES, data=st.data())
@settings(deadline=None)
def test_ties_are_those_of_efron(scores, data):
    """His approximation, written out as his paper has it, rank by rank."""
    ranks = data.draw(st.lists(st.integers(1, 3), min_size=len(scores), max_size=len(scores)))
    weights, loss = np.exp(scores), 0.0
    for rank in set(ranks):
        tied = [index for index, other in enumerate(ranks) if other == rank]
        left = sum(weight for weight, other in zip(weights, ranks, strict=True) if other >= rank)
        for drawn in range(len(tied)):
            share = drawn / len(tied) * sum(weights[index] for index in tied)
            loss += math.log(left - share) - scores[tied[drawn]]
    assert luce(scores, ranks) == pytest.approx(loss, abs=1e-8)


@given(tied=st.floats(-3, 3), others=st.lists(st.floats(-3, 3), max_size=2), size=st.integers(2, 3))
@settings(deadline=None)
def test_a_tie_of_equals_is_as_likely_as_the_mean_of_its_orders(tied, others, size):
    """Where the tied answers score the same, the approximation is exact: the mean over the orders that agree with it."""
    scores = [tied] * size + others
    ranks = [1] * size + list(range(2, 2 + len(others)))
    weights = np.exp(scores)
    orders = [(*first, *range(size, len(scores))) for first in itertools.permutations(range(size))]
    assert math.exp(-luce(scores, ranks)) == pytest.approx(np.mean([chance(weights, order) for order in orders]))


def test_a_tie_draws_its_answers_together():
    together = luce([0.0, 0.0, -1.0], [1, 1, 2])
    apart = [luce([gap, -gap, -1.0], [1, 1, 2]) for gap in (0.5, 1.0, 2.0)]
    assert together < apart[0] < apart[1] < apart[2]


def test_of_two_answers_it_is_bradley_terry():
    better, worse = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.5])
    scores, group = torch.stack([better, worse], 1).flatten(), torch.tensor([0, 0, 1, 1])
    luce_loss = plackett_luce_loss(scores, torch.tensor([1.0, 2.0, 1.0, 2.0]), group, 2)
    assert luce_loss.tolist() == pytest.approx(bradley_terry_loss(better, worse).tolist())


def test_rankings_do_not_see_each_other():
    one, other = ([0.1, 2.0, -1.0], [2.0, 1.0, 3.0]), ([5.0, 4.0], [1.0, 1.0])
    both = plackett_luce_loss(
        torch.tensor(one[0] + other[0]), torch.tensor(one[1] + other[1]), torch.tensor([0, 0, 0, 2, 2]), 3
    )
    assert both.tolist() == pytest.approx([luce(*one), 0.0, luce(*other)], abs=1e-6)


def test_gradients_are_finite_and_sum_to_zero():
    """Only differences of scores matter, so what pulls one up pushes others down."""
    scores = torch.tensor([300.0, -300.0, 0.0, 0.0], requires_grad=True)
    plackett_luce_loss(scores, torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.zeros(4, dtype=torch.long), 1).sum().backward()
    assert torch.isfinite(scores.grad).all()
    assert float(scores.grad.sum()) == pytest.approx(0.0, abs=1e-5)


@given(better=st.floats(-9, 9), worse=st.floats(-9, 9), margin=st.floats(0, 3), probability=st.floats(0, 1))
def test_bradley_terry_by_hand(better, worse, margin, probability):
    def log_sigmoid(x):
        return -np.logaddexp(0, -x)

    expected = -probability * log_sigmoid(better - worse - margin)
    expected -= (1 - probability) * log_sigmoid(worse - better - margin)
    found = bradley_terry_loss(torch.tensor([better]), torch.tensor([worse]), margin=margin, probability=probability)
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_pairs_are_those_of_unequal_rank_in_one_group():
    ranks, group = torch.tensor([2.0, 1.0, 1.0, 1.0, 2.0]), torch.tensor([0, 0, 0, 1, 1])
    better, worse = ordered_pairs(ranks, group)
    assert list(zip(better.tolist(), worse.tolist(), strict=True)) == [(1, 0), (2, 0), (3, 4)]


def test_centring_is_the_squared_sum_of_a_pair():
    scores = torch.tensor([1.0, 2.0, 0.5, 0.5, 2.0])
    found = centring_loss(scores, torch.tensor([0, 0, 1, 1, 1]), 2)
    assert found.tolist() == pytest.approx([9.0, 4.0])
