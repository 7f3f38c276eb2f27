"""Turns recordings of a module into a function that computes the same with fewer and faster operations.

Products that take the same input become one product, and on a CPU their weights are laid out as its kernels like them
best: for that, weights are copied.
"""

from __future__ import annotations

import operator
import types
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Graph, GraphModule, Node

from tutelage.models.caching import attend
from tutelage.models.recording import CacheLayer, Constant, Recording, Slot, Unrecordable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_MOST_ROWS = 32
"The number of rows that weights are laid out for; other numbers take hardly longer."
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
        _drop_repeats(graph)
        sources: dict[Node, Callable[[list[Tensor]], Tensor]] = {
            node: partial(_constant, index) for index, node in enumerate(constants)
        }
        places = {node: index for index, node in enumerate(constants)}
        for weight, bias in _join_products(graph, places, first.constants, layer):
            sources |= {weight[0]: weight[1]} | ({bias[0]: bias[1]} if bias else {})
        _drop_views(graph)
        graph.eliminate_dead_code()
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


def _packed(indices: list[int], constants: list[Tensor]) -> Tensor:
    """Weights (in, out) beside each other, in the layout of oneDNN's kernels."""
    parts = [constants[index].detach().t() for index in indices]
    whole = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(whole, _MOST_ROWS)
    return packed


def _biases(indices: list[int | None], sizes: list[int], constants: list[Tensor]) -> Tensor:
    like = next(constants[index] for index in indices if index is not None)
    parts = [
        like.new_zeros(size) if index is None else constants[index].detach()
        for index, size in zip(indices, sizes, strict=True)
    ]
    return torch.cat(parts)


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


# What makes it faster


def _drop_repeats(graph: Graph) -> None:
    """Compute once what is computed twice."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method") or node.target is attend:
            continue
        key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _hashable(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_hashable(each) for each in value)
    if isinstance(value, dict):
        return tuple((name, _hashable(each)) for name, each in value.items())
    return type(value), value  # 1 is not 1.0 here


def _drop_views(graph: Graph) -> None:
    """View a tensor once, where a view was viewed; and not at all where that leaves its shape."""
    for node in list(graph.nodes):
        if not _is_view(node):
            continue
        whole: Any = node.args[0]
        while _is_view(whole):
            whole = whole.args[0]
        node.args = (whole, *node.args[1:])
        if "shapes" in node.meta and whole.meta.get("shapes") == node.meta["shapes"]:
            node.replace_all_uses_with(whole)


def _is_view(node: Node) -> bool:
    return node.op == "call_method" and node.target in ("view", "flatten")


_Source = tuple[Node, "Callable[[list[Tensor]], Tensor]"]


def _join_products(
    graph: Graph, places: dict[Node, int], constants: list[Tensor], layer: Node
) -> list[tuple[_Source, _Source | None]]:
    """Make one packed product of those that take the same input; the nodes of its weight and bias, and their sources.

    Args:
        places: of the constants' nodes among the constants.
        layer: the node before which inputs for the packed weights are put.
    """
    groups: dict[Any, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target in (torch.mm, torch.addmm) and not node.kwargs:
            *bias, given, weight = node.args
            if weight in places and all(each in places for each in bias) and _packs(constants[places[weight]]):
                groups.setdefault((given, constants[places[weight]].dtype), []).append(node)
    return [_joined(graph, nodes, places, constants, layer) for nodes in groups.values()]


def _joined(
    graph: Graph, nodes: list[Node], places: dict[Node, int], constants: list[Tensor], layer: Node
) -> tuple[_Source, _Source | None]:
    given: Any = nodes[0].args[-2]
    named: list[Any] = [(node.args[-1], node.args[0] if len(node.args) == 3 else None) for node in nodes]
    weights = [places[weight] for weight, _ in named]
    biases = [None if bias is None else places[bias] for _, bias in named]
    sizes = [constants[weight].shape[1] for weight in weights]
    with graph.inserting_before(layer):
        weight = graph.placeholder(f"weight_{weights[0]}"), partial(_packed, weights)
        bias = None
        if any(index is not None for index in biases):
            bias = graph.placeholder(f"bias_{weights[0]}"), partial(_biases, biases, sizes)
    whole_given, leading = _unflattened(given)
    with graph.inserting_before(nodes[0]):
        whole = graph.call_function(_product, (whole_given, weight[0], bias and bias[0]))
        parts = [whole]
        if len(nodes) > 1:
            split = graph.call_function(torch.split_with_sizes, (whole, sizes, -1))
            parts = [graph.call_function(operator.getitem, (split, place)) for place in range(len(nodes))]
        flat = [graph.call_method("flatten", (part, 0, -2)) for part in parts]
    for node, part, size, each in zip(nodes, parts, sizes, flat, strict=True):
        part.meta["shapes"] = tuple((*lead, size) for lead in leading)
        each.meta["shapes"] = node.meta["shapes"]
        node.replace_all_uses_with(each)
        graph.erase_node(node)
    return weight, bias


def _unflattened(given: Node) -> tuple[Node, list[tuple[int, ...]]]:
    """What was flattened to (tokens, size) for a product, and its leading dimensions in both recordings."""
    whole: Any = given.args[0] if _is_view(given) else given
    if "shapes" not in whole.meta or [s[-1] for s in whole.meta["shapes"]] != [s[-1] for s in given.meta["shapes"]]:
        whole = given
    return whole, [shape[:-1] for shape in whole.meta["shapes"]]


def _packs(weight: Tensor) -> bool:
    """Whether there are packed kernels for a weight."""
    if not weight.is_cpu or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, _REORDER):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


_REORDER = "_reorder_linear_weight"


def _product(given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(given, weight, bias, "none", [], "")
    return product
