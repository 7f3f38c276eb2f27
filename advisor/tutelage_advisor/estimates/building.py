"""The inventory of any decoder that transformers knows: built on the meta device, in a child process.

The advisor imports no torch; the child does. It is run as `python -m tutelage_advisor.estimates.building`, reads a
configuration (JSON) from its input and writes an `Architecture` to its output. No weights are made and no code of the
model's repository runs.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.errors import TutelageError
from tutelage_advisor.estimates.architecture import Architecture, Experts, Linear

if TYPE_CHECKING:
    from torch import nn

LONGEST_BUILD = 300
"Seconds after which building is given up."


def build(config: Mapping[str, Any], place: str) -> Architecture:
    """Build the model in a child process and take its inventory.

    Raises:
        TutelageError: when transformers is not installed, or can't build a decoder from this configuration.
    """
    return msgspec.json.decode(_child("inventory", dict(config), place), type=Architecture)


def new_config(
    architecture: str, parameters: str | int, shape: Mapping[str, Any], vocabulary: int, longest: int, place: str
) -> dict[str, Any]:
    """The configuration that the phase pretrain gives a new model of this size or shape, worked out in a child process.

    Raises:
        TutelageError: when transformers is not installed, or has no such architecture or size.
    """
    if not parameters and "hidden_size" not in shape:
        fix = "give parameters: 10M, or shape: {hidden_size: 256, num_hidden_layers: 8}"
        raise TutelageError.at(f"{place}.parameters", "nothing says how large the new model is", fix)
    sizes = {"vocab_size": vocabulary, **shape}
    asked = {"architecture": architecture, "parameters": parameters, "shape": sizes, "longest": longest}
    found: dict[str, Any] = msgspec.json.decode(_child("invent", asked, place))
    return found


def _child(work: str, asked: dict[str, Any], place: str) -> bytes:
    try:
        child = subprocess.run(
            [sys.executable, "-m", "tutelage_advisor.estimates.building", work],
            input=msgspec.json.encode(asked),
            capture_output=True,
            timeout=LONGEST_BUILD,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TutelageError.at(place, f"building it on the meta device took over {LONGEST_BUILD} s") from None
    if child.returncode == 0:
        return child.stdout
    lines = child.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
    kind = asked.get("model_type") or asked.get("architecture") or "no model_type"
    fix = (
        "install 'tutelage[train]'" if "No module named" in lines[-1] else "is it a decoder (a causal language model)?"
    )
    raise TutelageError.at(place, f"transformers can't build it ({kind}): {lines[-1][:300]}", fix)


def invent(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a new model, as `new_config` asks for it. Imports torch and transformers."""
    from tutelage.models.architectures import config_of_shape, config_of_size, takes
    from tutelage.scaling import amount

    name, shape = asked["architecture"], dict(asked["shape"])
    if takes(name, "max_position_embeddings", "phase"):
        shape.setdefault("max_position_embeddings", asked["longest"])
    if asked["parameters"]:
        made = config_of_size(name, amount(asked["parameters"]), shape, "phase")
    else:
        made = config_of_shape(name, shape, "phase")
    return {name: value for name, value in made.to_dict().items() if isinstance(value, str | int | float | bool | list)}


