"""Draws answers token by token, in batches, with the log-probability of each token: for rollouts and for making data.

A prompt is computed once for all of its answers. Answers that have ended leave their batch, so that no work is done for
them. Each answer draws from random numbers of its own, so that it does not depend on which others share its batch, nor
on how many devices there are (up to the rounding of the model's arithmetic, which may differ with a batch's shape).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from tutelage.errors import TutelageError
from tutelage.formats import Prompted
from tutelage.models.decoding import State, base_of, ready
from tutelage.models.generation import encode
from tutelage.models.loading import end_ids
from tutelage.models.shortcut import FEWEST_TOKENS, Shortcut

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


@dataclass
class Sampled:
    """An answer.

    Attributes:
        ids: the new tokens, with the one that ended them where it came.
        log_probs: the log-probability of each under the model itself (the log-softmax of its logits, whatever the
            temperature, top-p and top-k that it was drawn by), in float32.
        finished: whether it ended by itself; else it was cut at `max_new_tokens`.
    """

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finished: bool = False


@dataclass(frozen=True)
class _Rule:
    """How a token is drawn from logits, and when an answer ends."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    ends: frozenset[int]
    pad: int
    scored: bool = True
    "Whether log-probabilities are wanted."


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits that differs with any of the numbers: those of a stage's seed, a prompt and a sample, say."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def sample(
    model: nn.Module,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seeds: list[int],
    ends: frozenset[int],
    pad: int,
    batch_size: int,
    min_new_tokens: int = 0,
    log_probs: bool = True,
) -> list[Sampled]:
    """Draw an answer to each prompt, in the prompts' order. The model's mode and attention are left as they were.

    Equal prompts in a batch are computed once: for several answers to a prompt, give it several times.

    Args:
        model: a causal language model of transformers, also with a PEFT adapter.
        prompts: token ids, without padding.
        temperature: 0 takes the likeliest token each time.
        top_p: draw from the fewest likeliest tokens that have this share of the probability (Holtzman et al. 2020,
            "The Curious Case of Neural Text Degeneration").
        top_k: draw from this many likeliest tokens; 0 from all.
        seeds: of each answer's random numbers.
        ends: ids that end an answer.
        pad: the id that fills shorter prompts up; it is masked.
        batch_size: how many answers are drawn at a time.
        min_new_tokens: no answer ends before it has so many.
        log_probs: whether log-probabilities are wanted; else there are none.
    Raises:
        TutelageError: when a prompt has no tokens, or the adapter is one that can't be sampled from here.
    """
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise TutelageError.at(f"prompt {number}", "is empty", "give the model something to go on from")
    rule = _Rule(max_new_tokens, min_new_tokens, temperature, top_p, top_k, ends, pad, log_probs)
    longest_first = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), prompts[row]))
    answers: list[Sampled] = [Sampled()] * len(prompts)
    with ready(model), torch.no_grad():
        shortcut = _shortcut(model, rule)
        for start in range(0, len(prompts), batch_size):
            rows = longest_first[start : start + batch_size]
            drawn = _draw(model, [prompts[row] for row in rows], [seeds[row] for row in rows], rule, shortcut)
            for row, answer in zip(rows, drawn, strict=True):
                answers[row] = answer
    return answers


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompted],
    *,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_new_tokens: int = 0,
    seed: int = 0,
    batch_size: int = 16,
) -> list[list[Sampled]]:
    """Draw several answers to each prompt: a user's turn, or messages, where there is a chat template.

    Args:
        samples: how many for each; answer k of prompt n has the seed `seed_of(seed, n, k)`.
    Raises:
        TutelageError: when a prompt is empty, does not fit the context, or needs a chat template that is missing.
    """
    ids = [encode(model, tokenizer, each.prompt, max_new_tokens, f"prompt {n}") for n, each in enumerate(prompts)]
    drawn = sample(
        model,
        [row for row in ids for _ in range(samples)],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seeds=[seed_of(seed, n, k) for n in range(len(prompts)) for k in range(samples)],
        batch_size=batch_size,
        min_new_tokens=min_new_tokens,
        **ends_of(model, tokenizer),
    )
    return [drawn[start : start + samples] for start in range(0, len(drawn), samples)]


