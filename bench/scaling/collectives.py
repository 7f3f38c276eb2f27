"""Seconds that collective operations take, by the alpha-beta model: a hop costs a latency, a byte a share of a rate.

Thakur et al. 2005 ("Optimization of collective communication operations in MPICH", section 4) for the cost of rings,
Patarasuk and Yuan 2009 for the ring all-reduce's 2 (n-1)/n of the bytes being the least possible, Sanders et al. 2009
for the two binary trees that together use the whole bandwidth, which NCCL has had since 2.4.
"""

from __future__ import annotations

import math

import msgspec


class Link(msgspec.Struct, frozen=True):
    """One kind of connection: bytes a second in one direction, and seconds that a hop adds."""

    bytes_per_second: float
    latency: float


class Cluster(msgspec.Struct, frozen=True):
    """Nodes of GPUs. `inside` is each GPU's own link, `between` is what all GPUs of a node share."""

    per_node: int
    inside: Link
    between: Link
    start: float = 0.0
    "Seconds to start a collective operation."
    waiting: float = 0.0
    "Share of its arithmetic's time that a GPU waits for the slowest, for each doubling of the nodes."


class Group(msgspec.Struct, frozen=True):
    """Who takes part: so many GPUs on each of so many nodes."""

    per_node: int
    nodes: int = 1

    @property
    def ranks(self) -> int:
        """All GPUs that take part."""
        return self.per_node * self.nodes


def group_of(gpus: int, cluster: Cluster) -> Group:
    """All of so many GPUs, on as few nodes as they fill.

    Raises:
        ValueError: when a node would be filled in part while others are full.
    """
    if gpus <= cluster.per_node:
        return Group(gpus)
    if gpus % cluster.per_node:
        raise ValueError(f"{gpus} GPUs do not fill nodes of {cluster.per_node}")
    return Group(cluster.per_node, gpus // cluster.per_node)


def rate(group: Group, cluster: Cluster) -> float:
    """Bytes a second that pass through each GPU of a ring.

    Rings enter and leave a node once, and libraries make as many as there are network cards: together they have the
    node's whole bandwidth. A group of a few GPUs of each node has as many brothers that work at the same time, and gets
    its share.
    """
    if group.nodes == 1:
        return cluster.inside.bytes_per_second
    shared = cluster.between.bytes_per_second * group.per_node / cluster.per_node
    return shared if group.per_node == 1 else min(cluster.inside.bytes_per_second, shared)


def all_gather(size: float, group: Group, cluster: Cluster) -> float:
    """Seconds until every GPU has all `size` bytes, of which each had a part: n-1 hops, (n-1)/n of the bytes."""
    n = group.ranks
    if n == 1:
        return 0.0
    hops = (n - group.nodes) * cluster.inside.latency + (group.nodes - 1) * cluster.between.latency
    return cluster.start + hops + (n - 1) / n * size / rate(group, cluster)


def reduce_scatter(size: float, group: Group, cluster: Cluster) -> float:
    """Seconds until each GPU has its part of the sum of everyone's `size` bytes: the all-gather run backwards."""
    return all_gather(size, group, cluster)


def ring_all_reduce(size: float, group: Group, cluster: Cluster) -> float:
    """A reduce-scatter and an all-gather in one operation: least bytes, but hops grow as n."""
    if group.ranks == 1:
        return 0.0
    return 2 * all_gather(size, group, cluster) - cluster.start


def tree_all_reduce(size: float, group: Group, cluster: Cluster) -> float:
    """Up and down a pair of binary trees of nodes, with a chain inside each node: hops grow as log2 of the nodes."""
    if group.ranks == 1:
        return 0.0
    depth = math.ceil(math.log2(group.nodes))
    hops = 2 * ((group.per_node - 1) * cluster.inside.latency + depth * cluster.between.latency)
    return cluster.start + hops + 2 * size / rate(group, cluster)


def all_reduce(size: float, group: Group, cluster: Cluster) -> float:
    """The faster of ring and trees, which the library picks by the size."""
    return min(ring_all_reduce(size, group, cluster), tree_all_reduce(size, group, cluster))
