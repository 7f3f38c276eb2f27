"""Estimates of the divergence of a policy from its reference, and a coefficient that keeps it near a target.

With r = reference / policy at a token that was drawn from the policy, the mean of each estimator is KL(policy ||
reference) or near it (Schulman 2020, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html). All take
two vectors (tokens,) of log-probabilities of the same tokens, in nats, and return one value a token, (tokens,).
"""

from __future__ import annotations

from torch import Tensor


def k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """-log r: unbiased, but of high variance and negative at times."""
    return log_probs - reference


def k2(log_probs: Tensor, reference: Tensor) -> Tensor:
    """(log r)^2 / 2: biased, of low variance; its gradient's mean is the true KL's."""
    return 0.5 * (log_probs - reference) ** 2


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """(r - 1) - log r: unbiased, and never negative."""
    log_ratio = reference - log_probs
    return log_ratio.expm1() - log_ratio


def adapted(coefficient: float, divergence: float, target: float, *, gain: float = 0.1, bound: float = 0.2) -> float:
    """The KL coefficient for the next step: raised where the divergence is above its target, lowered below.

    Ziegler et al. 2019, section 2.2: e = clip((KL - target) / target, -bound, bound); coefficient * (1 + gain * e).
    `divergence` and `target` are in the same unit, nats an answer in the paper.
    """
    error = min(max((divergence - target) / target, -bound), bound)
    return coefficient * (1 + gain * error)