def draw(
    model: nn.Module,
    prompt: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seeds: list[int],
    ends: frozenset[int],
    pad: int,
) -> Iterator[list[tuple[int, int]]]:
    """Draw answers to one prompt as `sample` does, token by token, for those who show them as they grow.

    Closing the iterator stops the model; between two steps it may be used otherwise.

    Args:
        seeds: of each answer's random numbers; as many answers are drawn.
    Yields:
        at each step, the number of each answer that has not ended, with its next token.
    Raises:
        TutelageError: when the prompt has no tokens, or the adapter is one that can't be sampled from here.
    """
    if not prompt:
        raise TutelageError.at("the prompt", "is empty", "give the model something to go on from")
    rule = _Rule(max_new_tokens, 0, temperature, top_p, top_k, ends, pad, scored=False)
    steps = _steps(model, [prompt] * len(seeds), seeds, rule, _shortcut(model, rule))
    while True:
        with ready(model), torch.no_grad():
            step = next(steps, None)
        if step is None:
            return
        yield list(zip(step[0], step[1], strict=True))


def ends_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The arguments `ends` and `pad` of `sample` for a model and its tokenizer."""
    ends = end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    return {"ends": ends, "pad": pad if isinstance(pad, int) else min(ends, default=0)}


def text(tokenizer: PreTrainedTokenizerBase, sampled: Sampled) -> str:
    """What an answer says, without the token that ended it; other special tokens that the model wrote are kept."""
    ids = sampled.ids[:-1] if sampled.finished else sampled.ids
    decoded: Any = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(decoded)


def _shortcut(model: nn.Module, rule: _Rule) -> Shortcut | None:
    """A faster way to the tokens after the first, where there are many."""
    return Shortcut(base_of(model)) if rule.max_new_tokens >= FEWEST_TOKENS else None


def _draw(
    model: nn.Module, prompts: list[list[int]], seeds: list[int], rule: _Rule, shortcut: Shortcut | None
) -> list[Sampled]:
    """The answers of one batch of prompts, of which equal ones stand side by side."""
    answers = [Sampled() for _ in prompts]
    for rows, tokens, log_probs in _steps(model, prompts, seeds, rule, shortcut):
        for row, log_prob in zip(rows, log_probs, strict=rule.scored):
            answers[row].log_probs.append(log_prob)
        for row, token in zip(rows, tokens, strict=True):
            answers[row].ids.append(token)
            answers[row].finished = token in rule.ends and len(answers[row].ids) > rule.min_new_tokens
    return answers


def _steps(
    model: nn.Module, prompts: list[list[int]], seeds: list[int], rule: _Rule, shortcut: Shortcut | None
) -> Iterator[tuple[list[int], list[int], list[float]]]:
    """Draw a token for every answer that has not ended, again and again: their rows, tokens and log-probabilities."""
    distinct: list[list[int]] = []
    owners = []
    for prompt in prompts:
        if not distinct or prompt != distinct[-1]:
            distinct.append(prompt)
        owners.append(len(distinct) - 1)
    state = State(model, distinct, pad=rule.pad, room=rule.max_new_tokens, shortcut=shortcut)
    state.keep(owners)
    uniforms = torch.from_numpy(np.stack([_uniforms(seed, rule) for seed in seeds])).to(state.logits.device)
    rows = list(range(len(prompts)))
    for step in range(rule.max_new_tokens):
        may_end = step >= rule.min_new_tokens
        chosen, log_probs = _choose(state.logits, uniforms[rows, step], rule, may_end=may_end)
        tokens: list[int] = chosen.tolist()
        yield rows, tokens, [] if log_probs is None else log_probs.tolist()
        order = _without_holes([not (may_end and token in rule.ends) for token in tokens])
        if not order or step + 1 == rule.max_new_tokens:
            return
        if len(order) < len(rows):
            rows = [rows[place] for place in order]
            chosen = chosen[order]
            state.keep(order)
        state.advance(chosen)


def _uniforms(seed: int, rule: _Rule) -> Any:
    """(max_new_tokens,) numbers in [0, 1), of which the first ones don't depend on how many there are."""
    return np.random.Generator(np.random.Philox(seed)).random(rule.max_new_tokens)


def _without_holes(living: list[bool]) -> list[int]:
    """The rows that live, in an order in which as few as possible change their place: the last ones fill the holes."""
    count = sum(living)
    tail = iter([row for row in range(count, len(living)) if living[row]])
    return [row if living[row] else next(tail) for row in range(count)]


