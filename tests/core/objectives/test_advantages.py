"""Advantages against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.objectives.advantages import (
    explained_variance,
    gae,
    group_advantages,
    mean_and_variance,
    moments,
    token_rewards,
    whiten,
)
from tutelage.objectives.ragged import ends_of, index_of, lengths_of, mean_by, position_in


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    discount=st.floats(0, 1),
    decay=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_gae_is_the_double_sum_of_its_paper(lengths, discount, decay, seed):
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, written out for every token of every sequence."""
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, sum(lengths), generator=generator, dtype=torch.double)
    advantages, returns = gae(rewards, values, index_of(offsets), len(lengths), discount=discount, decay=decay)
    expected = []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        errors = [
            float(rewards[at] + discount * (values[at + 1] if at + 1 < end else 0) - values[at])
            for at in range(start, end)
        ]
        expected += [
            sum((discount * decay) ** (later - at) * errors[later] for later in range(at, len(errors)))
            for at in range(len(errors))
        ]
    assert advantages.tolist() == pytest.approx(expected)
    assert returns.tolist() == pytest.approx((advantages + values).tolist())


def test_gae_with_decay_one_is_returns_less_values():
    rewards, values = torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.tensor([0.5, 0.0, 1.0, 2.0])
    advantages, returns = gae(rewards, values, torch.tensor([0, 0, 0, 1]), 2, decay=1.0)
    assert returns.tolist() == [3.0, 3.0, 2.0, 5.0]
    assert advantages.tolist() == [2.5, 3.0, 1.0, 3.0]


def test_the_score_comes_with_the_last_token():
    sequence = torch.tensor([0, 0, 2])
    found = token_rewards(torch.tensor([1.0, 7.0, -1.0]), torch.tensor([0.5, 0.0, 1.0]), 0.1, sequence)
    assert found.tolist() == pytest.approx([-0.05, 1.0, -1.1])


def test_group_advantages_by_numpy():
    scores, group = torch.tensor([1.0, 0.0, 0.0, 3.0, 5.0, 2.0]), torch.tensor([0, 0, 0, 1, 1, 2])
    one, other = np.array([1.0, 0, 0]), np.array([3.0, 5.0])
    expected = [*(one - one.mean()), *(other - other.mean()), 0.0]
    assert group_advantages(scores, group, 3, scale="none").tolist() == pytest.approx(expected)
    scaled = [*((one - one.mean()) / (one.std(ddof=1) + 1e-4)), *((other - 4) / (other.std(ddof=1) + 1e-4)), 0.0]
    assert group_advantages(scores, group, 3).tolist() == pytest.approx(scaled)


def test_answers_that_score_the_same_teach_nothing():
    assert group_advantages(torch.full((4,), 0.3), torch.zeros(4, dtype=torch.long), 1).tolist() == [0.0] * 4


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.integers(0, 30))
def test_whitening_in_two_processes_equals_one(values, cut):
    whole = torch.tensor(values, dtype=torch.double)
    parts = [whole[:cut], whole[cut:]]
    together = moments(parts[0]) + moments(parts[1])
    expected = (np.array(values) - np.mean(values)) / np.sqrt(np.var(values) + 1e-8)
    found = torch.cat([whiten(part, together) for part in parts])
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)
    kept = torch.cat([whiten(part, together, centre=False) for part in parts])
    assert kept.tolist() == pytest.approx(expected + np.mean(values), rel=1e-3, abs=1e-3)


def test_moments_of_nothing_add_nothing():
    assert moments(torch.zeros(0)).tolist() == [0.0, 0.0, 0.0]
    mean, variance = mean_and_variance(moments(torch.zeros(0)))
    assert (float(mean), float(variance)) == (0.0, 0.0)


def test_explained_variance():
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0])
    for values, expected in ((returns, 1.0), (torch.full((4,), 3.0), 0.0), (returns + 9, 1.0), (-returns, -3.0)):
        assert explained_variance(moments(returns - values), moments(returns)) == pytest.approx(expected)
    assert math.isnan(explained_variance(moments(returns), moments(torch.ones(4))))


def test_ragged_vectors():
    offsets = torch.tensor([0, 2, 2, 5])
    sequence = index_of(offsets)
    assert sequence.tolist() == [0, 0, 2, 2, 2]
    assert lengths_of(sequence, 4).tolist() == [2, 0, 3, 0]
    assert position_in(sequence, 4).tolist() == [0, 1, 0, 1, 2]
    assert ends_of(sequence).tolist() == [False, True, False, False, True]
    assert mean_by(torch.tensor([1.0, 3.0, 1.0, 1.0, 4.0]), sequence, 4).tolist() == [2.0, 0.0, 2.0, 0.0]
