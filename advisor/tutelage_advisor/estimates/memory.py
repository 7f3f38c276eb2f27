"""Peak memory of one GPU while training: what is held all the time, and the largest of three moments.

The moments: the backward pass begins (all activations and the logits are there, gradients not yet, unless they are
accumulated); it ends (all gradients are there, one layer's activations are); the optimizer steps. docs/estimates.md
gives every formula with its source.
"""

from __future__ import annotations

import msgspec

from tutelage_advisor.estimates import calibration as known
from tutelage_advisor.estimates.activations import Activations, activations
from tutelage_advisor.estimates.architecture import Architecture, lora_parameters
from tutelage_advisor.estimates.request import MAKING, ONLINE, EstimateRequest

GIB = 2**30


class Memory(msgspec.Struct, kw_only=True):
    """GiB of one GPU. The parts do not all peak together, so that `peak_gib` may be less than their sum."""

    peak_gib: float
    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float
    logits_gib: float
    overhead_gib: float
    cache_gib: float = 0.0
    "Keys and values while answers are drawn."
    others_gib: float = 0.0
    "What is held frozen beside the model and its adapter: a reference, a reward model."

    @property
    def allocated_gib(self) -> float:
        """What PyTorch's allocator counts as allocated at the peak: no fragmentation, no CUDA context."""
        return self.peak_gib - self.overhead_gib


class Learning(msgspec.Struct, frozen=True):
    """How many parameters there are and how many of them learn."""

    total: int
    base: int
    base_learnt: int
    added: int

    @property
    def learnt(self) -> int:
        """Parameters that the optimizer updates."""
        return self.base_learnt + self.added


def learning(architecture: Architecture, request: EstimateRequest) -> Learning:
    """Count parameters; see `architecture.lora_parameters` for LoRA's.

    A head of one score learns beside an adapter, and PPO's value model learns as the policy does: by an adapter of its
    own on the same base, or as a model of its own without output layer.
    """
    base = architecture.parameters
    if request.phase in MAKING:
        return Learning(base + adapter_parameters(architecture, request), base, 0, 0)
    if request.adapter == "full":
        value = value_parameters(architecture) if request.phase == "ppo" else 0
        return Learning(base + value, base, base, value)
    added = adapter_parameters(architecture, request)
    if request.phase == "ppo":
        added = 2 * added + architecture.hidden
    elif request.phase == "reward_model":
        added += architecture.hidden
    return Learning(base + added, base, 0, added)


def adapter_parameters(architecture: Architecture, request: EstimateRequest) -> int:
    """Parameters of one adapter; none where all weights learn."""
    if request.adapter == "full":
        return 0
    if request.adapter == "prompt":
        return request.virtual_tokens * architecture.hidden
    return lora_parameters(architecture.targets(request.targets), request.rank)


def value_parameters(architecture: Architecture) -> int:
    """Parameters of a model with a head of one score in the place of its output layer."""
    return architecture.parameters - (architecture.head.parameters if architecture.head else 0) + architecture.hidden


class Widths(msgspec.Struct, frozen=True):
    """Bytes of a number in each role."""

    frozen: float
    learnt: float
    compute: float
    gradient: float
    state: float
    cast: float
    "Copies of learnt weights that autocast makes and keeps for the backward pass."


def widths(request: EstimateRequest, precision: str) -> Widths:
    """Bytes by role, for a precision that is already decided.

    In DeepSpeed's ZeRO stages weights and gradients are 16 bits wide, and the optimizer holds the float32 weights
    (Rajbhandari et al. 2020, section 3.1: 2 + 2 + 12 bytes).
    """
    moments = {"adamw": 2, "adamw-foreach": 2, "muon": 1, "sgd": 0, "sgd-momentum": 1, "lion": 1}
    if precision in ("bf16-true", "fp16-true"):
        width = 2.0
        deep = Widths(2, 2, 2, 2, width * moments.get(request.optimizer, 0), 0)
    elif precision == "fp32":
        deep = Widths(4, 4, 4, 4, 4 * moments.get(request.optimizer, 0), 0)
    elif request.strategy.startswith("zero"):
        deep = Widths(2, 2, 2, 2, 4 + 4 * moments.get(request.optimizer, 0), 0)
    else:
        deep = Widths(2, 4, 2, 4, 4 * moments.get(request.optimizer, 0), 2)
    if request.optimizer == "adamw-8bit":
        deep = msgspec.structs.replace(deep, state=deep.state + known.ADAM_8BIT_BYTES)
    elif request.optimizer == "adafactor":
        deep = msgspec.structs.replace(deep, state=deep.state + 0.02)
    return deep


