"""Attention over packed rows in which no token sees another sequence, and the proof that it holds for a model.

A packed row costs nothing extra: each example attends within its own bounds, by the variable-length flash kernel
where the device has one, by plain products over short examples on a CPU, and example by example elsewhere, so no block
mask is ever computed. What sequences have in common may stand in the row once: then each segment sees the keys of the
segments before it in its sequence, too. A model whose layers don't go through transformers' attention interface gets
transformers' own block masks; one that leaks even so (a recurrent layer, say) is not packed.
"""

from __future__ import annotations

import operator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from tutelage.data.batches import Batch, collate
from tutelage.data.rendering import Tokens
from tutelage.engine.forward import learnt_logits, token_scores
from tutelage.engine.kernels.segments import LONGEST, gathered, hidden_keys, short_segment_attention
from tutelage.models.heads import score_head
from tutelage.models.loading import quietly

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

SEGMENTS = "tutelage_segments"
"Name of `segment_attention` among transformers' attention implementations."


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    seen_keys: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within the bounds `cu_seq_lens_q` (segments + 1,) of one packed row.

    Args:
        query: (1, heads, tokens, head_dim); key and value (1, kv_heads, tokens, head_dim).
        attention_mask: what `segment_mask` gave: None, unless the layer sees a part of its example only.
        cu_seq_lens_k: where in `seen_keys` what each segment sees starts and ends, (segments + 1,).
        seen_keys: tokens of the row; None where each segment sees itself alone.
    Returns:
        (1, tokens, heads, head_dim).
    Raises:
        NotImplementedError: for what this doesn't compute (soft-capping, sinks, position biases).
    """
    unknown = sorted(name for name in _NOT_COMPUTED if kwargs.get(name) is not None)
    if attention_mask is not None and sliding_window is None:
        unknown.append("parts of examples")
    if cu_seq_lens_q is None or query.shape[0] != 1 or unknown or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"segment attention needs a packed causal row without {unknown or 'other masks'}")
    if torch.is_autocast_enabled(query.device.type):  # some models' norms give float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    bounds, key_bounds = cu_seq_lens_q, cu_seq_lens_q
    if seen_keys is not None:
        assert cu_seq_lens_k is not None
        key, value, key_bounds = gathered(key, seen_keys), gathered(value, seen_keys), cu_seq_lens_k
    if query.is_cuda and _varlen is not None and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return _varlen_attention(query, key, value, scaling, bounds, key_bounds, sliding_window), None
    return _one_by_one(query, key, value, scaling, bounds, key_bounds, sliding_window, dropout), None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the bounds differ with each row: each would be compiled anew
def _one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    bounds: Tensor,
    key_bounds: Tensor,
    window: int | None,
    dropout: float,
) -> Tensor:
    places: list[int] = bounds.tolist()
    key_places: list[int] = places if key_bounds is bounds else key_bounds.tolist()
    if query.device.type == "cpu" and not dropout and max(map(operator.sub, key_places[1:], key_places)) <= LONGEST:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attended = short_segment_attention(query[0], key[0], value[0], places, scale, window, key_places)
        return attended.transpose(0, 1)[None]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    outputs = []
    for (start, end), (first, last) in zip(pairwise(places), pairwise(key_places), strict=True):
        mask = _window_mask(end - start, last - first, window, query.device)
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, first:last],
                value[:, :, first:last],
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def segment_mask(*, local_size: int | None = None, **_: Any) -> Tensor | None:
    """No mask is needed, but a layer that sees a part of its example only is marked (by the part's size).

    Some models tell attention of their window or chunks by the mask alone.
    """
    return None if local_size is None else torch.tensor(local_size)


_NOT_COMPUTED = ("softcap", "s_aux", "position_bias", "head_mask", "cache_position_bias")


def _window_mask(rows: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which of `keys` tokens each of their last `rows` sees; None where plain causal attention says the same."""
    if rows == keys and (window is None or keys <= window):
        return None
    return ~hidden_keys(rows, keys, window, device)


def _find_varlen() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


_varlen = _find_varlen()


def _varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    bounds: Tensor,
    key_bounds: Tensor,
    window: int | None,
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    longest = [int(each.diff().max()) for each in (bounds, key_bounds)]
    rows = [part[0].transpose(0, 1).contiguous() for part in (query, key, value)]
    sides = (window - 1, 0) if window is not None else (-1, 0)
    output: Tensor = _varlen(*rows, bounds, key_bounds, *longest, scale=scaling, window_size=sides)
    return output[None]


AttentionInterface.register(SEGMENTS, segment_attention)
AttentionMaskInterface.register(SEGMENTS, segment_mask)


def choose_packed_attention(model: PreTrainedModel, vocabulary: int) -> str | None:
    """The first attention implementation under which this model packs without leaking, now set on it, or None.

    Candidates are tried on the model itself: the logits of examples packed in one row must equal, within rounding,
    those of each example alone.
    """
    original: str = model.config._attn_implementation
    candidates = [SEGMENTS, original]
    if _has_flash_attention(model):
        candidates.insert(0, "flash_attention_2")
    with quietly():
        for name in candidates:
            try:
                model.set_attn_implementation(name)
                if model.config._attn_implementation == name and packs_exactly(model, vocabulary, reference=original):
                    return name
            except (NotImplementedError, TypeError, ValueError, RuntimeError, ImportError):
                continue
        model.set_attn_implementation(original)
    return None


def _has_flash_attention(model: PreTrainedModel) -> bool:
    from transformers.utils.import_utils import is_flash_attn_2_available

    return (
        model.device.type == "cuda" and model.dtype in (torch.float16, torch.bfloat16) and is_flash_attn_2_available()
    )


@torch.no_grad()
def packs_exactly(model: PreTrainedModel, vocabulary: int, *, reference: str) -> bool:
    """Whether three random examples have the logits (or scores) in one packed row that each has alone under
    `reference`, within rounding, and the later ones have the same whatever the first one is."""
    generator = torch.Generator().manual_seed(0)
    lengths = (7, 19, 12)
    first, other, *rest = (
        Tokens(torch.randint(0, vocabulary, (length,), generator=generator).int().numpy(), _all_learnt(length))
        for length in (lengths[0], *lengths)
    )
    examples = [first, *rest]
    outputs = _scores if score_head(model) is not None else _logits
    packed_with = model.config._attn_implementation
    was_training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        packed, changed = (
            outputs(model, collate(_Probe(row), range(3), packed=True, filler=0).to(device)).float()
            for row in (examples, [other, *rest])
        )
        model.set_attn_implementation(reference)
        alone = [
            outputs(model, collate(_Probe(examples), [index], packed=False, filler=0).to(device)) for index in range(3)
        ]
    finally:
        model.set_attn_implementation(packed_with)
        model.train(was_training)
    later = len(alone[0])
    exact, close = _tolerances(model)
    return _alike(changed[later:], packed[later:], exact) and _alike(packed, torch.cat(alone).float(), close)


@torch.no_grad()
def shares_exactly(model: PreTrainedModel, vocabulary: int) -> bool:
    """Whether sequences in a packed row have the logits (or scores) that they have there each by itself, within
    rounding, when what they have in common stands in it once; and see that, but not each other.

    Only an attention of this module is given what it needs for that.
    """
    if model.config._attn_implementation != SEGMENTS or vocabulary < 8:
        return False
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int, first: int) -> list[int]:
        return [first, *torch.randint(0, vocabulary, (count - 1,), generator=generator).tolist()]

    begin, other_begin, middle, ends, other_end = (
        drawn(20, 0), drawn(20, 1), drawn(18, 2), [drawn(9, 3), drawn(12, 4), drawn(7, 5)], drawn(12, 4),
    )  # fmt: skip

    def outputs(begin: list[int], end: list[int], shares: bool) -> Tensor:
        rows = [(begin, ends[0]), (begin + middle, end), (begin + middle, ends[2])]
        probe = _Probe([_tokens(before, after) for before, after in rows])
        batch = collate(probe, range(3), packed=True, filler=0, shares=shares).to(next(model.parameters()).device)
        given = (
            _logits(model, batch) if score_head(model) is None else token_scores(model, batch)[batch.targets][:, None]
        )
        return given.float()

    was_training = model.training
    model.eval()
    try:
        shared, apart = outputs(begin, ends[1], True), outputs(begin, ends[1], False)
        elsewhere, elsewhere_apart = outputs(other_begin, ends[1], True), outputs(other_begin, ends[1], False)
        changed = outputs(begin, other_end, True)
    except Exception:  # whatever it is, each can stand by itself
        return False
    finally:
        model.train(was_training)
    exact, close = _tolerances(model)
    first, last = len(ends[0]) - 1, 1 - len(ends[2])
    return (
        _alike(shared, apart, close)
        and _alike(changed[:first], shared[:first], exact)
        and _alike(changed[last:], shared[last:], exact)
        and not torch.equal(elsewhere, shared)
        and _alike(
            elsewhere - shared, elsewhere_apart - apart, 0.5
        )  # of what most layers have in common nothing is left
    )


