"""Models from random weights: an architecture's config of a wanted size, and the folder that training starts from."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.config import did_you_mean, join
from tutelage.errors import TutelageError
from tutelage.models.loading import quietly
from tutelage.models.saving import save_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INNER = ("intermediate_size", "n_inner", "ffn_dim")
"What configs call the width of the layers between attention and attention."
_COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", *_INNER)
"Fields of configs that count something there must be."
_OUTPUTS = ("o_proj.weight", "down_proj.weight")
"The matrices that write into the residual stream, as most architectures call them."
_TIED_BELOW = 1e9
"Parameters under which embeddings and output layer share their weights, unless the shape says otherwise."
_WIDTHS = [*range(16, 128, 16), *range(128, 512, 32), *range(512, 32769, 64)]
_STRETCH = 0.3
"By what share the inner width may differ from its rule, to meet a number of parameters."
_TOLERANCE = 0.05
"By what share the number of parameters may miss the one asked for."


def config_of_size(architecture: str, parameters: float, shape: dict[str, Any], place: str) -> Any:
    """The config of a model with about this many parameters in all.

    Depth and width grow together by the rule of `config_of_shape`; the inner width gives way where that brings the
    count nearer to the one asked for.

    Args:
        architecture: a `model_type` of transformers.
        shape: fields of the config that are settled, `vocab_size` among them.
        place: the field of the recipe below which problems are told.
    Raises:
        TutelageError: when there is no such architecture, or no such size of it.
    """
    shape = {"tie_word_embeddings": parameters < _TIED_BELOW, **shape}

    def made(width: int, deeper: int = 0, **sizes: int) -> tuple[int, Any]:
        return _counted(architecture, {"hidden_size": width, **shape, **sizes}, place, deeper)

    low, high = 0, len(_WIDTHS) - 1
    while low < high:  # the first width that has as many
        middle = (low + high) // 2
        low, high = (middle + 1, high) if made(_WIDTHS[middle])[0] < parameters else (low, middle)
    found = []
    for width, deeper in product(_WIDTHS[max(0, low - 1) : low + 1], (0, -1, 1)):
        size, config = made(width, deeper)
        found.append((size, config))
        inner = _inner_name(config)
        if inner and inner not in shape:
            now, step = getattr(config, inner), 16 if width >= 128 else 4
            a_step = made(width, deeper, **{inner: now + step})[0] - size
            most = round(now * _STRETCH / step)
            steps = max(-most, min(most, round((parameters - size) / max(1, a_step))))
            found.append(made(width, deeper, **{inner: now + steps * step}))
    size, best = min(found, key=lambda one: abs(one[0] - parameters))
    if abs(size / parameters - 1) > _TOLERANCE:
        wrong = f"the {architecture} nearest to {parameters:,.0f} parameters has {size:,}"
        fix = "ask for that, change vocabulary, or give shape: {hidden_size: …, num_hidden_layers: …}"
        raise TutelageError.at(join(place, "parameters"), wrong, fix)
    return best


def config_of_shape(architecture: str, shape: dict[str, Any], place: str) -> Any:
    """The config of a model of this shape; what the shape leaves open follows from its `hidden_size`.

    Depth by the rule of Levine et al. 2020, "The depth-to-width interplay in self-attention": ln width = 5.039 + 0.0555
    depth, at least 2. Heads have 64 dimensions (32 or 16 in narrow models), each its own keys and values. The layers
    between are 8/3 as wide as the model where they are gated (Shazeer 2020), else 4 times (Vaswani et al. 2017).

    Raises:
        TutelageError: when there is no such architecture, or no such shape of it.
    """
    return _counted(architecture, shape, place)[1]


def _counted(architecture: str, shape: dict[str, Any], place: str, deeper: int = 0) -> tuple[int, Any]:
    """A config by the rule, with `deeper` layers more, and the number of its parameters."""
    from transformers import CONFIG_MAPPING

    known = _known(architecture, place)
    names = {own: common for common, own in known.attribute_map.items()}
    shape = {names.get(name, name): value for name, value in shape.items()}
    for name, value in shape.items():
        if name not in known.to_dict() and name not in known.attribute_map:
            hint = did_you_mean(name, sorted(known.to_dict()))
            raise TutelageError.at(
                join(place, f"shape.{name}"), f"the config of {architecture} has no such field", hint
            )
        if name in _COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            field = join(place, f"shape.{name}")
            raise TutelageError.at(field, f"is {value!r}, not a whole number from 1", "such as 256")
    try:
        with quietly():
            config: Any = CONFIG_MAPPING[architecture](**{**_by_rule(architecture, shape, deeper), **shape})
            return count(config), config
    except Exception as error:  # each architecture refuses sizes in its own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise TutelageError.at(
            join(place, "shape"), f"no {architecture} can be made: {reason}", "see its sizes"
        ) from None


def _by_rule(architecture: str, shape: dict[str, Any], deeper: int) -> dict[str, Any]:
    known = _known(architecture, "")
    width = shape["hidden_size"]
    heads = shape.get("num_attention_heads") or max(1, width // (64 if width >= 512 else 32 if width >= 128 else 16))
    depth = max(2, round((math.log(width) - 5.039) / 0.0555)) + deeper
    made = {
        "num_hidden_layers": max(1, depth),
        "num_attention_heads": heads,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    made |= _looking_back(known)
    own = {"num_key_value_heads": heads, "head_dim": width // heads, "word_embed_proj_dim": width}
    made |= {name: value for name, value in own.items() if getattr(known, name, None) is not None}
    if inner := _inner_name(known):
        step = 16 if width >= 128 else 4
        made[inner] = round(width * (8 / 3 if _gated(architecture) else 4) / step) * step
    return made


def _looking_back(known: Any) -> dict[str, Any]:
    """What makes an architecture such as BERT see what comes before a token alone."""
    return {"is_decoder": True} if getattr(known, "is_decoder", None) is False else {}


def count(config: Any) -> int:
    """Parameters of a model of this config, shared ones once."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), quietly():
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