def memory(architecture: Architecture, request: EstimateRequest, precision: str, strategy: str) -> Memory:
    """Peak memory of one GPU.

    Args:
        precision, strategy: decided, not `auto`; `single` where there is one GPU.
    """
    if request.phase in MAKING:
        return _answering_alone(architecture, request, precision)
    count = learning(architecture, request)
    width = widths(request, precision)
    share = _Shares(strategy, request.devices)
    frozen, learnt = _weights(architecture, request, count, width)
    weights = (frozen + learnt) * share.weights
    gathered = _gathered(architecture, frozen + learnt, request, share, width)
    gradients = count.learnt * width.gradient * share.gradients
    if strategy == "ddp":
        gradients *= 2  # DistributedDataParallel's buckets are a second copy
    elif strategy in ("zero1", "zero2"):
        gradients += min(known.BUCKET_BYTES, 2 * count.learnt * width.gradient)
    optimizer = (count.learnt * width.state + _beside_muon(architecture, request, width)) * share.optimizer
    others = _others(architecture, request, count, width) * share.weights
    if request.offload:
        weights, optimizer, gradients = 0.0, 0.0, min(gradients, 2 * architecture.layer_parameters * width.gradient)
    held = activations(architecture, request, precision)
    casts = 0.0 if share.weights < 1 else count.base_learnt * width.cast
    casts += _merged_experts(architecture, request, width)
    step = _step(count, width, request, strategy, share)
    cache = _drawing(architecture, request, precision)
    beginning = held.beginning + casts + (gradients if request.accumulates else 0.0)
    ending = gradients + held.ending
    stepping = gradients + step
    valuing = held.layers + casts + gradients if request.phase == "ppo" else 0.0  # the policy's gradients are there
    moment = max(beginning, ending, stepping, valuing, cache)
    fixed = weights + gathered + optimizer + others
    allocated = fixed + moment
    overhead = known.FRAGMENTATION * (moment + gathered) + known.CONTEXT_GIB * GIB
    found = _in_gib(allocated + overhead, weights + gathered + casts, gradients, optimizer, held, step, overhead)
    return msgspec.structs.replace(found, cache_gib=cache / GIB, others_gib=others / GIB)


def _in_gib(
    peak: float, weights: float, gradients: float, optimizer: float, held: Activations, step: float, overhead: float
) -> Memory:
    return Memory(
        peak_gib=peak / GIB,
        weights_gib=weights / GIB,
        gradients_gib=gradients / GIB,
        optimizer_gib=(optimizer + step) / GIB,
        activations_gib=held.layers / GIB,
        logits_gib=held.logits / GIB,
        overhead_gib=overhead / GIB,
    )


class _Shares:
    """Which part of each kind of state one GPU holds (Rajbhandari et al. 2020, figure 1)."""

    def __init__(self, strategy: str, devices: int) -> None:
        part = 1 / devices
        self.weights = part if strategy in ("fsdp", "zero3") else 1.0
        self.gradients = part if strategy in ("fsdp", "zero3", "zero2") else 1.0
        self.optimizer = part if strategy in ("fsdp", "zero3", "zero2", "zero1") else 1.0


def _others(architecture: Architecture, request: EstimateRequest, count: Learning, width: Widths) -> float:
    """Frozen copies beside the model: on a frozen base the reference is the base itself, and costs nothing.

    Where all weights learn, the reference of ppo and grpo is a copy as wide as they are. dpo asks the reference before
    the first step, when it is still the model itself.
    """
    if request.phase not in ONLINE:
        return 0.0
    copied = count.base * width.learnt if request.adapter == "full" and request.reference else 0.0
    reward = {
        "shared": 4.0 * (adapter_parameters(architecture, request) + architecture.hidden),
        "separate": width.frozen * value_parameters(architecture),
    }
    return copied + reward.get(request.reward_model or "none", 0.0)


def _drawing(architecture: Architecture, request: EstimateRequest, precision: str) -> float:
    """Bytes while answers are drawn: the key-value cache, and the logits of a step with what sampling makes of them."""
    if request.phase not in ONLINE | MAKING:
        return 0.0
    rows = request.micro_batch * (known.SAMPLED_AT_ONCE if request.phase in ONLINE else 1)
    width = 4 if precision == "fp32" else 2
    return rows * (architecture.cache_bytes(request.seq_len, width) + 12 * architecture.vocabulary)


