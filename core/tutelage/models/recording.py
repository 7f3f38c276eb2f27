"""Records what a module computes for one token of each row as a list of tensor operations, for any number of rows.

A call is recorded twice, with different numbers of rows: sizes that differ are those of the batch. What does not depend
on the inputs (a transposed or cast weight, say) is computed once, in recording. What can't be told from a recording
(values that decide what is computed, changes of what is seen elsewhere, random numbers) is refused.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import sdpa_mask

from tutelage.models.caching import attend

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

RECORDED = "tutelage_recorded"
"Name among transformers' attention implementations of that which a recording takes note of."


_UNTOLD = {torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"Tags of operations whose results decide what is computed, or are drawn at random."
_NOT_COMPUTED = ("s_aux", "position_bias", "head_mask", "cache_position_bias")


class Unrecordable(Exception):
    """Why a module's call can't be told from a recording."""


@dataclass(frozen=True)
class Slot:
    """A tensor that depends on the inputs."""

    index: int


@dataclass(frozen=True)
class Constant:
    """A tensor that does not."""

    index: int


@dataclass(frozen=True)
class CacheLayer:
    """The layer of the cache that attention is to take keys and values from."""


@dataclass
class Operation:
    """A call of `function`, which gave the slots `outputs`; `single` says that it gave a tensor and no tuple."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[int]
    single: bool


@dataclass
class Recording:
    """What one call of a module did with so many rows.

    Attributes:
        inputs: where each input slot comes from: the place of an argument, and that within it where it is a tuple.
        result: the slot that is given back; in a tuple, among Nones, where `tupled` is its length.
        shapes: of the slots.
        layer: which layer of the cache attention used; None where there was no attention.
    """

    rows: int
    inputs: list[tuple[int | str, int | None]] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    result: int = -1
    tupled: int = 0
    layer: int | None = None
    device: str = "cpu"

    def shape(self) -> Any:
        """What is the same for any number of rows."""
        return (
            [(each.function, each.outputs, each.single) for each in self.operations],
            self.inputs,
            [(each.shape, each.dtype) for each in self.constants],
            (self.result, self.tupled, self.layer),
        )

    def text(self) -> str:
        """All that was recorded but the numbers in tensors, and which layer of the cache it was."""
        constants = [(tuple(each.shape), each.dtype, each.device.type) for each in self.constants]
        return repr((self.rows, self.inputs, self.operations, constants, self.result, self.tupled))

    def without_numbers(self) -> Recording:
        """The same, holding no tensors' memory."""
        return replace(self, constants=[each.to("meta") for each in self.constants])


