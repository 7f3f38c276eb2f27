"""The machine that is measured on, its own limit, and how near to it training comes.

As a module of its own, `python -m bench.machine REQUEST.json` measures the matrix products of a model's layers.
"""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import processes
from bench.figures import Figure
from bench.scale import RANK, Setup

if TYPE_CHECKING:
    from bench.contests import Turn

PACKAGES = ("tutelage", "torch", "transformers", "peft", "trl", "lightning", "bitsandbytes")
ROWS_OF_TOKENS = 2048
"Of each product: tokens of a micro-batch."
SECONDS = 0.4
"Of each measurement."


def facts() -> dict[str, Any]:
    """Processor, how many cores this process may use, memory, system."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
    }


def versions() -> dict[str, str]:
    """Of the packages that decide speed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def limits(setup: Setup) -> dict[str, float]:
    """GFLOP/s of the machine's matrix products by dtype: of the shapes in the model's layers, and of a large square."""
    ended = processes.ask("bench.machine", {"shapes": shapes(setup.model)}, setup.work / "limits")
    return {name: float(value) for name, value in ended.lines[-1][0]["limits"].items()}


def shapes(model: str) -> list[tuple[int, int]]:
    """(inputs, outputs) of each matrix in a block of a Llama-like model."""
    config = _config(model)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


def flops_per_token(model: str, adapter: str, learnt: float, computed: float = 1.0) -> float:
    """Floating-point operations that training has to do for a token, without any that it could do without.

    With N the parameters of the blocks' matrices and V those of the output layer, and two operations for each
    parameter in each product:

    - full: 2 N forward, 2 N for the gradients of inputs and 2 N for those of weights; likewise of V, but only for
      learnt tokens: 6 N + 6 V learnt. (A tied embedding's own gradient is no product.)
    - LoRA: frozen weights have no gradient: 4 N + 4 V learnt; and of the updates, with A parameters, all three: 6 A.

    Attention's own products (QK and PV) are left out: at 512 tokens they add less than 5 % for this model.

    Args:
        adapter: `lora`, `qlora` or `full`.
        learnt: share of the tokens that are learnt.
        computed: share of the tokens that go through the blocks, where what rows have in common does so once.
    """
    config, of_block = _config(model), shapes(model)
    blocks = config["num_hidden_layers"]
    matrices = blocks * sum(inputs * outputs for inputs, outputs in of_block)
    output = config["hidden_size"] * config["vocab_size"]
    if adapter == "full":
        return 6.0 * matrices * computed + 6.0 * output * learnt
    updates = blocks * RANK * sum(inputs + outputs for inputs, outputs in of_block)
    return (4.0 * matrices + 6.0 * updates) * computed + 4.0 * output * learnt


def utilisation(setup: Setup, turns: list[Turn]) -> list[Figure]:
    """Our steady speeds in supervised tuning as a share of the machine's own limit in bf16."""
    limit = setup.machine.get("limits", {}).get("bf16, layers")
    made = []
    for adapter in dict.fromkeys(turn.work for turn in turns if limit):
        own = [turn for turn in turns if turn.work == adapter]
        tokens = sum(turn.amount for turn in own)
        learnt, computed = sum(turn.learnt for turn in own) / tokens, sum(turn.computed for turn in own) / tokens
        flops = flops_per_token(setup.model, adapter, learnt, computed)
        told = (
            f"{flops / 1e9:.3f} GFLOP a token, {learnt:.0%} of tokens learnt, {computed:.0%} computed (what rows have "
            f"in common, once); the limit is {limit:.0f} GFLOP/s"
        )
        made.append(
            Figure(
                section="utilisation",
                name=adapter,
                measure="share of the machine's own matmul limit",
                better="higher",
                ours=[turn.speed * flops / 1e9 / limit for turn in own],
                target=0.5 if adapter == "lora" else None,
                note=told,
            )
        )
    return made


def _config(model: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    return config


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _measure(sizes: list[list[int]]) -> dict[str, float]:
    """In its own process: the rate of the forward products and of those for gradients of inputs, together."""
    import torch

    found = {}
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        layers = [
            (torch.randn(ROWS_OF_TOKENS, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype))
            for inputs, outputs in sizes
        ]
        backward = [(x @ w.T, w) for x, w in layers]
        work = [(x, w.T) for x, w in layers] + backward
        found[f"{name}, layers"] = _rate(work)
        square = torch.randn(2048, 2048, dtype=dtype)
        found[f"{name}, square"] = _rate([(square, square)])
    return found


def _rate(work: list[tuple[Any, Any]]) -> float:
    """GFLOP/s: the best of several passes, because a limit is what is possible."""
    flops = sum(2.0 * x.shape[0] * x.shape[1] * y.shape[1] for x, y in work)
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until or best == float("inf"):
        began = time.perf_counter()
        for x, y in work:
            x @ y
        best = min(best, time.perf_counter() - began)
    return flops / best / 1e9


if __name__ == "__main__":
    processes.tell(limits=_measure(processes.request()["shapes"]))
