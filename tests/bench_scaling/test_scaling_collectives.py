"""Collective operations: what is certain of every cluster, answers by hand, and a ring that is played through."""

import math

import pytest
from bench.scaling.collectives import (
    Cluster,
    Group,
    Link,
    all_gather,
    all_reduce,
    group_of,
    rate,
    reduce_scatter,
    ring_all_reduce,
    tree_all_reduce,
)
from hypothesis import given
from hypothesis import strategies as st

OPERATIONS = (all_gather, reduce_scatter, all_reduce, ring_all_reduce, tree_all_reduce)
speeds = st.floats(1e6, 1e13)
delays = st.floats(0, 1e-2)
clusters = st.builds(
    Cluster, st.sampled_from([1, 4, 8]), st.builds(Link, speeds, delays), st.builds(Link, speeds, delays), delays
)
powers = st.integers(0, 10).map(lambda power: 2**power)
sizes = st.floats(0, 1e12)


@given(sizes, clusters)
def test_one_gpu_sends_nothing(size, cluster):
    assert [operation(size, Group(1), cluster) for operation in OPERATIONS] == [0.0] * len(OPERATIONS)


@given(sizes, clusters, powers, st.floats(1, 100), st.floats(0, 1))
def test_a_faster_network_is_never_slower(size, cluster, gpus, faster, quicker):
    group = group_of(gpus, cluster)
    for which in ("inside", "between"):
        link = getattr(cluster, which)
        better = Link(link.bytes_per_second * faster, link.latency * quicker)
        parts = {"inside": cluster.inside, "between": cluster.between, which: better}
        quick = Cluster(cluster.per_node, parts["inside"], parts["between"], cluster.start)
        for operation in OPERATIONS:
            assert operation(size, group, quick) <= operation(size, group, cluster) * (1 + 1e-12)


@given(sizes, sizes, clusters, powers)
def test_more_bytes_are_never_quicker(size, more, cluster, gpus):
    group = group_of(gpus, cluster)
    for operation in OPERATIONS:
        assert operation(size, group, cluster) <= operation(size + more, group, cluster)


@given(sizes, clusters, powers)
def test_a_ring_all_reduce_is_a_scatter_and_a_gather_started_once(size, cluster, gpus):
    group = group_of(gpus, cluster)
    both = reduce_scatter(size, group, cluster) + all_gather(size, group, cluster)
    assert ring_all_reduce(size, group, cluster) == pytest.approx(both - cluster.start * (gpus > 1))


@pytest.mark.parametrize("gpus", [2, 3, 5, 8])
def test_a_ring_played_through_takes_as_long(gpus):
    """Every GPU hands on one of n pieces at each step, until everyone has them all."""
    size, link = 1000.0, Link(50.0, 0.25)
    has = [{rank} for rank in range(gpus)]
    seconds = 0.0
    while any(len(pieces) < gpus for pieces in has):
        step = round(seconds / (link.latency + size / gpus / link.bytes_per_second))
        sent = [(rank - step) % gpus for rank in range(gpus)]
        assert all(sent[rank] in has[rank] for rank in range(gpus))
        for rank in range(gpus):
            has[(rank + 1) % gpus].add(sent[rank])
        seconds += link.latency + size / gpus / link.bytes_per_second
    assert all_gather(size, Group(gpus), Cluster(gpus, link, link)) == pytest.approx(seconds)


def test_answers_by_hand():
    cluster = Cluster(8, Link(100.0, 1.0), Link(200.0, 10.0), 5.0)
    # 2 nodes of 8: 14 hops inside, 1 between; 15/16 of 1600 bytes at 100 a second, the slower of 100 and 200
    assert all_gather(1600.0, Group(8, 2), cluster) == 5 + 14 + 10 + 15
    # the same twice, started once
    assert ring_all_reduce(1600.0, Group(8, 2), cluster) == 5 + 2 * (14 + 10 + 15)
    # trees over 4 nodes: 7 hops inside and 2 between, up and down; all bytes up and down
    assert tree_all_reduce(1600.0, Group(8, 4), cluster) == 5 + 2 * (7 + 20) + 32
    # one GPU of each of 2 nodes: an eighth of what leaves a node
    assert rate(Group(1, 2), cluster) == 25.0


def test_hops_of_trees_grow_as_the_logarithm():
    cluster = Cluster(1, Link(1.0, 0.0), Link(1e30, 1.0))
    assert [tree_all_reduce(1.0, Group(1, nodes), cluster) for nodes in (2, 4, 1024)] == pytest.approx([2, 4, 20])
    assert ring_all_reduce(1.0, Group(1, 1024), cluster) == pytest.approx(2 * 1023)
    assert all_reduce(1.0, Group(1, 1024), cluster) == pytest.approx(20)


def test_large_messages_take_the_ring_and_small_ones_the_trees():
    cluster = Cluster(8, Link(1e11, 3e-6), Link(1e11, 1e-5))
    group = Group(8, 8)
    assert all_reduce(1e12, group, cluster) == ring_all_reduce(1e12, group, cluster)
    assert all_reduce(8.0, group, cluster) == tree_all_reduce(8.0, group, cluster)


def test_gpus_fill_their_nodes():
    cluster = Cluster(8, Link(1.0, 0.0), Link(1.0, 0.0))
    assert group_of(4, cluster) == Group(4)
    assert group_of(96, cluster) == Group(8, 12)
    with pytest.raises(ValueError, match="12 GPUs do not fill nodes of 8"):
        group_of(12, cluster)
    assert math.prod((group_of(1024, cluster).per_node, group_of(1024, cluster).nodes)) == 1024