class Recorder(TorchDispatchMode):
    """Records one call of a module: enter it, and call `run`."""

    current: Recorder | None = None

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording(rows)
        self._slots: dict[int, Slot] = {}
        self._known: dict[int, Constant] = {}
        self._owners: dict[int, set[int]] = {}
        self._held: list[Any] = []  # an id is a tensor's own for as long as the tensor lives
        self._stored: tuple[int, Tensor, Tensor] | None = None
        self._paused = False

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, taking note of all it does.

        Raises:
            Unrecordable: when that can't be repeated with other inputs.
        """
        for index, value in enumerate(args):
            self._take(index, value)
        for name, value in kwargs.items():
            self._take(name, value)
        if not self._held:
            raise Unrecordable("it takes no tensor")
        self.recording.device = self._held[0].device.type
        Recorder.current = self
        try:
            with self:
                result = function(*args, **kwargs)
        finally:
            Recorder.current = None
        first = result[0] if isinstance(result, tuple) else result
        others = result[1:] if isinstance(result, tuple) else ()
        if id(first) not in self._slots or any(other is not None for other in others):
            raise Unrecordable("its result is not one tensor")
        self.recording.result = self._slots[id(first)].index
        self.recording.tupled = len(result) if isinstance(result, tuple) else 0
        return result

    def store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keys and values were given to a layer of the cache."""
        if self._stored is not None:
            raise Unrecordable("it has several layers of attention")
        self._stored = layer, keys, values

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, cap: float | None
    ) -> Tensor:
        """Attention was computed: what it gives where there is one key only.

        Raises:
            Unrecordable: when its keys are not those that the cache was given, or its mask not the model's.
        """
        if self._stored is None or self._stored[1] is not key or self._stored[2] is not value or query.shape[2] != 1:
            raise Unrecordable("its attention is not over the cache")
        if mask is not None and not self._is_input(mask):
            raise Unrecordable("its attention has a mask of its own")
        self._paused = True
        groups = query.shape[1] // value.shape[1]
        found = value.repeat_interleave(groups, dim=1).transpose(1, 2).contiguous()
        self._paused = False
        self.recording.layer = self._stored[0]
        arguments = (CacheLayer(), *(self._named(each) for each in (query, key, value, mask)), scale, cap)
        self._note(attend, arguments, {}, found)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and take note of it where an input is involved."""
        kwargs = kwargs or {}
        if func._schema.is_mutable and not self._paused:
            return self._change(func, args, kwargs)
        result = func(*args, **kwargs)
        if self._paused:
            return result
        self._held += [args, kwargs, result]
        if not any(id(each) in self._slots for each in tree_leaves((args, kwargs))):
            return result
        if _UNTOLD & set(func.tags):
            raise Unrecordable(f"{func} can't be repeated")
        if func is torch.ops.aten.detach.default:
            self._own(result, self._slots[id(args[0])])
            return result
        self._note(func, self._named(args), self._named(kwargs), result)
        return result

    def _change(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute in place, or into `out`, and note the operation that gives the same as a tensor of its own.

        Raises:
            Unrecordable: when there is none, or what is changed is also seen elsewhere.
        """
        if not any(id(each) in self._slots for each in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        options = {name: value for name, value in kwargs.items() if name != "out"}
        target = kwargs.get("out", args[0])
        function = getattr(torch, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
        if not isinstance(function, types.BuiltinFunctionType) or self._is_input(target) or self._is_shared(target):
            raise Unrecordable(f"{func} can't be repeated")
        named = self._named(args), self._named(options)
        self._paused = True
        made = function(*args, **options)
        result = func(*args, **kwargs)
        self._paused = False
        self._held += [args, kwargs, made]
        if made.shape != target.shape:
            raise Unrecordable(f"{func} can't be repeated")
        if made.dtype == target.dtype:
            self._note(function, *named, target)
        else:
            self._note(function, *named, made)
            self._note(torch.ops.aten._to_copy.default, (self._named(made),), {"dtype": target.dtype}, target)
        return result

    def _is_shared(self, tensor: Tensor) -> bool:
        """Whether something else than the same tensor lies in its memory."""
        slot = self._slots.get(id(tensor))
        owners = self._owners.get(tensor.untyped_storage().data_ptr(), set())
        return any(self._slots.get(owner) != slot for owner in owners - {id(tensor)})

    def _note(self, function: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        indices = [self._new(each).index if isinstance(each, torch.Tensor) else -1 for each in outputs]
        single = isinstance(result, torch.Tensor)
        self.recording.operations.append(Operation(function, tuple(args), kwargs, indices, single))

    def _take(self, place: int | str, value: Any) -> None:
        parts = enumerate(value) if isinstance(value, tuple | list) else [(None, value)]
        for part, each in parts:
            if isinstance(each, torch.Tensor) and id(each) not in self._slots:
                self._new(each)
                self.recording.inputs.append((place, part))

    def _new(self, tensor: Tensor) -> Slot:
        known, slot = self._slots.get(id(tensor)), Slot(len(self.recording.shapes))
        self.recording.shapes.append(tuple(tensor.shape))
        for each in [each for each, other in self._slots.items() if known is not None and other == known]:
            self._slots[each] = slot  # it has been changed, under each of its names
        self._own(tensor, slot)
        return slot

    def _own(self, tensor: Tensor, slot: Slot) -> None:
        self._held.append(tensor)
        self._slots[id(tensor)] = slot
        self._owners.setdefault(tensor.untyped_storage().data_ptr(), set()).add(id(tensor))

    def _is_input(self, tensor: Tensor) -> bool:
        slot = self._slots.get(id(tensor))
        return slot is not None and slot.index < len(self.recording.inputs)

    def _named(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._slots.get(id(value)) or self._constant(value)
        if isinstance(value, tuple | list):
            return type(value)(self._named(each) for each in value)
        if isinstance(value, dict):
            return {name: self._named(each) for name, each in value.items()}
        return value

    def _constant(self, tensor: Tensor) -> Constant:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            raise Unrecordable(f"it holds a {type(tensor).__name__}")
        if id(tensor) not in self._known:
            self._owners.setdefault(tensor.untyped_storage().data_ptr(), set()).add(id(tensor))
            self._known[id(tensor)] = Constant(len(self.recording.constants))
            self.recording.constants.append(tensor)
        return self._known[id(tensor)]


class RecordingLayer(DynamicLayer):
    """A layer of a cache that holds nothing, and tells the recorder what it is given."""

    def __init__(self, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._index = index

    def update(
        self, key_states: Tensor, value_states: Tensor, *_arguments: Any, **_options: Any
    ) -> tuple[Tensor, Tensor]:
        """The keys and values (rows, heads, new tokens, head_dim) alone."""
        if Recorder.current is None:
            raise Unrecordable("its cache is not used by a layer")
        Recorder.current.store(self._index, key_states, value_states)
        return key_states, value_states


def _recorded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    unknown = [name for name in _NOT_COMPUTED if options.get(name) is not None]
    if Recorder.current is None or unknown or not getattr(module, "is_causal", True):
        raise Unrecordable(f"its attention is not plain: {unknown}")
    return Recorder.current.attend(query, key, value, attention_mask, scaling, softcap), None


AttentionInterface.register(RECORDED, _recorded_attention)
AttentionMaskInterface.register(RECORDED, sdpa_mask)
