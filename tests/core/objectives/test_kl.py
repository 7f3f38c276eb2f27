"""Estimators of KL against the sum over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch

from tutelage.objectives.kl import adapted, k1, k2, k3

POLICY = torch.tensor([0.2, -1.0, 0.7, 0.0], dtype=torch.double).log_softmax(0)
REFERENCE = torch.tensor([0.0, -0.5, 0.2, 0.4], dtype=torch.double).log_softmax(0)


def expected(values):
    """Under the policy, by enumeration."""
    return float((POLICY.exp() * values).sum())


def test_estimators_have_the_divergence_as_their_mean():
    exact = float(
        torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=POLICY), torch.distributions.Categorical(logits=REFERENCE)
        )
    )
    assert expected(k1(POLICY, REFERENCE)) == pytest.approx(exact)
    assert expected(k3(POLICY, REFERENCE)) == pytest.approx(exact)
    assert expected(k2(POLICY, REFERENCE)) == pytest.approx(exact, rel=0.1)
    assert (k3(POLICY, REFERENCE) >= 0).all()
    assert (k1(POLICY, REFERENCE) < 0).any()


def test_k3_varies_less_than_k1():
    assert expected(k3(POLICY, REFERENCE) ** 2) < expected(k1(POLICY, REFERENCE) ** 2)


def test_k2_has_the_gradient_of_the_divergence():
    logits = torch.tensor([0.2, -1.0, 0.7, 0.0], dtype=torch.double, requires_grad=True)
    policy = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - REFERENCE)).sum(), logits, retain_graph=True)
    (estimated,) = torch.autograd.grad((policy.exp().detach() * k2(policy, REFERENCE)).sum(), logits)
    assert estimated.tolist() == pytest.approx(exact.tolist())


def test_k3_is_precise_where_policies_are_nearly_equal():
    near = torch.tensor([-1.0], dtype=torch.float32)
    assert float(k3(near, near)) == 0.0
    assert float(k3(near + 1e-3, near)) == pytest.approx(5e-7, rel=1e-2)


def test_the_coefficient_moves_towards_the_target():
    assert adapted(0.1, divergence=6.0, target=6.0) == pytest.approx(0.1)
    assert adapted(0.1, divergence=6.6, target=6.0) == pytest.approx(0.1 * 1.01)
    assert adapted(0.1, divergence=600.0, target=6.0) == pytest.approx(0.1 * 1.02)
    assert adapted(0.1, divergence=0.0, target=6.0) == pytest.approx(0.1 * 0.98)


def test_the_controller_settles_where_the_divergence_is_as_wanted():
    """A policy whose divergence is 1 / coefficient, as that of a linear reward nearly is."""
    coefficient = 1.0
    for _ in range(1000):
        coefficient = adapted(coefficient, divergence=1 / coefficient, target=5.0)
    assert 1 / coefficient == pytest.approx(5.0, rel=1e-3)
