"""How much better each token or answer did than was expected."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tutelage.objectives.ragged import ends_of, lengths_of, mean_by, position_in, sum_by


def token_rewards(scores: Tensor, divergences: Tensor, coefficient: float, sequence: Tensor) -> Tensor:
    """Rewards of tokens: the answer's score at its last token, less the divergence from the reference at every token.

    Ouyang et al. 2022, equation 2, its first term, with the KL paid token by token (Ziegler et al. 2019, section 2.2).

    Args:
        scores: (sequences,) of whole answers.
        divergences: (tokens,) in nats, e.g. `kl.k1`.
        coefficient: what a nat costs.
        sequence: (tokens,).
    Returns:
        (tokens,).
    """
    return ends_of(sequence) * scores[sequence] - coefficient * divergences


def gae(
    rewards: Tensor, values: Tensor, sequence: Tensor, sequences: int, *, discount: float = 1.0, decay: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimates (Schulman et al. 2016, equations 11 to 16); nothing follows the last token.

    Args:
        rewards: (tokens,) for taking each token.
        values: (tokens,) expected before each token is taken.
        sequence: (tokens,).
        discount: gamma.
        decay: lambda; 1 gives returns less values, 0 one-step errors.
    Returns:
        advantages (tokens,), and returns (tokens,) that the values should have been: advantages + values.
    """
    following = torch.where(ends_of(sequence), 0.0, values.roll(-1))
    errors = rewards + discount * following - values
    position = position_in(sequence, sequences)
    longest = int(position.max()) + 1 if len(position) else 0
    rows = errors.new_zeros(sequences, longest)
    rows[sequence, position] = errors
    running = errors.new_zeros(sequences)
    for at in reversed(range(longest)):
        running = rows[:, at] + discount * decay * running
        rows[:, at] = running
    advantages = rows[sequence, position]
    return advantages, advantages + values


def group_advantages(
    scores: Tensor, group: Tensor, groups: int, *, scale: Literal["group", "none"] = "group", epsilon: float = 1e-4
) -> Tensor:
    """Scores of answers less the mean of the answers to the same prompt (Shao et al. 2024, section 4.1.2).

    Args:
        scores: (answers,).
        group: (answers,) the prompt of each.
        scale: "group" divides by the group's standard deviation (of a sample, n - 1) + epsilon; "none" does not, so
            that prompts that are nearly always or nearly never answered well don't count more (Liu et al. 2025,
            "Dr. GRPO", section 3).
    Returns:
        (answers,); all 0 in a group whose answers score the same, and for a lone answer.
    """
    centred = scores - mean_by(scores, group, groups)[group]
    if scale == "none":
        return centred
    freedom = (lengths_of(group, groups) - 1).clamp(min=1)
    deviation = (sum_by(centred**2, group, groups) / freedom).sqrt()
    return centred / (deviation[group] + epsilon)


def moments(values: Tensor) -> Tensor:
    """Number, sum and sum of squares of `values` (any shape), (3,) float64; those of several processes add up."""
    wide = values.double()
    return torch.stack([wide.new_tensor(wide.numel()), wide.sum(), (wide**2).sum()])


def mean_and_variance(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (of the population, not of a sample) of what `moments` (3,) were taken of, both () float64."""
    count, total, squares = moments.clamp(min=1)[0], moments[1], moments[2]
    mean = total / count
    return mean, (squares / count - mean**2).clamp(min=0)


def whiten(values: Tensor, moments: Tensor, *, centre: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Values scaled to variance 1 and, unless `centre` is false, moved to mean 0.

    As in Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", for rewards and for advantages.

    Args:
        values: (tokens,).
        moments: (3,) of all that is whitened together: `moments(values)`, added up over processes.
        centre: false keeps the mean where it was, as is usual for rewards, whose level means something.
    Returns:
        (tokens,) in the dtype of `values`.
    """
    mean, variance = mean_and_variance(moments)
    centred = (values - mean) / (variance + epsilon).sqrt()
    return (centred if centre else centred + mean).to(values.dtype)


def explained_variance(errors: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 when the values foretell the returns, 0 or less when they don't help.

    Args:
        errors: (3,) `moments` of returns less values.
        returns: (3,) `moments` of returns.
    Returns:
        nan where the returns don't vary.
    """
    spread = float(mean_and_variance(returns)[1])
    return 1.0 - float(mean_and_variance(errors)[1]) / spread if spread else float("nan")