def _answering_alone(architecture: Architecture, request: EstimateRequest, precision: str) -> Memory:
    """Of phases that learn nothing: weights, the cache, and a layer's activations of the prompts that are read."""
    width = widths(request, precision)
    frozen = architecture.parameters * width.compute
    if request.adapter == "qlora":
        packed = architecture.quantizable()
        frozen = packed * known.NF4_BYTES + (architecture.parameters - packed) * width.compute
    weights = frozen + 4.0 * adapter_parameters(architecture, request)
    cache = _drawing(architecture, request, precision)
    layer = 4 * width.compute * (architecture.hidden + architecture.mlp_width) * request.tokens
    overhead = known.FRAGMENTATION * (cache + layer) + known.CONTEXT_GIB * GIB
    return Memory(
        peak_gib=(weights + cache + layer + overhead) / GIB,
        weights_gib=weights / GIB,
        gradients_gib=0.0,
        optimizer_gib=0.0,
        activations_gib=layer / GIB,
        logits_gib=0.0,
        overhead_gib=overhead / GIB,
        cache_gib=cache / GIB,
    )


def _beside_muon(architecture: Architecture, request: EstimateRequest, width: Widths) -> float:
    """Bytes of AdamW's second state for what Muon leaves to it: embeddings, output layer, norms."""
    if request.optimizer != "muon" or request.adapter != "full":
        return 0.0
    head = architecture.head.parameters if architecture.head else 0
    return width.state * (architecture.embedding + head + architecture.other)


def _weights(
    architecture: Architecture, request: EstimateRequest, count: Learning, width: Widths
) -> tuple[float, float]:
    """Bytes of the frozen and of the learnt weights, unsharded."""
    learnt = count.learnt * width.learnt
    frozen = count.base - count.base_learnt
    if request.adapter != "qlora":
        return frozen * width.frozen, learnt
    packed = architecture.quantizable()
    nf4 = known.NF4_BYTES if request.double_quantization else known.NF4_BYTES_SINGLE
    return packed * nf4 + (frozen - packed) * (4 if request.upcast else width.frozen), learnt


def _gathered(
    architecture: Architecture, stored: float, request: EstimateRequest, share: _Shares, width: Widths
) -> float:
    """Weights that are whole for a moment: of two layers and the embeddings when sharded; a dequantised matrix."""
    matrix = 0.0
    if request.adapter == "qlora":
        matrix = 2 * max(linear.inputs * linear.outputs for linear in architecture.linears if linear.kind != "head")
    if share.weights == 1.0:
        return matrix
    layer = architecture.layer_parameters * width.compute
    constants = 0.0
    if (
        request.adapter == "qlora"
    ):  # layers are gathered in 4 bits; quantisation constants are no parameters, so never sharded
        nf4 = known.NF4_BYTES if request.double_quantization else known.NF4_BYTES_SINGLE
        layer = architecture.layer_parameters * nf4
        constants = architecture.quantizable() * (nf4 - 0.5)
    ends = (architecture.embedding + (architecture.head.parameters if architecture.head else 0)) * width.compute
    whole = 2 * layer + ends + constants
    missing = stored if request.offload else stored * (1 - share.weights)
    return min(whole, missing / (1 + known.FRAGMENTATION)) + matrix


def _merged_experts(architecture: Architecture, request: EstimateRequest, width: Widths) -> float:
    """Expert weights with their updates added, which PEFT's wrapper of stacked weights makes in every forward pass."""
    experts = architecture.experts
    if experts is None or request.adapter not in ("lora", "qlora"):
        return 0.0
    if not any(target.share < 1 for target in architecture.targets(request.targets)):
        return 0.0
    whole = experts.parameters * width.compute
    return whole / experts.layers if request.checkpointing else whole


def _step(count: Learning, width: Widths, request: EstimateRequest, strategy: str, share: _Shares) -> float:
    """What the optimizer needs while it steps."""
    if strategy in ("zero1", "zero2", "zero3") and not request.offload:
        part = count.learnt * share.optimizer
        at_once = min(part, known.SUBGROUP) if strategy == "zero3" else part
        return at_once * (2 + 4)  # flattened 16-bit gradients and their float32 copy
    if request.optimizer == "adamw-foreach":
        return count.learnt * width.learnt * share.optimizer
    return 0.0
