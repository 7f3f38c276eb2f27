"""How long a GPU works on one call: the prompt is bound by arithmetic, the answer by memory bandwidth.

Reading a prompt of p tokens takes 2 P p FLOPs for P parameters (Kaplan et al. 2020, section 2.1). Writing one token for
a batch of b sequences reads all weights once, 2 P bytes in 16 bits, or computes 2 P b FLOPs, whichever takes longer
(Pope et al. 2022, section 3; the roofline model).
"""

from __future__ import annotations

import math

ARITHMETIC = 0.5
"Share of a GPU's dense 16-bit FLOP/s that reading prompts reaches. Judgement: matrix products alone reach 51 to 87%."

BANDWIDTH = 0.7
"Share of a GPU's memory bandwidth that writing reaches. Judgement."

BATCH = 16
"Sequences that are written together under load. Judgement; serving engines go far above it."

ROOM = 1.25
"Memory for weights, caches and activations over that of the weights alone. Judgement."


def gpu_seconds(
    parameters: float, prompt_tokens: float, output_tokens: float, flops: float, bytes_per_second: float
) -> float:
    """GPU-seconds of one call at full load, whatever the number of GPUs that share the model.

    Args:
        parameters: of the model, those that one token passes through.
        flops: the GPU's dense 16-bit FLOP/s.
        bytes_per_second: the GPU's memory bandwidth.
    """
    reading = 2 * parameters * prompt_tokens / (ARITHMETIC * flops)
    step = max(2 * parameters / (BANDWIDTH * bytes_per_second), 2 * parameters * BATCH / (ARITHMETIC * flops))
    return reading + output_tokens * step / BATCH


def gpus_needed(parameters: float, memory_gib: float) -> int:
    """GPUs that hold a model in 16 bits with room to serve it."""
    return max(1, math.ceil(2 * parameters * ROOM / 2**30 / memory_gib))
