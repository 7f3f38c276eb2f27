"""How fast a run trains: arithmetic, memory traffic, kernel launches, dequantisation, communication and the optimizer.

A roofline (Williams et al. 2009) with the parts added where they can't overlap. docs/estimates.md derives each term.
"""

from __future__ import annotations

import math

import msgspec

from tutelage_advisor.catalog import Gpu
from tutelage_advisor.estimates import calibration as known
from tutelage_advisor.estimates.activations import saved_per_token
from tutelage_advisor.estimates.architecture import Architecture, lora_parameters
from tutelage_advisor.estimates.memory import Learning, Widths, learning, widths
from tutelage_advisor.estimates.request import EstimateRequest


class Speed(msgspec.Struct, kw_only=True):
    """Rates of one GPU and of all together."""

    flops_per_token: float
    tokens_per_second: float
    "Of all GPUs together."
    utilisation: float
    "Share of the rated FLOP/s that goes into `flops_per_token`."
    seconds: dict[str, float]
    "Seconds of one micro-batch by cause."


def passes(request: EstimateRequest) -> float:
    """Passes of matrix products: forward, gradients of inputs, gradients of learnt weights, recomputation."""
    return 2.0 + (request.adapter == "full") + request.checkpointing


def flops_per_token(architecture: Architecture, request: EstimateRequest) -> float:
    """Floating-point operations that one trained token costs: 2 for each weight and pass (Kaplan et al. 2020, 2.1).

    Causal attention adds 2 x length x query width in each layer and pass: scores and their use, each over half the
    length on average. Frozen weights need no gradients, adapters need all three passes.
    """
    adapters = 0.0
    if request.adapter in ("lora", "qlora"):
        active = sum(one.share * lora_parameters([one], request.rank) for one in architecture.targets(request.targets))
        adapters = 2.0 * active * (3 + request.checkpointing)
    dense = 2.0 * architecture.active_matrix_parameters * passes(request)
    return dense + adapters + attention_flops(architecture, request)


def attention_flops(architecture: Architecture, request: EstimateRequest) -> float:
    """The part of `flops_per_token` that scores and their use take."""
    attended = _attended(architecture, request.seq_len)
    return 2.0 * attended * architecture.query_width * architecture.layers * (3 + request.checkpointing)


def _attended(architecture: Architecture, length: int) -> float:
    if not architecture.window or architecture.window >= length:
        return float(length)
    inside = 2 * architecture.window
    return architecture.window_share * min(length, inside) + (1 - architecture.window_share) * length


def speed(architecture: Architecture, request: EstimateRequest, gpu: Gpu, precision: str, strategy: str) -> Speed:
    """Throughput of a run on one kind of GPU.

    Args:
        precision, strategy: decided, not `auto`; `single` where there is one GPU.
    """
    count = learning(architecture, request)
    width = widths(request, precision)
    tokens = request.micro_batch * request.seq_len
    flops = flops_per_token(architecture, request)
    peak = gpu.peak_tflops(_arithmetic(precision)) * 1e12
    bandwidth = gpu.bandwidth_gb_s.value * 1e9
    reached = _reached(gpu)
    slower = (1 / known.ATTENTION_SHARE - 1) * attention_flops(architecture, request)
    arithmetic = request.tokens * (flops + slower) / (peak * reached)
    traffic = request.tokens * _traffic(architecture, request, precision) / bandwidth
    launches = _launches(architecture, request)
    compute = math.hypot(arithmetic + traffic, launches)
    dequantising = _dequantising(architecture, request, bandwidth)
    communication = _communication(architecture, count, width, request, gpu, strategy)
    exposed = max(0.0, communication - known.OVERLAP * compute)
    stepping = count.learnt * _step_bytes(width) / bandwidth / request.accumulation
    if strategy != "single" and strategy != "ddp":
        stepping /= request.devices
    total = compute + dequantising + exposed + stepping
    return Speed(
        flops_per_token=flops,
        tokens_per_second=tokens * request.devices / total,
        utilisation=request.tokens * flops / total / peak,
        seconds={
            "arithmetic": arithmetic,
            "traffic": traffic,
            "launches": compute - arithmetic - traffic,
            "dequantisation": dequantising,
            "communication": exposed,
            "optimizer": stepping,
        },
    )


def forward_seconds(architecture: Architecture, request: EstimateRequest, gpu: Gpu, precision: str) -> float:
    """Seconds of one GPU for each token that goes through the model once, with nothing kept, in full micro-batches."""
    dense = 2.0 * architecture.active_matrix_parameters
    attention = 2.0 * _attended(architecture, request.seq_len) * architecture.query_width * architecture.layers
    slower = (1 / known.ATTENTION_SHARE - 1) * attention
    arithmetic = (dense + attention + slower) / (gpu.peak_tflops(_arithmetic(precision)) * 1e12 * _reached(gpu))
    bandwidth = gpu.bandwidth_gb_s.value * 1e9
    launches = (_launches(architecture, request) + _dequantising(architecture, request, bandwidth)) / passes(request)
    return arithmetic + launches / request.tokens


