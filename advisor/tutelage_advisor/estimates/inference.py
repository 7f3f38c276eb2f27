"""Memory for serving a model: weights and the key-value cache."""

from __future__ import annotations

from typing import Literal

import msgspec

from tutelage_advisor.estimates import calibration as known
from tutelage_advisor.estimates.architecture import Architecture
from tutelage_advisor.estimates.memory import GIB

WeightFormat = Literal["bf16", "fp16", "fp32", "int8", "nf4"]
_BYTES: dict[str, float] = {"bf16": 2, "fp16": 2, "fp32": 4, "int8": 1}


class InferenceMemory(msgspec.Struct, kw_only=True):
    """GiB of one GPU that serves the whole model."""

    peak_gib: float
    weights_gib: float
    cache_gib: float
    overhead_gib: float
    cache_kib_per_token: float
    "KiB that one more token of context takes."


def cache_bytes_per_token(architecture: Architecture, bytes_each: float = 2) -> float:
    """Keys and values of all layers: 2 x key-value heads x head size (Shazeer 2019), or DeepSeek-V2's latent."""
    return architecture.layers * architecture.cached * bytes_each


def inference_memory(
    architecture: Architecture,
    context: int,
    batch: int = 1,
    weights: WeightFormat = "bf16",
    cache_bytes: float = 2,
) -> InferenceMemory:
    """Memory to serve `batch` sequences of `context` tokens at once.

    Layers with a sliding window keep no more than the window.

    Raises:
        ValueError: when context or batch are not positive.
    """
    if context < 1 or batch < 1:
        raise ValueError("context and batch must be at least 1")
    held = _weights(architecture, weights)
    cache = batch * architecture.cache_bytes(context, cache_bytes)
    step = batch * architecture.vocabulary * 4 + context * architecture.hidden * 2 * 4
    overhead = known.CONTEXT_GIB * GIB + known.FRAGMENTATION * cache + step
    return InferenceMemory(
        peak_gib=(held + cache + overhead) / GIB,
        weights_gib=held / GIB,
        cache_gib=cache / GIB,
        overhead_gib=overhead / GIB,
        cache_kib_per_token=cache_bytes_per_token(architecture, cache_bytes) / 1024,
    )


def _weights(architecture: Architecture, weights: WeightFormat) -> float:
    if weights == "nf4":
        packed = architecture.quantizable()
        return packed * known.NF4_BYTES + (architecture.parameters - packed) * 2
    if weights == "int8":
        packed = architecture.quantizable()
        return packed + (architecture.parameters - packed) * 2.0
    return architecture.parameters * _BYTES[weights]