def _tokens(before: list[int], after: list[int]) -> Tokens:
    """A sequence of which all that comes after the first token of `after` is learnt."""
    ids = torch.tensor(before + after).int().numpy()
    return Tokens(ids, (torch.arange(len(ids)) > len(before)).numpy())


def _tolerances(model: PreTrainedModel) -> tuple[float, float]:
    """For the same kernels on other values, and for other kernels on the same values.

    4-bit products of few rows are computed by kernels of their own, and differ by up to a tenth.
    """
    return (1e-6, 1e-4) if model.dtype == torch.float32 else (4e-3, 0.15)


def _alike(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by a share of their size that rounding explains."""
    return bool((one - other).norm() <= tolerance * max(float(other.norm()), 1e-6))


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    return learnt_logits(model, batch)[0]


def _scores(model: nn.Module, batch: Batch) -> Tensor:
    """Of all tokens, (tokens, 1)."""
    return token_scores(model, batch).flatten()[:, None]


def _all_learnt(length: int) -> Any:
    return torch.ones(length, dtype=torch.bool).numpy()


class _Probe:
    """A few examples in memory, laid out by the same code as real ones."""

    def __init__(self, examples: list[Tokens]) -> None:
        import numpy as np

        self.examples = examples
        self.lengths = np.array([len(example.ids) for example in examples])
        self.weights = self.lengths - 1

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Tokens:
        return self.examples[index]

    def place(self, index: int) -> str:
        return f"probe {index}"
