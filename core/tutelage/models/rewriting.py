"""Rewrites a graph that was made of recordings, so that it computes the same with fewer and faster operations.

Products that take the same input become one product, and on a CPU their weights are laid out as its kernels like them
best: for that, weights are copied. Low-rank updates of such products become one product, too, and a norm by the root
mean square one operation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Graph, Node

from tutelage.models.caching import attend

if TYPE_CHECKING:
    from torch import Tensor

_MOST_ROWS = 32
"The number of rows that weights are laid out for; other numbers take hardly longer."
Source = Callable[[list["Tensor"]], "Tensor"]
"What makes a weight from the constants of a recording."


def rewrite(graph: Graph, places: dict[Node, int], constants: list[Tensor], layer: Node) -> dict[Node, Source]:
    """Rewrite a graph; the nodes of inputs for weights that are made from its constants, and what makes them.

    Args:
        places: of the constants' nodes among the constants.
        layer: the node before which inputs are put.
    """
    _drop_repeats(graph)
    _join_norms(graph, places, constants)
    sources = _join_products(graph, places, constants, layer)
    _drop_views(graph)
    graph.eliminate_dead_code()
    return sources


def _packed(indices: list[int], constants: list[Tensor]) -> Tensor:
    """Weights (in, out) beside each other, in the layout of oneDNN's kernels."""
    parts = [constants[index].detach().t() for index in indices]
    whole = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(whole, _MOST_ROWS)
    return packed


def _packed_updates(parts: list[tuple[int, float]], constants: list[Tensor]) -> Tensor:
    """Weights (in, out), each by a number, as the blocks of one, in the layout of oneDNN's kernels."""
    blocks = torch.block_diag(*(constants[index].detach() * scale for index, scale in parts))
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(blocks.t().contiguous(), _MOST_ROWS)
    return packed


def _biases(indices: list[int | None], sizes: list[int], constants: list[Tensor]) -> Tensor:
    like = next(constants[index] for index in indices if index is not None)
    parts = [
        like.new_zeros(size) if index is None else constants[index].detach()
        for index, size in zip(indices, sizes, strict=True)
    ]
    return torch.cat(parts)


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


