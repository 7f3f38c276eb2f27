"""Policy-gradient losses over tokens that an earlier state of the policy drew.

`log_probs` are of the policy that learns and `old` of the policy that drew the tokens, both at the
temperature that they were drawn at, in nats.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tutelage.objectives.kl import k2, k3
from tutelage.objectives.ragged import lengths_of

Normalization = Literal["answer", "token", "constant"]


def clipped_policy_loss(
    log_probs: Tensor, old: Tensor, advantages: Tensor, *, clip: float = 0.2, clip_high: float | None = None
) -> Tensor:
    """PPO's clipped surrogate objective, negated (Schulman et al. 2017, equation 7).

    Args:
        log_probs, old, advantages: (tokens,).
        clip: how far the ratio of probabilities counts below 1.
        clip_high: how far above 1; as far as below unless given (clip-higher: Yu et al. 2025, "DAPO", section 3.1).
    Returns:
        (tokens,).
    """
    ratio = (log_probs - old).exp()
    bounded = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return -torch.minimum(ratio * advantages, bounded * advantages)


def is_clipped(
    log_probs: Tensor, old: Tensor, advantages: Tensor, *, clip: float = 0.2, clip_high: float | None = None
) -> Tensor:
    """Which tokens `clipped_policy_loss` gives no gradient because they moved far enough already, (tokens,) bool."""
    ratio = (log_probs - old).exp()
    above = ratio > 1 + (clip if clip_high is None else clip_high)
    return (above & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, *, clip: float | None = 0.2) -> Tensor:
    """Half the squared error of values, which gain nothing by moving further than `clip` from what they were.

    Engstrom et al. 2020, section 3 ("Value function clipping"), times 1/2 as is usual.

    Args:
        values, old, returns: (tokens,).
        clip: in the unit of values; None does not clip.
    Returns:
        (tokens,).
    """
    errors = (values - returns) ** 2
    if clip is not None:
        bounded = old + (values - old).clamp(-clip, clip)
        errors = torch.maximum(errors, (bounded - returns) ** 2)
    return 0.5 * errors


def grpo_loss(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    reference: Tensor | None = None,
    *,
    coefficient: float = 0.0,
    estimator: Literal["k2", "k3", "k3-unbiased"] = "k3",
    clip: float = 0.2,
    clip_high: float | None = None,
) -> Tensor:
    """GRPO's loss: the clipped surrogate, and the divergence from the reference (Shao et al. 2024, equations 3 and 4).

    Args:
        log_probs, old: (tokens,).
        advantages: (tokens,) those of the answers, at each of their tokens: `group_advantages(...)[sequence]`.
        reference: (tokens,) log-probabilities of the reference policy; needed unless the coefficient is 0.
        coefficient: of the KL term.
        estimator: of the KL term. The mean gradient of k3 (the paper's) is not that of the policy's KL from the
            reference; that of k2 is, on tokens that the learning policy itself drew; and that of k3-unbiased, which
            weighs k3 by the ratio of probabilities, on any (DeepSeek-AI 2025, "DeepSeek-V3.2", equation 7).
    Returns:
        (tokens,).
    """
    losses = clipped_policy_loss(log_probs, old, advantages, clip=clip, clip_high=clip_high)
    if reference is None or not coefficient:
        return losses
    divergences = (k2 if estimator == "k2" else k3)(log_probs, reference)
    if estimator == "k3-unbiased":
        divergences = (log_probs - old).exp() * divergences
    return losses + coefficient * divergences


def token_weights(
    sequence: Tensor, sequences: int, normalization: Normalization, *, constant: int | None = None
) -> tuple[Tensor, Tensor]:
    """What each token's loss counts for, and each answer in the step's sum that the weighted losses are divided by.

    A step's loss is sum(losses * tokens) / sum(answers), both over all its micro-batches on all devices.

    - "answer": each answer counts the same, whatever its length: mean over its tokens, mean over answers
      (Shao et al. 2024, equation 3).
    - "token": each token counts the same (Yu et al. 2025, "DAPO", section 3.3).
    - "constant": sums over tokens, divided by `constant` (the most tokens an answer can have) and the number of
      answers: an answer's length doesn't change what its tokens count for (Liu et al. 2025, "Dr. GRPO", section 3).

    Returns:
        (tokens,) and (sequences,), float32.
    """
    lengths = lengths_of(sequence, sequences).float()
    one = torch.ones_like(lengths)
    if normalization == "token":
        return one.new_ones(len(sequence)), lengths
    if normalization == "answer":
        return 1 / lengths[sequence], one
    assert constant is not None
    return one.new_full((len(sequence),), 1 / constant), one