def _choose(logits: Tensor, uniforms: Tensor, rule: _Rule, *, may_end: bool) -> tuple[Tensor, Tensor | None]:
    """Draw a token for each row.

    Args:
        logits: (rows, vocabulary) in float32.
        uniforms: (rows,) random numbers in [0, 1).
    Returns:
        the tokens, and their log-probabilities under the logits as they are, if the rule wants them; both (rows,).
    """
    scores = logits
    if not may_end and rule.ends:
        scores = logits.index_fill(-1, torch.tensor(sorted(rule.ends), device=logits.device), float("-inf"))
    if rule.temperature == 0:
        chosen = scores.argmax(-1, keepdim=True)
    else:
        chosen = _at_random(scores / rule.temperature, uniforms, rule)
    if not rule.scored:
        return chosen[:, 0], None
    return chosen[:, 0], logits.gather(-1, chosen)[:, 0] - logits.logsumexp(-1)


def _at_random(scores: Tensor, uniforms: Tensor, rule: _Rule) -> Tensor:
    """Tokens (rows, 1) drawn by `uniforms` (rows,) from what the rule leaves of the softmax of `scores`."""
    if rule.top_k:
        best, tokens = scores.topk(min(rule.top_k, scores.shape[-1]))
        shares, _ = _nucleus(best, best.logsumexp(-1, keepdim=True), rule.top_p)
        return tokens.gather(-1, _inverted(shares, uniforms))
    if rule.top_p == 1:
        return _inverted(scores.softmax(-1), uniforms)
    return _from_nucleus(scores, scores.logsumexp(-1, keepdim=True), uniforms, rule.top_p, _LIKELIEST)


_LIKELIEST = 256
"How many tokens are looked at first: they mostly hold the nucleus, and sorting a whole vocabulary takes long."


def _from_nucleus(scores: Tensor, whole: Tensor, uniforms: Tensor, top_p: float, count: int) -> Tensor:
    """Tokens (rows, 1) drawn from the nucleus, which is looked for among `count` tokens, then among ever more."""
    best, tokens = scores.topk(min(count, scores.shape[-1]))
    shares, mass = _nucleus(best, whole, top_p)
    chosen = tokens.gather(-1, _inverted(shares, uniforms))
    short = (mass < top_p).nonzero()[:, 0]
    if len(short) and count < scores.shape[-1]:
        chosen[short] = _from_nucleus(scores[short], whole[short], uniforms[short], top_p, 16 * count)
    return chosen


def _nucleus(best: Tensor, whole: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The probabilities of the likeliest tokens, but 0 for those that come after `top_p` is reached.

    Args:
        best: (rows, n) sorted scores, of which `whole` (rows, 1) is the log-sum, with those that are not among them.
    Returns:
        probabilities (rows, n), and their sum before any was set to 0 (rows,).
    """
    shares = (best - whole).exp()
    sums = shares.cumsum(-1)
    return shares.masked_fill(sums - shares >= top_p, 0.0), sums[:, -1]


_BLOCK = 256


def _inverted(shares: Tensor, uniforms: Tensor) -> Tensor:
    """Where the distribution function of `shares` (rows, n), which need not sum to 1, passes `uniforms` (rows,).

    First among blocks and then within one: to sum a whole vocabulary up token by token, in the precision that it
    needs, takes longer than all else here.

    Returns:
        indices (rows, 1).
    """
    wide = torch.float32 if shares.device.type == "mps" else torch.float64
    blocks = F.pad(shares, (0, -shares.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    sizes = blocks.sum(-1).to(wide)
    block, left = _passed(sizes, uniforms.to(wide)[:, None])
    inner = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].to(wide)
    place, _ = _passed(inner, left)
    return (block * _BLOCK + place).clamp(max=shares.shape[-1] - 1)


def _passed(sizes: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The part of `sizes` (rows, n) in which a share of their sum lies, and as what share of that part: (rows, 1)."""
    heights = sizes.cumsum(-1)
    targets = uniforms * heights[:, -1:]
    index = torch.searchsorted(heights, targets, right=True).clamp(max=sizes.shape[-1] - 1)
    size = sizes.gather(-1, index)
    below = heights.gather(-1, index) - size
    return index, ((targets - below) / size).clamp(0, 1 - 2**-20)
