"""When more tokens a step stop helping: the critical batch size.

McCandlish et al. 2018 ("An empirical model of large-batch training", equation 2.11): with B tokens a step, a loss that
needs E tokens from small steps needs E (1 + B / B_crit). Kaplan et al. 2020 ("Scaling laws for neural language models",
figure 10) measured B_crit = 2.1e8 tokens x L^-4.8 by the loss L, on models of 3e6 to 8.5e7 parameters; for those of
billions that is an extrapolation, and a mark rather than a wall. Both are of training from scratch.
"""

from __future__ import annotations

from tutelage.scaling import BESIROGLU

TOKENS_PER_PARAMETER = 20
"How long a model is thought to be trained (Hoffmann et al. 2022)."


def critical_batch(parameters: float, tokens: float | None = None) -> float:
    """Tokens of a step above which they help little, at the end of training on so many `tokens` in all."""
    loss = BESIROGLU.loss(parameters, tokens or TOKENS_PER_PARAMETER * parameters)
    return 2.1e8 * float(loss**-4.8)


def tokens_needed(batch: float, critical: float) -> float:
    """How many times the tokens of small steps a loss needs with `batch` tokens a step."""
    return 1 + batch / critical