def step_seconds(
    architecture: Architecture, request: EstimateRequest, gpu: Gpu, precision: str, rows: int, context: float
) -> float:
    """Seconds of a step of decoding: one more token of each of `rows` sequences of `context` tokens.

    The larger of reading all weights and of computing with them, and reading the caches (Pope et al. 2022, section 3),
    but no less than starting the kernels takes.
    """
    bandwidth = gpu.bandwidth_gb_s.value * 1e9
    reached = bandwidth * known.DECODING_BANDWIDTH
    width = 4 if precision == "fp32" else 2
    computing = 2.0 * architecture.active_matrix_parameters * rows
    computing /= gpu.peak_tflops(_arithmetic(precision)) * 1e12 * _reached(gpu)
    reading = _weights_read(architecture, request, rows) * width / reached
    cache = rows * architecture.cache_bytes(round(context), width) / reached
    launches = _launches(architecture, request) / passes(request)
    moving = max(reading, computing) + cache
    return math.hypot(moving, launches) + _dequantising(architecture, request, bandwidth) / passes(request)


def _weights_read(architecture: Architecture, request: EstimateRequest, rows: int) -> float:
    """Weights that a step of decoding reads as they are; 4-bit ones are counted where they are unpacked."""
    dense = sum(linear.weights for linear in architecture.linears)
    if architecture.head is None:
        dense += architecture.vocabulary * architecture.hidden
    if request.adapter == "qlora":
        dense -= architecture.quantizable()
    experts = architecture.experts
    return dense + (experts.parameters * min(1.0, experts.active * rows / experts.number) if experts else 0.0)


def _reached(gpu: Gpu) -> float:
    return gpu.achievable.value if gpu.achievable else known.ACHIEVABLE


def _arithmetic(precision: str) -> str:
    return {"fp32": "fp32", "fp16-true": "fp16"}.get(precision, "bf16")


def _traffic(architecture: Architecture, request: EstimateRequest, precision: str) -> float:
    """Bytes that kernels other than matrix products move for one token, in proportion to what autograd would save."""
    plain = msgspec.structs.replace(
        request, adapter="full", reward_model=None, dropout=0.0, attention="flash", upcast=False
    )
    wide = "fp32" if precision == "fp32" else "bf16-true"
    moved = saved_per_token(architecture, plain, wide) * architecture.layers
    if request.adapter in ("lora", "qlora"):  # the input is cast and dropped out, the update added to the output
        reads = 1 + (request.dropout > 0)
        targets = architecture.targets(request.targets)
        moved += known.ADAPTER_TRAFFIC * sum(
            (one.inputs * reads + one.outputs) * one.count * one.share for one in targets
        )
    fused = known.COMPILED_TRAFFIC if request.compile else 1.0
    logits = architecture.vocabulary * known.LOGIT_BYTES[request.loss] * known.LOGIT_TRAFFIC
    return known.TRAFFIC * moved * passes(request) * fused + logits


def _launches(architecture: Architecture, request: EstimateRequest) -> float:
    """Seconds that a micro-batch takes at least, because Python starts every kernel."""
    adapted = 0.0
    if request.adapter in ("lora", "qlora"):
        adapted = known.LAUNCH_ADAPTER * sum(
            one.count if one.share == 1 else architecture.layers for one in architecture.targets(request.targets)
        )
    fused = 0.5 if request.compile else 1.0
    return (architecture.layers * known.LAUNCH_LAYER + adapted) * passes(request) * fused


def _dequantising(architecture: Architecture, request: EstimateRequest, bandwidth: float) -> float:
    """Every pass unpacks every matrix: reads half a byte, writes two, and the product reads two."""
    if request.adapter != "qlora":
        return 0.0
    return known.DEQUANTISATION * architecture.quantizable() * 4.5 * passes(request) / bandwidth


def _communication(
    architecture: Architecture, count: Learning, width: Widths, request: EstimateRequest, gpu: Gpu, strategy: str
) -> float:
    """Seconds of a micro-batch's share of communication, were nothing hidden behind arithmetic."""
    frozen = count.base - count.base_learnt
    stored = frozen * width.compute
    if request.adapter == "qlora":
        packed = architecture.quantizable()
        stored = packed * known.NF4_BYTES + (frozen - packed) * width.compute
    stored += count.learnt * width.compute
    gradients = count.learnt * width.gradient
    moved = 0.0
    if strategy in ("fsdp", "zero3"):  # gathered for each pass through the model, scattered once
        moved = stored * (2 + (strategy == "zero3" and request.checkpointing)) + gradients
    elif strategy != "single":
        moved = 2 * gradients / request.accumulation
    apart = (request.devices - 1) / request.devices
    seconds = moved * apart / (_link_speed(gpu, request) * 1e9)
    if request.offload:
        seconds += stored * 2 / (known.HOST_GB_S * 1e9)
    return seconds


def _link_speed(gpu: Gpu, request: EstimateRequest) -> float:
    """GB/s that one GPU receives from the others: half of both directions, and what collectives reach of it."""
    share = known.PCIE_SHARE if gpu.link.kind.startswith("PCIe") else known.NVLINK_SHARE
    inside = gpu.link.gb_s.value / 2 * share
    return min(inside, request.network_gb_s * known.NVLINK_SHARE) if request.nodes > 1 else inside


def _step_bytes(width: Widths) -> float:
    """What the optimizer reads and writes for one weight: weight and states twice, its gradient and a norm of it."""
    return 2 * width.learnt + 2 * width.state + 2 * width.gradient
