"""Scaling laws: how a budget of computation is best divided between a model's size and the tokens that it reads."""

from __future__ import annotations

import math
import re

import msgspec

_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)([kmbgt]?)", re.IGNORECASE)


class Law(msgspec.Struct, frozen=True):
    """A fit of the loss of N parameters after D tokens: L(N, D) = E + A / N^alpha + B / D^beta.

    Hoffmann et al. 2022, "Training compute-optimal large language models", equation 2. Losses are in nats per token of
    the data that they trained on.
    """

    name: str
    source: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss predicted, in nats per token."""
        return float(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def best(self, flops: float) -> Allocation:
        """Of all models that `flops` = 6 N D can train, the one with the least loss (their equation 4)."""
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return self._allocation(parameters, flops)

    def best_for(self, parameters: float) -> Allocation:
        """The budget for which a model of this size is the best one."""
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        flops = 6 * (parameters / ratio) ** ((self.alpha + self.beta) / self.beta)
        return self._allocation(parameters, flops)

    def _allocation(self, parameters: float, flops: float) -> Allocation:
        tokens = flops / (6 * parameters)
        return Allocation(self.name, self.source, flops, parameters, tokens, self.loss(parameters, tokens))


class Allocation(msgspec.Struct, frozen=True):
    """A model's size and the tokens it reads, what training it takes, and the loss that a law predicts."""

    law: str
    source: str
    flops: float
    parameters: float
    tokens: float
    loss: float


HOFFMANN = Law(
    "hoffmann",
    "Hoffmann et al. 2022, equation 10 (approach 3), with the digits that their TeX source has",
    e=1.6934,
    a=406.4,
    b=410.7,
    alpha=0.3392,
    beta=0.2849,
)
BESIROGLU = Law(
    "besiroglu",
    "Besiroglu et al. 2024, Chinchilla scaling: a replication attempt",
    e=1.8172,
    a=482.01,
    b=2085.43,
    alpha=0.3478,
    beta=0.3658,
)
LAWS = (BESIROGLU, HOFFMANN)
"""The replication first: it fits the original's data better, and agrees with its approaches 1 and 2 (about 20 tokens a
parameter), which approach 3 as published does not."""

SMALLEST, LARGEST = 44e6, 16e9
"The sizes of the models that the laws were fitted to."


def amount(text: str | float) -> float:
    """A count as people write it: 8192, 10M, 1.5B, 1e20.

    Raises:
        ValueError: with a sentence, when it is none, or not over 0.
    """
    match = _AMOUNT.fullmatch(str(text).strip().replace("_", "").replace(",", ""))
    value = float(match[1]) * _SCALES[match[2].lower()] if match else math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not a number over 0 such as 8192, 10M or 1.5B")
    return value


def brief(value: float) -> str:
    """A large count in three digits: 12.3M."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def tokens_per_step(flops: float) -> float:
    """The tokens of a step that serve a budget of computation best.

    Bi et al. 2024, "DeepSeek LLM", equation 1: 0.2920 C^0.3271 (fitted from 1e17 to 2e19 operations).
    """
    return float(0.2920 * flops**0.3271)


def learning_rate(parameters: float) -> float:
    """A safe peak learning rate by the number of parameters other than embeddings.

    Kaplan et al. 2020, "Scaling laws for neural language models", equation D.1: 0.003239 - 0.0001395 ln N, which
    they say holds below 1e10; no less than 6e-5, which Brown et al. 2020 used for 1.75e11 parameters (table 2.1).
    """
    return max(0.003239 - 0.0001395 * math.log(parameters), 6e-5)