def without_embeddings(model: Any) -> int:
    """Parameters of a model other than its embeddings and its output layer; at least 1."""
    import torch

    outer = {part.weight for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    if (output := model.get_output_embeddings()) is not None:
        outer.add(output.weight)
    return max(1, int(model.num_parameters()) - sum(weight.numel() for weight in outer))


def write_new(config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, seed: int) -> Path:
    """Write a model with random weights as a plain folder: drawn as its architecture does, the seed alone decides.

    Matrices that write into the residual stream are scaled by 1 / sqrt(2 depth), so that its variance does not grow
    with depth (Radford et al. 2019, section 2.3); where transformers does so itself (GPT-2), they are left alone.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), quietly():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    scale = (2 * config.get_text_config().num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(_OUTPUTS):
                parameter.mul_(scale)
    return save_whole(model, tokenizer, folder)


def takes(architecture: str, field: str, place: str) -> bool:
    """Whether an architecture's config has a field.

    Raises:
        TutelageError: when there is no such architecture.
    """
    return hasattr(_known(architecture, place), field)


def _inner_name(config: Any) -> str:
    return next((name for name in _INNER if hasattr(config, name)), "")


@cache
def _gated(architecture: str) -> bool:
    """Whether the layers between have a gate, a third matrix: seen by what a wider one adds."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes |= {"vocab_size": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    known = _known(architecture, "")
    sizes |= _looking_back(known)
    name = _inner_name(known)
    found = []
    for inner in (64, 128):
        config: Any = CONFIG_MAPPING[architecture](**{**sizes, name: inner})
        with torch.device("meta"), quietly():
            found.append(AutoModelForCausalLM.from_config(config).num_parameters())
    return bool(found[1] - found[0] > 2.5 * 64 * 64)


def _known(architecture: str, place: str) -> Any:
    """The default config of an architecture."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if architecture not in CAUSAL or architecture not in CONFIG_MAPPING:
        near = did_you_mean(architecture, sorted(CAUSAL))
        fix = near if near.startswith("did") else "give a model_type such as llama, qwen2, qwen3, gpt2 or gemma"
        wrong = f"transformers has no causal language model {architecture!r}"
        raise TutelageError.at(join(place, "architecture"), wrong, fix)
    return CONFIG_MAPPING[architecture]()
