"""What phases other than supervised tuning ask of a machine: who is in memory beside the model, and what is done.

A phase of reinforcement learning draws answers (`answering`), asks models about them (`reading`) and learns from them
(`learning`). docs/estimates.md gives every formula with its source.
"""

from __future__ import annotations

import math

import msgspec

from tutelage_advisor.catalog import Gpu
from tutelage_advisor.estimates import calibration as known
from tutelage_advisor.estimates.architecture import Architecture, Linear
from tutelage_advisor.estimates.request import MAKING, ONLINE, EstimateRequest
from tutelage_advisor.estimates.speed import forward_seconds, speed, step_seconds

_ANSWERS = {"dpo": 2, "reward_model": 2, "grpo": 8, "comparisons": 4, "ai_feedback": 2, "evaluation": 2}
_INNER_EPOCHS = {"ppo": 4}


def settled(request: EstimateRequest) -> EstimateRequest:
    """The request with what its phase usually has in the place of every null that concerns phases."""
    phase = request.phase
    new = request.new_tokens or max(1, min(256, request.seq_len // 4))
    shares = request.adapter in ("lora", "qlora")
    usual = {"ppo": "shared" if shares else "separate"}.get(phase, "none")
    return msgspec.structs.replace(
        request,
        answers=request.answers or _ANSWERS.get(phase, 1),
        new_tokens=new,
        prompt_tokens=request.prompt_tokens or float(max(1, request.seq_len - new)),
        thought_tokens=128 * (phase == "critique_revision")
        if request.thought_tokens is None
        else request.thought_tokens,
        inner_epochs=request.inner_epochs or _INNER_EPOCHS.get(phase, 1),
        reference=phase in ("dpo", "ppo") if request.reference is None else request.reference,
        reward_model=request.reward_model or usual,
    )


def scored(architecture: Architecture) -> Architecture:
    """The same with a head of one score in the place of the output layer, as sequence classification has it."""
    inner = [linear for linear in architecture.linears if linear.kind != "head"]
    head = Linear("score", architecture.hidden, 1, 1, "head")
    return msgspec.structs.replace(architecture, linears=[*inner, head], vocabulary=1, tied=False)


def shape_of(architecture: Architecture, request: EstimateRequest) -> Architecture:
    """What is trained: in reward modelling a model of one score."""
    return scored(architecture) if request.phase == "reward_model" else architecture


def example_tokens(request: EstimateRequest) -> float:
    """Tokens of an example with all its answers: what is learnt from, or a prompt and what is drawn to it."""
    assert request.answers is not None
    if request.phase in ONLINE | MAKING:
        assert request.prompt_tokens is not None
        assert request.new_tokens is not None
        return request.answers * (request.prompt_tokens + request.new_tokens)
    return request.tokens_per_example or float(request.answers * request.seq_len)


def example_seconds(
    architecture: Architecture, request: EstimateRequest, gpu: Gpu, precision: str, strategy: str
) -> dict[str, float]:
    """Seconds that one example takes over the whole stage, by what is done, with all GPUs at work.

    Args:
        architecture: of the model, as `shape_of` gives it.
        request: as `settled` gives it.
        precision, strategy: decided, not `auto`.
    """
    tokens = example_tokens(request)
    if request.phase in MAKING:
        return {
            name: seconds / request.devices for name, seconds in _making(architecture, request, gpu, precision).items()
        }
    learning = tokens / speed(architecture, request, gpu, precision, strategy).tokens_per_second
    reading = forward_seconds(architecture, request, gpu, precision) / request.devices
    if request.phase not in ONLINE:
        found = {"learning": learning * request.epochs}
        return found | ({"reading": tokens * reading} if request.phase == "dpo" and request.reference else {})
    assert request.inner_epochs is not None
    critic = request.phase == "ppo"
    if critic:
        learning += tokens / speed(scored(architecture), request, gpu, precision, strategy).tokens_per_second
    asked = 1 + bool(request.reference) + (request.reward_model != "none") + critic
    answering = _answering(architecture, request, gpu, precision) / request.devices
    return {
        "answering": answering * request.epochs,
        "reading": asked * tokens * reading * request.epochs,
        "learning": request.inner_epochs * learning * request.epochs,
    }


def _making(architecture: Architecture, request: EstimateRequest, gpu: Gpu, precision: str) -> dict[str, float]:
    """Seconds of one GPU for a prompt: everything that is read and written to it."""
    prompt, new, thought = (
        float(request.prompt_tokens or 0),
        int(request.new_tokens or 0),
        int(request.thought_tokens or 0),
    )
    answers = request.answers or 1

    def said(reads: float, writes: int) -> float:
        return written(architecture, request, gpu, precision, reads, writes)

    if request.phase == "critique_revision":
        asking = known.CRITIQUE_TOKENS + prompt + new
        rounds = said(asking, thought) + said(asking + thought, new)
        return {"answering": said(prompt, new), "revising": request.rounds * rounds}
    if request.phase == "ai_feedback":
        pairs = answers * (answers - 1) / 2
        question = said(prompt + 2 * new + known.QUESTION_TOKENS, thought)
        return {"judging": pairs * request.principles * 2 * question}
    answering = answers * said(prompt, new)
    if request.phase == "evaluation":
        reading = 2 * answers * (prompt + new) * forward_seconds(architecture, request, gpu, precision)
        return {"answering": answering, "reading": reading}
    return {"answering": answering}


def _answering(architecture: Architecture, request: EstimateRequest, gpu: Gpu, precision: str) -> float:
    """Seconds of one GPU to draw the answers to a prompt."""
    each = written(
        architecture, request, gpu, precision, float(request.prompt_tokens or 0), int(request.new_tokens or 0)
    )
    return (request.answers or 1) * each


def written(
    architecture: Architecture, request: EstimateRequest, gpu: Gpu, precision: str, reads: float, writes: int
) -> float:
    """Seconds of one GPU for one sequence that is read and then written on, in a batch of `rows_at_once`.

    Reading is a forward pass; every further token of all sequences of the batch takes a step of decoding.
    """
    reading = reads * forward_seconds(architecture, request, gpu, precision)
    step = step_seconds(architecture, request, gpu, precision, rows_at_once(request), reads + writes / 2)
    return reading + writes * step / rows_at_once(request)


def rows_at_once(request: EstimateRequest) -> int:
    """Sequences that are drawn at a time: more than are learnt from at a time, as drawing keeps nothing."""
    return request.micro_batch * (known.SAMPLED_AT_ONCE if request.phase in ONLINE else 1)


def flops_of_writing(architecture: Architecture, request: EstimateRequest) -> float:
    """Operations for one token that is read or written without learning (Kaplan et al. 2020, section 2.1)."""
    attended = math.ceil((request.prompt_tokens or request.seq_len) + (request.new_tokens or 0) / 2)
    return 2.0 * architecture.active_matrix_parameters + 2.0 * attended * architecture.query_width * architecture.layers
