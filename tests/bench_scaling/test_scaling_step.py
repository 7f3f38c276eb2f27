"""The model of a step: laws that hold whatever the constants are, and answers worked out apart from it."""

import msgspec
import pytest
from bench.scaling.collectives import Cluster, Link
from bench.scaling.networks import NETWORKS, cluster_of, network
from bench.scaling.step import PRECISION, Run, memory_of, state_bytes, step_time
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import architecture_of
from tutelage_advisor.estimates.speed import speed

CATALOG = load()
MODELS = {name: architecture_of(name, CATALOG) for name in ("Llama-3.2-1B", "Llama-2-7B", "Llama-3.1-70B")}
H100 = CATALOG.gpu("H100-SXM")


def run_of(**changes):
    made = Run(
        architecture=MODELS["Llama-2-7B"],
        gpu=H100,
        cluster=cluster_of(H100, NETWORKS[0]),
        gpus=64,
        strategy="fsdp",
        micro_batch=2,
        seq_len=2048,
    )
    return msgspec.structs.replace(made, **changes)


@st.composite
def runs(draw):
    gpu = CATALOG.gpu(draw(st.sampled_from(["A100-80GB", "H100-SXM", "RTX 4090"])))
    return run_of(
        architecture=draw(st.sampled_from(list(MODELS.values()))),
        gpu=gpu,
        cluster=cluster_of(gpu, draw(st.sampled_from(NETWORKS))),
        gpus=2 ** draw(st.integers(0, 10)),
        strategy=draw(st.sampled_from(["ddp", "fsdp", "hybrid"])),
        micro_batch=draw(st.integers(1, 8)),
        accumulation=draw(st.integers(1, 64)),
        checkpointing=draw(st.booleans()),
    )


@given(runs(), st.floats(1, 1000), st.floats(0, 1))
@settings(deadline=None)
def test_a_faster_interconnect_never_costs_time(run, faster, quicker):
    def better(link):
        return Link(link.bytes_per_second * faster, link.latency * quicker)

    slow = run.cluster
    for inside, between in ((better(slow.inside), slow.between), (slow.inside, better(slow.between))):
        quick = Cluster(slow.per_node, inside, between, slow.start, slow.waiting)
        changed = step_time(msgspec.structs.replace(run, cluster=quick))
        assert changed.seconds / changed.tokens <= step_time(run).seconds / run.tokens * (1 + 1e-9)


def test_each_network_is_no_slower_than_the_next():
    for strategy in ("ddp", "fsdp", "hybrid"):
        times = [
            step_time(run_of(strategy=strategy, cluster=cluster_of(H100, each))).seconds
            for each in sorted(NETWORKS, key=lambda one: -one.gb_s)
        ]
        assert times == sorted(times)
        assert times[0] < times[-1]


@given(runs())
@settings(deadline=None)
def test_one_gpu_is_what_the_advisor_says(run):
    alone = msgspec.structs.replace(run, gpus=1)
    found = step_time(alone)
    assert (found.exposed, found.communication, found.waiting) == (0, 0, 0)
    said = speed(run.architecture, alone.request(1), run.gpu, PRECISION, "single").tokens_per_second
    assert found.tokens_per_second == pytest.approx(said)


@given(runs())
@settings(deadline=None)
def test_nothing_hidden_is_more_than_there_is(run):
    found = step_time(run)
    assert 0 <= found.exposed <= found.communication * (1 + 1e-9)
    assert found.compute <= found.seconds


@given(st.sampled_from(list(MODELS.values())), st.integers(1, 10), st.booleans())
@settings(deadline=None)
def test_copies_need_the_same_memory_on_any_number_of_gpus(architecture, power, checkpointing):
    run = run_of(architecture=architecture, strategy="ddp", gpus=2**power, checkpointing=checkpointing)
    assert memory_of(run) == memory_of(msgspec.structs.replace(run, gpus=2))
    assert state_bytes(run) == state_bytes(msgspec.structs.replace(run, gpus=1))


@given(st.sampled_from(list(MODELS.values())), st.integers(0, 10))
def test_sharded_state_falls_as_one_by_n(architecture, power):
    run = run_of(architecture=architecture, gpus=2**power)
    assert state_bytes(run) * 2**power == state_bytes(msgspec.structs.replace(run, gpus=1))
    hybrid = msgspec.structs.replace(run, strategy="hybrid")
    assert state_bytes(hybrid) * min(8, 2**power) == state_bytes(msgspec.structs.replace(run, gpus=1))


def test_state_is_sixteen_bytes_a_parameter():
    """Weights, gradient and two moments in float32 (docs/estimates.md)."""
    assert state_bytes(run_of(gpus=1)) == 16 * MODELS["Llama-2-7B"].parameters
    held = memory_of(run_of(gpus=8))
    assert held.gradients_gib == pytest.approx(4 * MODELS["Llama-2-7B"].parameters / 8 / 2**30)


def test_hybrid_in_one_node_is_fsdp():
    for gpus in (2, 8):
        assert step_time(run_of(gpus=gpus)) == step_time(run_of(gpus=gpus, strategy="hybrid"))


def test_bytes_of_fsdp_by_hand():
    """Gathered twice at 2 bytes, scattered once at 4, n-1 of n parts, at a rate of one: with each micro-batch."""
    count = MODELS["Llama-2-7B"].parameters
    cluster = Cluster(8, Link(1.0, 0.0), Link(1.0, 0.0))
    found = step_time(run_of(gpus=4, cluster=cluster, accumulation=3))
    assert found.communication == pytest.approx(3 * (2 + 2 + 4) * count * 3 / 4)


def test_bytes_of_ddp_by_hand():
    """All gradients twice, n-1 of n parts, once a step."""
    count = MODELS["Llama-2-7B"].parameters
    cluster = Cluster(8, Link(1.0, 0.0), Link(1.0, 0.0))
    found = step_time(run_of(gpus=4, strategy="ddp", cluster=cluster, accumulation=3))
    assert found.communication == pytest.approx(2 * 4 * count * 3 / 4)


def test_what_is_hidden_by_hand():
    """On a network without an end to its slowness: three quarters of the arithmetic that it may hide behind."""
    cluster = Cluster(8, Link(1.0, 0.0), Link(1.0, 0.0))
    fsdp = step_time(run_of(gpus=4, cluster=cluster, accumulation=3))
    assert fsdp.communication - fsdp.exposed == pytest.approx(0.75 * fsdp.compute, rel=1e-4)
    ddp = step_time(run_of(gpus=4, strategy="ddp", cluster=cluster, accumulation=3))
    last_backward = ddp.compute / 3 * 2 / 3
    assert ddp.communication - ddp.exposed == pytest.approx(0.75 * last_backward, rel=1e-4)


def test_accumulation_pays_where_the_network_is_slow():
    slow = cluster_of(H100, network("Ethernet 100 Gb"))
    for strategy in ("ddp", "hybrid"):
        shares = []
        for accumulation in (1, 8, 64):
            found = step_time(run_of(strategy=strategy, cluster=slow, accumulation=accumulation))
            shares.append(found.compute / found.seconds)
        assert shares == sorted(shares)
        assert shares[0] < 0.2 < 0.6 < shares[-1]


def test_a_network_without_end_leaves_only_arithmetic():
    ideal = Cluster(8, Link(1e30, 0.0), Link(1e30, 0.0))
    for strategy in ("ddp", "fsdp", "hybrid"):
        found = step_time(run_of(strategy=strategy, cluster=ideal, gpus=1024))
        assert found.seconds == pytest.approx(found.compute + found.optimizer)