def inventory(config: Mapping[str, Any]) -> Architecture:
    """Build the model on the meta device, here, and take its inventory. Imports torch and transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    values = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}
    settings = AutoConfig.for_model(str(config["model_type"]), **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    return _inventory(model, settings.get_text_config())


def _inventory(model: Any, settings: Any) -> Architecture:
    hidden, count = int(settings.hidden_size), int(settings.num_hidden_layers)
    heads = int(settings.num_attention_heads)
    key_value_heads = int(getattr(settings, "num_key_value_heads", None) or heads)
    size = int(getattr(settings, "head_dim", None) or hidden // heads)
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    linears = _linears(model, None if output is None else output, tied)
    experts = _experts(model, settings, hidden)
    total = sum(parameter.numel() for parameter in model.parameters())
    listed = sum(linear.parameters for linear in linears) + (experts.parameters if experts else 0)
    inner = [linear for linear in linears if linear.kind == "mlp"]
    width = sum(linear.inputs * linear.count for linear in inner if linear.inputs > linear.outputs)
    norms = [m for m in model.modules() if type(m).__name__.endswith(("RMSNorm", "LayerNorm"))]
    active_width = experts.active * experts.width * experts.layers if experts else 0
    return Architecture(
        family=str(settings.model_type),
        vocabulary=embedding.shape[0],
        hidden=hidden,
        layers=count,
        heads=heads,
        key_value_heads=key_value_heads,
        head_size=size,
        longest=int(getattr(settings, "max_position_embeddings", 0) or 0),
        linears=linears,
        embedding=embedding.numel(),
        other=total - listed - embedding.numel(),
        tied=tied,
        experts=experts,
        norms=max(1.0, sum(next((p.numel() for p in m.parameters()), 0) for m in norms) / hidden / count),
        norm_upcasts=not any(type(m).__name__ == "LayerNorm" for m in norms),
        mlp_width=(width + active_width) // count,
        mlp_saved=3,
        cached=2 * key_value_heads * size,
    )


def _linears(model: nn.Module, output: Any, tied: bool) -> list[Linear]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found: Counter[tuple[str, int, int, bool, str]] = Counter()
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or (tied and module is output):
            continue
        first, second = module.weight.shape
        inputs, outputs = (first, second) if isinstance(module, Conv1D) else (second, first)
        kind = "head" if module is output else _kind(path)
        found[path.rpartition(".")[2], inputs, outputs, module.bias is not None, kind] += 1
    return [
        Linear(name, inputs, outputs, count, kind, bias, kind if outputs >= inputs else "")  # type: ignore[arg-type]
        for (name, inputs, outputs, bias, kind), count in found.items()
    ]


def _kind(path: str) -> str:
    lowered = path.lower()
    if "attn" in lowered or "attention" in lowered or "mixer" in lowered:
        return "attention"
    return "mlp" if any(part in lowered for part in ("mlp", "feed_forward", "ffn", "expert", "fc")) else "other"


def _experts(model: nn.Module, settings: Any, hidden: int) -> Experts | None:
    """Stacked expert weights: three-dimensional parameters, the first dimension being the expert."""
    stacked = [p for name, p in model.named_parameters() if p.dim() >= 2 and "expert" in name and "shared" not in name]
    stacked = [p for p in stacked if p.dim() == 3] and [p for p in stacked if p.dim() in (2, 3)]
    blocks = [p for p in stacked if p.dim() == 3]
    if not blocks:
        return None
    number = blocks[0].shape[0]
    active = next(
        (int(v) for n in ("num_experts_per_tok", "top_k", "moe_top_k") if (v := getattr(settings, n, None))), 1
    )
    layers = sum(1 for p in blocks if p.shape == blocks[0].shape)
    total = sum(p.numel() for p in stacked if p.shape[0] == number)
    width = round(sum(p.numel() for p in blocks) / layers / number / hidden / 3)
    return Experts(layers, int(number), active, width, total, _fused_names(str(settings.model_type)))


def _fused_names(family: str) -> dict[str, str]:
    """By what names PEFT finds this family's fused experts."""
    from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN

    from tutelage_advisor.estimates.families.experts import MIXTRAL_NAMES, QWEN_NAMES

    return {"mixtral": MIXTRAL_NAMES, "qwen2_moe": QWEN_NAMES}.get(_MODEL_TO_CONVERSION_PATTERN.get(family, ""), {})


if __name__ == "__main__":
    work: Any = {"inventory": inventory, "invent": invent}[sys.argv[1]]
    sys.stdout.buffer.write(msgspec.json.encode(work(msgspec.json.decode(sys.stdin.buffer.read()))))
