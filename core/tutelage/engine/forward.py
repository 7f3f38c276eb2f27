"""One forward pass of a language model over a batch, with logits for learnt tokens only.

Most of a small model's work is the output layer. Prompts are not learnt, so their logits are never computed where the
model can leave them out (transformers' `logits_to_keep`).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from tutelage.engine.kernels.likelihood import summed_losses, token_losses
from tutelage.models.heads import take_scores

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from tutelage.data.batches import Batch


def learnt_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits that predict the learnt tokens of a batch, and those tokens.

    Returns:
        logits (learnt, vocabulary) in the model's dtype, and targets (learnt,).
    """
    _, logits, targets = _at_learnt(model, batch)
    return logits, targets


def _at_learnt(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What a model gives as logits, as a whole; what of it predicts the learnt tokens (learnt, …); those tokens."""
    wanted = batch.targets
    columns = wanted.any(dim=0).nonzero().squeeze(1)
    keep = {"logits_to_keep": columns - 1} if keeps_logits(model) and not _adds_tokens(model) else {}
    given: Tensor = model(**_inputs(batch), **keep).logits
    there = given if keep else given[:, -batch.ids.shape[1] :][:, columns - 1]
    return given, _chosen(there, wanted[:, columns]), _chosen(batch.ids[:, columns], wanted[:, columns])


def _chosen(values: Tensor, wanted: Tensor) -> Tensor:
    """The entries of `values` (rows, columns, …) that are `wanted` (rows, columns); one row has no others."""
    return values[0] if len(values) == 1 else values[wanted]


def learnt_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The negative log-likelihood of the learnt tokens of a batch, summed, in float32.

    The logits are never held as a whole where the model ends in a plain output layer.
    """
    found = _before_head(model, batch)
    if found is None:
        return summed_cross_entropy(*learnt_logits(model, batch))
    hidden, targets, head = found
    if head.bias is None:
        return summed_losses(hidden, head.weight, targets)
    if head.weight.requires_grad or head.bias.requires_grad:
        return summed_cross_entropy(F.linear(hidden, head.weight, head.bias), targets)
    return token_losses(hidden, head.weight, head.bias, targets)[0].sum()


def _before_head(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Any] | None:
    """What the output layer would be given for the learnt tokens (learnt, hidden), those tokens, and the layer.

    For the time of a forward pass the layer gives back what it is given. Where the model then returns just that, its
    logits are the layer's output and nothing else; a model that caps or scales them gives None, as does one whose
    layer is no plain one, or sharded.
    """
    base: Any = base_of(model)
    head: Any = base.get_output_embeddings()
    plain: bool = type(head) is torch.nn.Linear and "forward" not in vars(head) and not isinstance(head.weight, DTensor)
    if not plain or _plain_ends.get(base) is False:
        return None
    given: list[Tensor] = []

    def lifted(hidden: Tensor) -> Tensor:
        given.append(hidden)
        return hidden

    head.forward = lifted
    try:
        returned, hidden, targets = _at_learnt(model, batch)
    finally:
        del head.forward
    _plain_ends[base] = len(given) == 1 and returned is given[0]
    return (_in_compute_dtype(hidden, head.weight), targets, head) if _plain_ends[base] else None


_plain_ends: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"Whether a model returns what its output layer gives, as far as it was tried."


def _in_compute_dtype(hidden: Tensor, weight: Tensor) -> Tensor:
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype)


def _inputs(batch: Batch) -> dict[str, Any]:
    """What a transformers model is given to see each sequence of a batch by itself."""
    bounds = batch.bounds
    if bounds is None:
        return {"input_ids": batch.ids, "attention_mask": batch.attention_mask, "use_cache": False}
    key_bounds = bounds if batch.key_bounds is None else batch.key_bounds
    given = {
        "input_ids": batch.ids,
        "position_ids": batch.positions,
        "use_cache": False,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": key_bounds,
        "max_length_q": int(bounds.diff().max()),
        "max_length_k": int(key_bounds.diff().max()),
    }
    return given if batch.keys is None else {**given, "seen_keys": batch.keys}


def summed_cross_entropy(logits: Tensor, targets: Tensor, chunk: int = 1024) -> Tensor:
    """The negative log-likelihood of `targets` (n,) under `logits` (n, vocabulary), summed, in float32.

    Chunks bound the size of the float32 copy of the logits.
    """
    if not len(targets):
        return 0.0 * logits.sum().float()  # an empty share of a step still belongs to the graph
    total = logits.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        total = total + F.cross_entropy(logits[part].float(), targets[part], reduction="sum")
    return total


