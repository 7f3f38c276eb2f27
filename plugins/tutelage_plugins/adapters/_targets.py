"""Which layers of a model an adapter goes into."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from tutelage.config import did_you_mean, join
from tutelage.errors import Problem

if TYPE_CHECKING:
    from torch import nn

Targets = str | list[str]
ALL_LINEAR = "all-linear"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def choose(model: nn.Module, targets: Targets, layers: list[int] | None) -> dict[str, nn.Module]:
    """The layers that `targets` mean, by full name, in the model's order.

    A list names layers by the end of their path, a string is a regular expression over whole paths (or one name),
    and `all-linear` is every linear layer but the output layer.
    """
    known = adaptable(model)
    if targets == ALL_LINEAR:
        chosen = {name: module for name, module in known.items() if _is_linear(module) and not is_output(model, module)}
    elif (pattern := _pattern(targets)) is not None:
        chosen = {name: module for name, module in known.items() if re.fullmatch(pattern, name)}
    else:
        chosen = {
            name: module for name, module in known.items() if any(_ends_with(name, end) for end in _names(targets))
        }
    if layers is None:
        return chosen
    return {name: module for name, module in chosen.items() if layer_index(name) in layers}


def problems(model: nn.Module, targets: Targets, layers: list[int] | None, place: str) -> list[Problem]:
    """What of `targets` and `layers` means nothing in this model, with what there is instead."""
    known = adaptable(model)
    found: list[Problem] = []
    pattern = _pattern(targets)
    if pattern is not None:
        if (error := _malformed(pattern)) is not None:
            return [Problem(place=join(place, "targets"), wrong=f"{pattern!r} is not a regular expression: {error}")]
        if not any(re.fullmatch(pattern, name) for name in known):
            fix = f"it must match a whole path such as {next(iter(known), '')}; {_what_there_is(known)}"
            found.append(
                Problem(place=join(place, "targets"), wrong=f"the pattern {pattern!r} matches no layer", fix=fix)
            )
    elif targets != ALL_LINEAR:
        every = dict(model.named_modules())
        for end in _names(targets):
            if not any(_ends_with(name, end) for name in known):
                other = next(
                    (type(module).__name__ for name, module in every.items() if name and _ends_with(name, end)), ""
                )
                wrong = f"{end} is a {other}, which can't be adapted" if other else f"no layer is called {end}"
                hint = did_you_mean(end, _short_names(known))
                fix = hint if hint.startswith("known") else f"{hint} ({_what_there_is(known)})"
                found.append(Problem(place=join(place, "targets"), wrong=wrong, fix=fix))
    there = {index for name in known if (index := layer_index(name)) is not None}
    strangers = [index for index in layers or [] if index not in there]
    if strangers:
        fix = f"there are layers {min(there)} to {max(there)}" if there else "this model's layers are not numbered"
        wrong = f"there is no layer {', '.join(map(str, strangers))}"
        found.append(Problem(place=join(place, "layers"), wrong=wrong, fix=fix))
    return found


def spelled(model: nn.Module, chosen: dict[str, nn.Module]) -> list[str]:
    """The shortest list of names that means exactly `chosen` to PEFT: the last parts of paths, or else whole paths."""
    ends = sorted({name.rpartition(".")[2] for name in chosen})
    meant = {name for name, _ in model.named_modules() if any(_ends_with(name, end) for end in ends)}
    return ends if meant == set(chosen) else list(chosen)


def adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer (transformers' Conv1D too) and embedding of a model by its full name.

    A reward model's score head is none of them: it learns as a whole.
    """
    from torch import nn

    from tutelage.models.heads import score_head

    head = score_head(model)
    return {
        name: module
        for name, module in model.named_modules()
        if (_is_linear(module) or type(module) is nn.Embedding) and module is not head
    }


def tied_embeddings(model: Any) -> list[nn.Module]:
    """The input and output layers, when they are one and the same weight; else nothing."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    if any(end is None for end in ends) or ends[0].weight is not ends[1].weight:
        return []
    return ends


def is_output(model: Any, module: nn.Module) -> bool:
    """Whether this is the layer that gives the logits."""
    return model.get_output_embeddings() is module


def layer_index(name: str) -> int | None:
    """`model.layers.3.mlp.up_proj` is in layer 3: the first number of a path (later ones count experts)."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _is_linear(module: nn.Module) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _pattern(targets: Targets) -> str | None:
    is_pattern = isinstance(targets, str) and targets != ALL_LINEAR and not _PLAIN_NAME.fullmatch(targets)
    return str(targets) if is_pattern else None


def _names(targets: Targets) -> list[str]:
    return [targets] if isinstance(targets, str) else targets


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _malformed(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return None


def _short_names(known: dict[str, Any]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in known})


def _what_there_is(known: dict[str, Any]) -> str:
    counts = Counter(name.rpartition(".")[2] for name in known)
    return "there are " + ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
