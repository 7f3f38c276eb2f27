"""What the forward pass keeps for the backward pass.

Every tensor that autograd saves in a decoder layer, as transformers and PEFT compute it, by what learns and in which
precision. Counted by hand and checked against torch's MemTracker on real models; the idea is that of Korthikanti et al.
(2022, section 4.1), whose count is for one layout of GPT in 16 bits.
"""

from __future__ import annotations

import msgspec

from tutelage_advisor.estimates import calibration as known
from tutelage_advisor.estimates.architecture import Architecture
from tutelage_advisor.estimates.request import ONLINE, EstimateRequest


class Activations(msgspec.Struct, frozen=True):
    """Bytes on one GPU."""

    kept: float
    "What the forward pass leaves: of all layers, or with checkpointing the inputs of all layers."
    one_layer: float
    "What the backward pass of one layer adds: its recomputed activations, and gradients."
    logits: float
    "The logits and what the loss makes of them; gone before the first layer's backward pass."
    ending: float
    "What is left when the backward pass is in the first layer."

    @property
    def layers(self) -> float:
        """The most that layers take."""
        return self.kept + self.one_layer

    @property
    def beginning(self) -> float:
        """When the backward pass begins: in the loss, or in the last layer."""
        return self.kept + max(self.logits, self.one_layer)


def activations(architecture: Architecture, request: EstimateRequest, precision: str) -> Activations:
    """Activations of one micro-batch on one GPU."""
    tokens = request.tokens
    compiled = known.COMPILED_ACTIVATIONS if request.compile else 1.0
    per_token = saved_per_token(architecture, request, precision) * compiled
    layer = (per_token + _scores(architecture, request, precision)) * tokens
    working = _working(architecture, precision) * tokens
    logits = _logits(architecture, request, tokens)
    if request.checkpointing:
        stream = architecture.hidden * _stream_bytes(request, precision) * tokens
        return Activations(architecture.layers * stream, layer + working, logits, layer + working)
    return Activations(architecture.layers * layer, working, logits, layer + working)


def _stream_bytes(request: EstimateRequest, precision: str) -> int:
    """Bytes of the residual stream: as the embedding that it starts from."""
    mixed_full = precision == "bf16" and request.adapter == "full" and not request.strategy.startswith(("zero", "fsdp"))
    return 4 if precision == "fp32" or mixed_full or request.upcast else 2


def saved_per_token(architecture: Architecture, request: EstimateRequest, precision: str) -> float:
    """Bytes that one layer saves for one token, attention scores left out."""
    width = 4 if request.upcast else _width(precision)
    return (
        _norms(architecture, request, precision)
        + _inputs(architecture, request, precision)
        + _attention(architecture, width)
        + architecture.mlp_saved * architecture.mlp_width * width
    )


def _width(precision: str) -> int:
    return 4 if precision == "fp32" else 2


def _norms(architecture: Architecture, request: EstimateRequest, precision: str) -> float:
    """Inputs of the norms, in float32 where something upcasts; the normed copy too where its weight learns."""
    width = _width(precision)
    mixed = precision == "bf16"
    saved = 4 if architecture.norm_upcasts or mixed else width
    if request.adapter == "full" and architecture.norm_upcasts:
        saved += 4 if mixed else width
    return architecture.norms * architecture.hidden * saved


def _inputs(architecture: Architecture, request: EstimateRequest, precision: str) -> float:
    """Inputs of the layers that learn. Autocast makes a copy for each layer; without it layers share one."""
    if request.adapter == "prompt":
        return 0.0
    learning = architecture.targets("all-linear" if request.adapter == "full" else request.targets)
    learning = [linear for linear in learning if linear.kind != "head"]
    width = _width(precision)
    separate = precision == "bf16" or request.dropout > 0
    seen: set[str] = set()
    total = 0.0
    for linear in learning:
        share = linear.share * linear.count / architecture.layers
        if separate or not linear.shares_input or linear.shares_input not in seen:
            total += share * linear.inputs * width
        seen.add(linear.shares_input)
        if request.dropout and request.adapter != "full":
            total += share * linear.inputs  # the mask, a byte each
    return total + _expert_inputs(architecture, request, width)


def _expert_inputs(architecture: Architecture, request: EstimateRequest, width: int) -> float:
    """What experts read and write when they learn: each active expert's copy of the token, and its product."""
    experts = architecture.experts
    if experts is None or request.adapter != "full":
        return 0.0
    share = experts.layers / architecture.layers
    return share * experts.active * (architecture.hidden + experts.width) * width


def _attention(architecture: Architecture, width: int) -> float:
    """Queries, keys and values after the rotation, and the output."""
    return width * (2 * architecture.query_width + 2 * architecture.key_value_width)


def _scores(architecture: Architecture, request: EstimateRequest, precision: str) -> float:
    """Bytes of one token's attention scores where they are written out: the softmax in float32, and 16-bit copies."""
    written_out = request.attention == "eager" or (request.attention == "auto" and architecture.eager)
    if not written_out:
        return 0.0
    return architecture.heads * request.seq_len * (4 + 2 * _width(precision))


def _working(architecture: Architecture, precision: str) -> float:
    """Bytes of gradients of activations that are alive together, for one token."""
    return _width(precision) * (2 * architecture.mlp_width + 2 * architecture.hidden)


def _logits(architecture: Architecture, request: EstimateRequest, tokens: int) -> float:
    """Logits of what is learnt: of answers that were drawn, which `new_tokens` says, else of everything.

    Phases that draw answers also take the entropy of each distribution, piece by piece: four copies in float32.
    """
    drawn = request.phase in ONLINE and request.new_tokens is not None
    learnt = min(tokens, request.micro_batch * (request.new_tokens or 0)) if drawn else tokens
    held = min(learnt, known.LOSS_CHUNK) if request.chunked_loss else learnt
    entropy = 16 * min(learnt, known.ENTROPY_CHUNK) if drawn else 0
    return architecture.vocabulary * (held * known.LOGIT_BYTES[request.loss] + entropy)
