"""Turns recordings of a module into a function that computes the same, with fewer and faster operations."""

from __future__ import annotations

import operator
import types
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Graph, GraphModule, Node

from tutelage.models.recording import CacheLayer, Constant, Recording, Slot, Unrecordable
from tutelage.models.rewriting import Source, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_MOST_PLANS = 64
_plans: dict[str, Plan] = {}
"By what was recorded with the smaller number of rows."


def known_plan(recording: Recording) -> Plan | None:
    """How to compute what was recorded, where something equal has been planned before."""
    return _plans.get(recording.text())


def plan_of(first: Recording, second: Recording) -> Plan:
    """How to compute what was recorded, twice with different numbers of rows; equal layers share a plan.

    Raises:
        Unrecordable: when it does other things with another number of rows.
    """
    text = first.text()
    known = _plans.get(text)
    if known is not None and known.second == second.text():
        return known
    if len(_plans) >= _MOST_PLANS:
        _plans.clear()
    _plans[text] = Plan(first, second)
    return _plans[text]


class Plan:
    """What a module computes, without its weights.

    Attributes:
        first, second: what was recorded, as text.
    """

    def __init__(self, first: Recording, second: Recording) -> None:
        self.first, self.second = first.text(), second.text()
        graph, constants, layer = _graph_of(first, second)
        sources: dict[Node, Source] = {node: partial(_constant, index) for index, node in enumerate(constants)}
        sources |= rewrite(graph, {node: index for index, node in enumerate(constants)}, first.constants, layer)
        for node in constants:
            if not node.users:
                graph.erase_node(node)
        self._sources = [sources[node] for node in graph.nodes if node in sources]
        self._function: Callable[..., Tensor] = GraphModule(torch.nn.Module(), graph).forward

    def bind(self, constants: list[Tensor]) -> Callable[..., Tensor]:
        """A function of (layer of the cache, rows, inputs...) with the constants of a recording."""
        return partial(self._function, *(source(constants) for source in self._sources))


def _constant(index: int, constants: list[Tensor]) -> Tensor:
    return constants[index].detach()


# From recordings to a graph


def _graph_of(first: Recording, second: Recording) -> tuple[Graph, list[Node], Node]:
    """A graph whose inputs are the constants, the layer of the cache, the number of rows, and the inputs; the nodes of
    the constants, and that of the layer."""
    if first.shape() != second.shape():
        raise Unrecordable("it does other things with another number of rows")
    graph = Graph()
    constants = [graph.placeholder(f"constant_{index}") for index in range(len(first.constants))]
    layer, rows = graph.placeholder("layer"), graph.placeholder("rows")
    slots = {index: graph.placeholder(f"input_{index}") for index in range(len(first.inputs))}
    shapes = list(zip(first.shapes, second.shapes, strict=True))
    join = _Join(graph, (first.rows, second.rows), constants, layer, rows, slots)
    for before, after in zip(first.operations, second.operations, strict=True):
        node = _call(graph, before.function, join(before.args, after.args), join(before.kwargs, after.kwargs))
        if before.single:
            slots[before.outputs[0]] = node
            continue
        for place, index in enumerate(before.outputs):
            slots[index] = graph.call_function(operator.getitem, (node, place))
    for index, node in slots.items():
        node.meta["shapes"] = shapes[index]
    graph.output(slots[first.result])
    return graph, constants, layer


class _Join:
    """Makes the arguments of a graph's call from those of two recordings."""

    def __init__(
        self,
        graph: Graph,
        counts: tuple[int, int],
        constants: list[Node],
        layer: Node,
        rows: Node,
        slots: dict[int, Node],
    ) -> None:
        self._graph, self._counts, self._constants = graph, counts, constants
        self._layer, self._rows, self._slots = layer, rows, slots

    def __call__(self, before: Any, after: Any) -> Any:
        if isinstance(before, tuple | list) and len(before) == len(after):
            return type(before)(self(*each) for each in zip(before, after, strict=True))
        if isinstance(before, dict) and before.keys() == after.keys():
            return {name: self(before[name], after[name]) for name in before}
        if before != after:
            return self._of_rows(before, after)
        if isinstance(before, Slot):
            return self._slots[before.index]
        if isinstance(before, Constant):
            return self._constants[before.index]
        return self._layer if isinstance(before, CacheLayer) else before

    def _of_rows(self, before: Any, after: Any) -> Node:
        """A size that grows with the number of rows."""
        multiple, rest = divmod(before, self._counts[0]) if isinstance(before, int) else (0, 1)
        if rest or after != multiple * self._counts[1]:
            raise Unrecordable("it does other things with another number of rows")
        return self._rows if multiple == 1 else self._graph.call_function(_times, (self._rows, multiple))


def _times(rows: int, multiple: int) -> int:
    return rows * multiple


def _call(graph: Graph, function: Any, args: Any, kwargs: Any) -> Node:
    """A call; by torch's own function or method where there is one, which takes less time than the operator."""
    if isinstance(function, torch._ops.OpOverload) and function.namespace == "aten":
        name = function._schema.name.removeprefix("aten::")
        if name in ("view", "_unsafe_view", "expand"):
            return graph.call_method(name.removeprefix("_unsafe_"), args, kwargs)
        plain = getattr(torch, name, None) or getattr(torch._C._nn, name, None)
        if isinstance(plain, types.BuiltinFunctionType):
            return graph.call_function(plain, args, kwargs)
    return graph.call_function(function, args, kwargs)
