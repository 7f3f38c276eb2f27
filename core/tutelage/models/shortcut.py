"""A faster way through a model for one token at a time, taken only where it is found to give what the model gives.

A model's layers are recorded as they compute a token (`recording`), and replayed with fewer and faster operations
(`replaying`); the rest of the model stays as it is. Nothing is known of families of models: what can't be recorded, or
gives other logits at the first step, goes the plain way.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from tutelage.models.caching import RoomyLayer, cache_for, cache_options
from tutelage.models.recording import RECORDED, Recorder, Recording, RecordingLayer, Unrecordable
from tutelage.models.replaying import known_plan, plan_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FEWEST_TOKENS = 24
"Fewer tokens take less time in the plain way than recording does."
_log = logging.getLogger(__name__)
_proven: weakref.WeakKeyDictionary[nn.Module, set[int]] = weakref.WeakKeyDictionary()
"What was replayed of each model and found to give what it gives."


class Shortcut:
    """Goes the faster way through a model whose weights and adapters stay as they are for as long as this is used.

    On a CPU it holds a copy of the layers' weights.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._base: Any = base
        self._regions: list[_Region] | None = None
        self._hopeless = not _memory_suffices(base)
        self._signature = 0

    @property
    def taken(self) -> bool:
        """Whether the last step went the faster way."""
        return self._regions is not None

    def step(self, cache: DynamicCache, compute: Callable[[], Tensor]) -> Tensor:
        """The logits that `compute` gives, which passes one token of each row through the model with this cache."""
        if not self._hopeless and self._regions is None:
            self._attempt(self._prepare, cache)
        return compute() if self._hopeless else self._replay(cache, compute)

    def _attempt(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function gives; None, and no hope, where the model does not bear to be looked at so."""
        try:
            return function(*arguments)
        except Exception as error:  # whatever it is, the plain way remains
            self._give_up(str(error))
            return None

    def _give_up(self, reason: str) -> None:
        _log.debug("%s is sampled from in the plain way: %s", type(self._base).__name__, reason)
        self._hopeless, self._regions = True, None

    def _prepare(self, cache: DynamicCache) -> None:
        if any(type(layer) is not RoomyLayer for layer in cache.layers):
            raise Unrecordable("it has more than keys and values to remember")
        if self._base.config._attn_implementation not in ("sdpa", "eager"):
            raise Unrecordable("its attention has no mask")
        modules = _repeated(self._base)
        first = _recordings(self._base, modules, 2, len(cache.layers))
        plans = {module: known_plan(recording) for module, recording in first.items()}
        if not all(plans.values()):
            second = _recordings(self._base, modules, 3, len(cache.layers), numbers=False)
            if first.keys() != second.keys():
                raise Unrecordable("its layers are not always used")
            plans = {module: plan_of(recording, second[module]) for module, recording in first.items()}
        regions = []
        for module, plan in plans.items():
            recording = first.pop(module)
            assert plan is not None
            regions.append(_Region(module, recording, plan.bind(recording.constants)))
        if not any(region.attends for region in regions):
            raise Unrecordable("its attention is not in layers")
        known = [plan.first for plan in plans.values() if plan is not None]
        signature = hash((*known, self._base.config._attn_implementation))
        self._regions = regions
        if signature not in _proven.get(self._base, ()):
            self._prove()
            _proven.setdefault(self._base, set()).add(signature)

    def _prove(self) -> None:
        """See that a probe has the same logits both ways.

        Raises:
            Unrecordable: when it has not.
        """
        probe = _Probe(self._base)
        if not _same(self._replay(probe.cache, probe.step), probe.step(), self._base.dtype):
            raise Unrecordable("it gives other logits")

    def _replay(self, cache: DynamicCache, compute: Callable[[], Tensor]) -> Tensor:
        regions = self._regions or []
        biases: dict[Any, Tensor] = {}
        for region in regions:
            region.enter(cache, biases)
        try:
            return compute()
        finally:
            for region in regions:
                region.leave()


class _Region:
    """A module that is replayed."""

    def __init__(self, module: nn.Module, recording: Recording, function: Callable[..., Tensor]) -> None:
        self._module = module
        self._inputs, self._layer, self._tupled = recording.inputs, recording.layer, recording.tupled
        self._function = function
        self._device = recording.device
        self._place: Any = None

    @property
    def attends(self) -> bool:
        return self._layer is not None

    def enter(self, cache: DynamicCache, biases: dict[Any, Tensor]) -> None:
        if self._layer is not None:
            self._place = cache.layers[self._layer], biases
        self._module.__dict__["forward"] = self._forward

    def leave(self) -> None:
        self._place = None
        del self._module.__dict__["forward"]

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = []
        for place, part in self._inputs:
            value = args[place] if isinstance(place, int) else kwargs[place]
            inputs.append(value if part is None else value[part])
        if torch.is_autocast_enabled(self._device):  # what it casts has been recorded
            with torch.autocast(self._device, enabled=False):
                result = self._function(self._place, len(inputs[0]), *inputs)
        else:
            result = self._function(self._place, len(inputs[0]), *inputs)
        return (result, *[None] * (self._tupled - 1)) if self._tupled else result


def _repeated(base: Any) -> list[nn.Module]:
    """The model's layers, which are its outermost lists of modules; and what makes logits."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(child)
            else:
                look(child)

    look(base)
    head = base.get_output_embeddings()
    return [*found, head] if head is not None else found


def _recordings(
    base: Any, modules: list[nn.Module], rows: int, layers: int, *, numbers: bool = True
) -> dict[nn.Module, Recording]:
    """What each of the modules does when one token of so many rows passes through the model, in their order.

    Args:
        numbers: keep the tensors that do not depend on the input.
    Raises:
        Unrecordable: as a recorder does; or when something but the module itself acts when it is called.
    """
    found: dict[nn.Module, Recording] = {}
    cache = DynamicCache()
    cache.layers = [RecordingLayer(index) for index in range(layers)]
    attention = base.config._attn_implementation
    ids = torch.zeros(rows, 1, dtype=torch.int64, device=base.device)
    inputs = {"input_ids": ids, "attention_mask": ids.new_ones(rows, 1, 1, 1, dtype=torch.bool)}
    if "position_ids" in inspect.signature(base.forward).parameters:
        inputs["position_ids"] = ids
    for module in modules:
        if "forward" in vars(module) or any(map(_is_watched, module.modules())):
            raise Unrecordable("something else happens when its layers are called")
    base.set_attn_implementation(RECORDED)
    try:
        for module in modules:
            module.__dict__["forward"] = _recorded(module, rows, found, numbers)
        base(**inputs, **cache_options(base, cache))
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
        base.set_attn_implementation(attention)
    return found


def _is_watched(module: Any) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
    return bool(hooks) or module._compiled_call_impl is not None


def _recorded(module: nn.Module, rows: int, found: dict[nn.Module, Recording], numbers: bool) -> Callable[..., Any]:
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if module in found:
            raise Unrecordable("a layer is used twice")
        recorder = Recorder(rows)
        result = recorder.run(plain, args, kwargs)
        found[module] = recorder.recording if numbers else recorder.recording.without_numbers()
        return result

    return forward


class _Probe:
    """Some rows of random tokens, of unequal length, of which all but the last have passed through the model."""

    def __init__(self, base: Any) -> None:
        self._base = base
        self.cache = cache_for(base, whole=True)
        generator = torch.Generator().manual_seed(0)
        count = base.get_input_embeddings().weight.shape[0]
        self._ids = torch.randint(count, (5, 13), generator=generator).to(base.device)
        starts = torch.arange(len(self._ids), device=base.device)[:, None]
        self._mask = (torch.arange(self._ids.shape[1], device=base.device) >= starts).long()
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._length = self._ids.shape[1] - 1
        self._pass(slice(0, self._length))

    def step(self) -> Tensor:
        """The logits after the last token, in float32, always of the same cache."""
        layers: list[Any] = self.cache.layers
        for layer in layers:
            layer.shorten(self._length)
        return self._pass(slice(self._length, None))

    def _pass(self, part: slice) -> Tensor:
        inputs = {"input_ids": self._ids[:, part], "attention_mask": self._mask[:, : part.stop]}
        if "position_ids" in inspect.signature(self._base.forward).parameters:
            inputs["position_ids"] = self._positions[:, part]
        logits: Tensor = self._base(**inputs, **cache_options(self._base, self.cache)).logits
        return logits[:, -1].float()


def _same(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits (rows, vocabulary) are equal within the rounding of what they were computed in.

    In half precision both are away from the truth by some hundredths of the logits' spread, and by more after an
    unusual token: there the root mean square of the differences in the middle one of the rows counts.
    """
    if torch.is_autocast_enabled(expected.device.type):
        dtype = torch.get_autocast_dtype(expected.device.type)
    scale = max(float(expected.std()), 1.0)
    difference = found - expected
    if dtype in (torch.float32, torch.float64):
        return bool(difference.abs().max() <= 1e-4 * scale)
    return bool(difference.square().mean(-1).sqrt().median() <= 0.1 * scale)


def _memory_suffices(base: nn.Module) -> bool:
    """Whether there is room for a copy of the weights; on other devices than a CPU none is made."""
    size = sum(each.numel() * each.element_size() for each in base.parameters())
    return next(base.parameters()).device.type != "cpu" or size < psutil.virtual_memory().available / 2
