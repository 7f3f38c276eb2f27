"""Losses of scores that should order answers as people did."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.objectives.ragged import mean_by


def ordered_pairs(ranks: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of answers to the same prompt of which one is ranked better.

    Args:
        ranks: (answers,); lower is better, equal is tied.
        group: (answers,) the prompt of each.
    Returns:
        indices of the better answers (pairs,) and of the worse (pairs,), ordered by the first, then the second.
    """
    better = (group[:, None] == group[None, :]) & (ranks[:, None] < ranks[None, :])
    first, second = better.nonzero(as_tuple=True)
    return first, second


def bradley_terry_loss(
    better: Tensor, worse: Tensor, *, margin: Tensor | float = 0.0, probability: Tensor | float = 1.0
) -> Tensor:
    """The pairwise loss of reward models (Bradley & Terry 1952; Ouyang et al. 2022, equation 1).

    Args:
        better, worse: (pairs,) scores.
        margin: (pairs,) how much more the better answer should score at least (Touvron et al. 2023, equation 2).
        probability: (pairs,) that `better` is the better one; the loss is then the cross-entropy with it.
    Returns:
        (pairs,).
    """
    difference = better - worse
    return -probability * F.logsigmoid(difference - margin) - (1 - probability) * F.logsigmoid(-difference - margin)


def plackett_luce_loss(scores: Tensor, ranks: Tensor, group: Tensor, groups: int) -> Tensor:
    """The negative log-likelihood of whole rankings (Plackett 1975; Luce 1959): the best is drawn first by softmax of
    the scores, then the best of those left, and so on.

    Ties follow Efron 1977 ("The efficiency of Cox's likelihood function for censored data"): as which of a tie is drawn
    first is not known, each of its m answers counts with a share of (m - j) / m in the denominator once j of them are
    drawn. The likelihood of a tie is greatest where its answers score the same; without ties the loss is exact.

    Args:
        scores: (answers,).
        ranks: (answers,); lower is better, equal is tied.
        group: (answers,) the prompt of each.
    Returns:
        (groups,).
    """
    same = group[:, None] == group[None, :]
    worse = same & (ranks[:, None] < ranks[None, :])
    tied = same & (ranks[:, None] == ranks[None, :])
    before = torch.tril(tied, diagonal=-1).sum(1)
    share = (1 - before.to(scores) / tied.sum(1))[:, None]  # of the tie that is still there when this answer is drawn
    left = torch.where(worse, 1.0, torch.where(tied, share, 0.0))
    denominators = torch.logsumexp(scores[None, :] + left.log(), dim=1)
    return scores.new_zeros(groups).index_add(0, group, denominators - scores)


def centring_loss(scores: Tensor, group: Tensor, groups: int) -> Tensor:
    """How far scores are from 0 on average, which rankings alone leave open (Eisenstein et al. 2023, equation 2).

    For a pair it is (r1 + r2)^2, as in the paper; for more answers the square of twice their mean.
    (answers,) -> (groups,).
    """
    return (2 * mean_by(scores, group, groups)) ** 2