def _join_products(graph: Graph, places: dict[Node, int], constants: list[Tensor], layer: Node) -> dict[Node, Source]:
    """Make one packed product of those that take the same input."""
    groups: dict[Any, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target in (torch.mm, torch.addmm) and not node.kwargs:
            *bias, given, weight = node.args
            if weight in places and all(each in places for each in bias) and _packs(constants[places[weight]]):
                groups.setdefault((given, constants[places[weight]].dtype), []).append(node)
    sources: dict[Node, Source] = {}
    for nodes in groups.values():
        sources |= _Joined(graph, nodes, places, constants, layer).sources
    return sources


class _Joined:
    """One packed product, put in place of several that take the same input.

    Where it has a product and a narrow one that updates it (LoRA's x W + s (x A) B), all such updates become one
    product, too: of the narrow ones, side by side, by a matrix that has the Bs as blocks.
    """

    def __init__(
        self, graph: Graph, nodes: list[Node], places: dict[Node, int], constants: list[Tensor], layer: Node
    ) -> None:
        self._graph, self._layer = graph, layer
        self.sources: dict[Node, Source] = {}
        first, updates = nodes[0], _updates(nodes, places)
        updated, narrow = [base for base, _, _ in updates], [each for _, each, _ in updates]
        others = [node for node in nodes if node not in updated and node not in narrow]
        nodes = [*updated, *narrow, *others]
        self._sizes = {node: constants[_place(node, -1, places)].shape[1] for node in nodes}
        given, self._leading = _unflattened(first.args[-2])
        with graph.inserting_before(first):
            whole = graph.call_function(_product, (given, *self._weights(nodes, places)))
            if updates:
                last = [update for _, _, update in updates]
                sizes = [sum(self._sizes[node] for node in each) for each in (updated, narrow, others)]
                base, low, rest = self._split(whole, sizes)
                ups = [(_place(update, 2, places), _scale(update)) for update in last]
                up = self._input("up", partial(_packed_updates, ups))
                self._replace(graph.call_function(_updated, (low, base, up)), updated, last)
                self._replace(rest, others, others)
                nodes = [*last, *nodes]
            else:
                self._replace(whole, nodes, nodes)
        for node in nodes:
            graph.erase_node(node)

    def _weights(self, nodes: list[Node], places: dict[Node, int]) -> tuple[Node, Node | None]:
        biases = [_place(node, 0, places) if len(node.args) == 3 else None for node in nodes]
        weight = self._input("weight", partial(_packed, [_place(node, -1, places) for node in nodes]))
        if all(index is None for index in biases):
            return weight, None
        return weight, self._input("bias", partial(_biases, biases, [self._sizes[node] for node in nodes]))

    def _input(self, kind: str, source: Source) -> Node:
        with self._graph.inserting_before(self._layer):
            node = self._graph.placeholder(f"{kind}_{len(self._graph.nodes)}")
        self.sources[node] = source
        return node

    def _split(self, whole: Node, sizes: list[int]) -> list[Node]:
        """Parts of these sizes."""
        split = self._graph.call_function(torch.split_with_sizes, (whole, sizes, -1))
        return [self._graph.call_function(operator.getitem, (split, place)) for place in range(len(sizes))]

    def _replace(self, whole: Node, nodes: list[Node], replaced: list[Node]) -> None:
        """Use the parts of a product, which are as large as what `nodes` gave, in place of what `replaced` did."""
        sizes = [self._sizes[node] for node in nodes]
        parts = self._split(whole, sizes) if len(nodes) > 1 else [whole][: len(nodes)]
        for part, size, node in zip(parts, sizes, replaced, strict=True):
            part.meta["shapes"] = tuple((*lead, size) for lead in self._leading)
            flat = self._graph.call_method("flatten", (part, 0, -2))
            flat.meta["shapes"] = node.meta["shapes"]
            node.replace_all_uses_with(flat)


def _updates(nodes: list[Node], places: dict[Node, int]) -> list[tuple[Node, Node, Node]]:
    """Of these products those that are updated, by which of them, and the node that does it."""
    found: list[tuple[Node, Node, Node]] = []
    free = set(nodes)
    for narrow in nodes:
        for update in narrow.users:
            if update.target is not torch.addmm or len(update.args) != 3 or update.kwargs.keys() - {"alpha"}:
                continue
            base: Any = update.args[0]
            once = len(narrow.users) == 1 and base in free and len(base.users) == 1
            if once and update.args[1] is narrow and narrow in free - {base} and update.args[2] in places:
                found.append((base, narrow, update))
                free -= {base, narrow}
    return found


def _place(node: Node, argument: int, places: dict[Node, int]) -> int:
    """The place of an argument among the constants."""
    given: Any = node.args[argument]
    return places[given]


def _scale(update: Node) -> float:
    scale: Any = update.kwargs.get("alpha", 1.0)
    return float(scale)


def _unflattened(given: Any) -> tuple[Node, list[tuple[int, ...]]]:
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


def _updated(narrow: Tensor, base: Tensor, weight: Tensor) -> Tensor:
    updated: Tensor = torch.ops.mkldnn._linear_pointwise.binary(narrow, base, weight, None, "add")
    return updated


# Norms


def _join_norms(graph: Graph, places: dict[Node, int], constants: list[Tensor]) -> None:
    """Compute x / sqrt(mean(x^2) + eps) x weight (Zhang & Sennrich 2019, "Root Mean Square Layer Normalization") as one
    operation, however it was written out."""
    for node in list(graph.nodes):
        if node.target is not torch.rsqrt:
            continue
        found = _normed(node)
        if found is None:
            continue
        given, eps, last = found
        for scaled in list(last.users):
            known = [each for each in scaled.args if isinstance(each, Node) and each in places]
            weights = [each for each in known if constants[places[each]].dim() == 1]
            if scaled.target is torch.mul and len(weights) == 1 and len(last.users) == 1 and not scaled.kwargs:
                rounded = last.target is torch.ops.aten._to_copy.default
                with graph.inserting_before(scaled):
                    joined = graph.call_function(_rms_norm, (given, weights[0], eps, rounded))
                joined.meta.update(scaled.meta)
                scaled.replace_all_uses_with(joined)
                graph.erase_node(scaled)


def _normed(root: Node) -> tuple[Node, float, Node] | None:
    """What a norm is of, its epsilon, and what it gives before its weight; None where it is no such norm.

    Args:
        root: where the square root is taken.
    """
    added: Any = root.args[0]
    if added.target is not torch.add or added.kwargs or not isinstance(added.args[1], float) or len(root.users) != 1:
        return None
    mean: Any = added.args[0]
    (times,) = root.users
    if times.target is not torch.mul or len(times.args) != 2:
        return None
    wide: Any = times.args[0] if times.args[1] is root else times.args[1]
    if mean.target is torch.mean and mean.args[1:] == ([-1], True):
        square = mean.args[0]
        of = square.args[0] if square.target is torch.pow and square.args[1] == 2 else None
    elif mean.target is torch.div and mean.args[1] == _width(wide):
        square = mean.args[0]
        norm: Any = square.args[0] if square.target is torch.pow and square.args[1] == 2 else None
        plain = norm is not None and norm.target is torch.ops.aten.linalg_vector_norm.default
        of = norm.args[0] if plain and norm.args[1:] == (2, [-1], True) else None
    else:
        return None
    if of is None or of is not wide:
        return None
    last = times
    if len(times.users) == 1 and next(iter(times.users)).target is torch.ops.aten._to_copy.default:
        (last,) = times.users
    given = wide.args[0] if wide.target is torch.ops.aten._to_copy.default else wide
    return given, added.args[1], last


def _width(node: Node) -> int | None:
    shapes = node.meta.get("shapes")
    return shapes[0][-1] if shapes else None


def _rms_norm(given: Tensor, weight: Tensor, eps: float, rounded: bool) -> Tensor:
    """Args: rounded: whether what is normed is given back its dtype before its weight."""
    if given.dtype == weight.dtype and (rounded or given.dtype == torch.float32):
        return torch.rms_norm(given, (given.shape[-1],), weight, eps)
    wide = given.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed.to(given.dtype) if rounded else normed) * weight
