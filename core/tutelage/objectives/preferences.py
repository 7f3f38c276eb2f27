"""Losses that learn from preferences without a reward model.

Log-probabilities are of whole answers given their prompts, in nats. The advantage of the chosen answer of a pair over
the rejected one, by log-ratios of policy to reference, is the `margin` of the functions below.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def smoothed(probability: Tensor, smoothing: float) -> Tensor:
    """The probability that the chosen answer is the better one, when labels are wrong at a rate of `smoothing`.

    Mitchell 2023, "A note on DPO with noisy preferences": from 1, this is cDPO's 1 - smoothing. (pairs,) -> (pairs,).
    """
    return probability * (1 - smoothing) + (1 - probability) * smoothing


def sigmoid_loss(margin: Tensor, beta: float, probability: Tensor) -> Tensor:
    """DPO (Rafailov et al. 2023, equation 7); with soft labels, the cross-entropy with them (Mitchell 2023).

    Args:
        margin: (pairs,) in nats.
        beta: strength of the KL term whose optimum this finds; rewards are beta times log-ratios.
        probability: (pairs,) that the chosen answer is the better one; 1 for plain preferences.
    Returns:
        (pairs,).
    """
    return -probability * F.logsigmoid(beta * margin) - (1 - probability) * F.logsigmoid(-beta * margin)


def ipo_loss(margin: Tensor, beta: float, probability: Tensor) -> Tensor:
    """IPO (Azar et al. 2023, equation 17, whose tau is `beta`): pulls the margin to 1 / (2 beta), and no further.

    Arguments as of `sigmoid_loss`; a soft label weighs the two orders of a pair.
    """
    target = 1 / (2 * beta)
    return probability * (margin - target) ** 2 + (1 - probability) * (margin + target) ** 2


def hinge_loss(margin: Tensor, beta: float, probability: Tensor) -> Tensor:
    """SLiC's hinge loss (Zhao et al. 2023) on DPO's rewards (Liu et al. 2024, "RSO", section 3).

    Arguments as of `sigmoid_loss`; a soft label weighs the two orders of a pair.
    """
    return probability * F.relu(1 - beta * margin) + (1 - probability) * F.relu(1 + beta * margin)


PAIR_LOSSES: dict[str, Callable[[Tensor, float, Tensor], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
}