def sequence_log_probabilities(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """How probable a model finds each sequence's learnt tokens.

    Returns:
        the log-probability summed over a sequence's learnt tokens, and their number; both (sequences,) in float32.
    """
    each, _ = _learnt_log_probs(model, batch)
    owner = owners(batch)
    if not batch.sequences:
        return each.sum() + each.new_zeros(0), each[:0]
    total = each.new_zeros(batch.sequences).index_add(0, owner, each)
    return total, torch.bincount(owner, minlength=batch.sequences).to(total)


def token_log_probabilities(
    model: nn.Module,
    batch: Batch,
    temperature: float = 1.0,
    *,
    entropy: bool = True,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """How probable a model finds each learnt token.

    Returns:
        log-probabilities, the sequence that each token belongs to, and the entropy (nats) of the distribution that it
        was predicted by, without gradient unless it is asked for, or 0 where it is not wanted; all (learnt,).
    """
    each, entropies = _learnt_log_probs(model, batch, temperature, entropy=entropy, entropy_gradient=entropy_gradient)
    return each, owners(batch), entropies


def _learnt_log_probs(
    model: nn.Module,
    batch: Batch,
    temperature: float = 1.0,
    *,
    entropy: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """The log-probability of each learnt token, and the entropy where it is wanted, both (learnt,) in float32."""
    found = None if entropy_gradient else _before_head(model, batch)
    if found is not None:
        hidden, targets, head = found
        if not any(parameter.requires_grad for parameter in head.parameters()):
            losses, entropies = token_losses(hidden, head.weight, head.bias, targets, temperature, entropy=entropy)
            return -losses, entropies
        logits = F.linear(hidden, head.weight, head.bias)
    else:
        logits, targets = learnt_logits(model, batch)
    if temperature != 1.0:
        logits = logits / temperature
    each = -_cross_entropies(logits, targets)
    if not len(targets):
        each = each + 0.0 * logits.sum().float()
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropies = _entropies(logits) if entropy else torch.zeros_like(each)
    return each, entropies


def sequence_scores(model: nn.Module, batch: Batch) -> Tensor:
    """What a model with a score head gives each sequence, read at its last token: (sequences,), float32."""
    return _at_last(token_scores(model, batch), batch)


def token_scores(model: nn.Module, batch: Batch) -> Tensor:
    """What a model with a score head gives at every position of a batch: (rows, tokens), float32."""
    # The model as a whole is asked, and what it returns stays in the graph, so that sharded weights are gathered.
    given: Tensor = model(**_inputs(batch)).logits
    return take_scores(model) + 0.0 * given.sum().float()


def _at_last(values: Tensor, batch: Batch) -> Tensor:
    """Of `values` (rows, tokens, …), those at each sequence's last token: (sequences, …)."""
    if batch.bounds is not None:
        last = values[0, (batch.sequence_bounds[1:] - 1).long()]
    else:
        assert batch.attention_mask is not None
        last = values[torch.arange(len(values), device=values.device), batch.attention_mask.sum(1) - 1]
    return last[: batch.sequences] + 0.0 * last.sum() if not batch.sequences else last


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """The last layer's output, after its norm, at every position of a batch: (rows, tokens, hidden)."""
    trunk: Any = base_of(model).base_model
    hidden: Tensor = trunk(**_inputs(batch)).last_hidden_state
    return hidden


def owners(batch: Batch) -> Tensor:
    """The sequence that each learnt token of a batch belongs to, in the order of `learnt_logits`: (learnt,)."""
    if batch.bounds is None:
        return batch.targets.nonzero()[:, 0]
    starts = batch.sequence_bounds[1:-1].long()
    return torch.bucketize(batch.targets[0].nonzero().squeeze(1), starts, right=True)


def _cross_entropies(logits: Tensor, targets: Tensor, chunk: int = 1024) -> Tensor:
    """Negative log-likelihoods of `targets` (n,) under `logits` (n, vocabulary), in float32: (n,)."""
    parts = [
        F.cross_entropy(logits[start : start + chunk].float(), targets[start : start + chunk], reduction="none")
        for start in range(0, len(targets), chunk)
    ]
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


def _entropies(logits: Tensor, chunk: int = 1024) -> Tensor:
    parts = [
        torch.distributions.Categorical(logits=logits[start : start + chunk].float()).entropy()
        for start in range(0, len(logits), chunk)
    ]
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model within an adapter's wrapper, or the model itself."""
    wrapped: Any = model
    base: PreTrainedModel = wrapped.get_base_model() if hasattr(model, "get_base_model") else wrapped
    return base


def keeps_logits(model: nn.Module) -> bool:
    """Whether the model's forward takes `logits_to_keep`."""
    forward: Any = type(base_of(model)).forward
    return "logits_to_keep" in inspect.signature(forward).parameters


def _adds_tokens(model: nn.Module) -> bool:
    """Whether the adapter puts virtual tokens before every row (PEFT's prompt learning)."""
    config = getattr(model, "active_peft_config", None)
    return bool(getattr(config, "is_prompt_learning", False))
