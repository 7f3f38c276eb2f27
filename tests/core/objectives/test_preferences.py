"""The DPO family, by hand in numpy, by TRL, and by the optimum that the theory promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.objectives.preferences import PAIR_LOSSES, sigmoid_loss, smoothed

MARGINS = torch.tensor([-3.0, -0.4, 0.0, 1.7, 12.0])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(name, margin, beta):
    """The loss of certain preferences, as the papers write it."""
    return {
        "sigmoid": lambda: -np.log(sigmoid(beta * margin)),
        "ipo": lambda: (margin - 1 / (2 * beta)) ** 2,
        "hinge": lambda: np.maximum(0, 1 - beta * margin),
    }[name]()


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_pair_losses_are_those_of_the_papers(name, beta):
    loss = PAIR_LOSSES[name](MARGINS, beta, torch.ones(5))
    assert loss.numpy() == pytest.approx(by_hand(name, MARGINS.double().numpy(), beta), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@given(margin=st.floats(-20, 20), probability=st.floats(0, 1), beta=st.floats(0.01, 2))
def test_a_soft_label_weighs_both_orders(name, margin, probability, beta):
    loss = PAIR_LOSSES[name]
    there = loss(torch.tensor([margin]), beta, torch.tensor([probability]))
    back = loss(torch.tensor([-margin]), beta, torch.tensor([1 - probability]))
    hard = [float(by_hand(name, sign * margin, beta)) for sign in (1, -1)]
    assert float(there) == pytest.approx(float(back), rel=1e-4, abs=1e-4)
    assert float(there) == pytest.approx(probability * hard[0] + (1 - probability) * hard[1], rel=1e-4, abs=1e-4)


def test_smoothing_turns_certain_labels_into_cdpo():
    assert smoothed(torch.tensor([1.0, 0.0, 0.5]), 0.1).tolist() == pytest.approx([0.9, 0.1, 0.5])
    margin, beta, epsilon = np.array([0.3, -2.0]), 0.4, 0.2
    expected = -(1 - epsilon) * np.log(sigmoid(beta * margin)) - epsilon * np.log(sigmoid(-beta * margin))
    loss = sigmoid_loss(torch.tensor(margin), beta, smoothed(torch.ones(2, dtype=torch.double), epsilon))
    assert loss.numpy() == pytest.approx(expected)


def test_large_margins_do_not_overflow():
    margin = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = sigmoid_loss(margin, 1.0, torch.ones(2))
    loss.sum().backward()
    assert loss.tolist() == [1e4, 0.0]
    assert margin.grad.tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_dpo_finds_the_policy_that_the_closed_form_gives(beta):
    """All pairs of five answers, labelled as often as their rewards say: the best policy is reference * exp(r / beta).

    Rafailov et al. 2023, equation 4.
    """
    rewards = torch.tensor([0.0, 0.5, 1.0, -0.7, 0.2], dtype=torch.double)
    reference = torch.tensor([0.3, -1.0, 0.2, 0.9, 0.0], dtype=torch.double).log_softmax(0)
    first, second = torch.combinations(torch.arange(5)).T
    probability = torch.sigmoid(rewards[first] - rewards[second])
    logits = torch.zeros(5, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        log_ratios = logits.log_softmax(0) - reference
        loss = sigmoid_loss(log_ratios[first] - log_ratios[second], beta, probability).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = (reference + rewards / beta).softmax(0)
    assert logits.detach().softmax(0).numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_ipo_finds_the_margin_that_it_is_told():
    """Its optimum for a certain preference is a margin of 1 / (2 tau), where DPO's has none."""
    margin = torch.zeros(1, dtype=torch.double, requires_grad=True)
    for _ in range(500):
        (gradient,) = torch.autograd.grad(PAIR_LOSSES["ipo"](margin, 0.25, torch.ones(1)).sum(), margin)
        margin = (margin - 0.1 * gradient).detach().requires_grad_()
    assert float(margin.detach()) == pytest.approx(2.0)
