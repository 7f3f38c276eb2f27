"""Steps and micro-batches: what a step holds depends on data and seed alone, and no example is lost or doubled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.batches import Plan, collate, split_packed, split_padded
from tutelage.data.rendering import Tokens

lengths = st.lists(st.integers(2, 300), min_size=1, max_size=60).map(lambda items: np.array(items, dtype=np.int64))


class Store:
    """Examples in memory."""

    def __init__(self, items: list[Tokens]) -> None:
        self.items = items
        self.lengths = np.array([len(item.ids) for item in items], dtype=np.int64)
        self.weights = np.array([item.weight for item in items], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tokens:
        return self.items[index]

    def place(self, index: int) -> str:
        return f"memory row {index}"


def example(first: int, length: int, learnt_from: int) -> Tokens:
    ids = np.arange(first, first + length, dtype=np.int32)
    return Tokens(ids, np.arange(length) >= learnt_from)


@given(lengths, st.integers(8, 1000), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_holds_every_example_once(sizes, tokens_per_step, epochs, seed):
    plan = Plan(sizes, tokens_per_step=tokens_per_step, epochs=float(epochs), max_steps=None, seed=seed)
    seen = np.concatenate([step.examples for step in plan.iterate(0)])
    assert len(seen) == epochs * len(sizes)
    for epoch in range(epochs):
        assert sorted(seen[epoch * len(sizes) : (epoch + 1) * len(sizes)]) == list(range(len(sizes)))
    assert plan[len(plan)].epoch == epochs
    assert plan.tokens == epochs * sizes.sum()


@given(lengths, st.integers(8, 1000), st.integers(0, 5), st.data())
def test_a_plan_goes_on_from_any_step_as_if_never_stopped(sizes, tokens_per_step, seed, data):
    def make() -> Plan:
        return Plan(sizes, tokens_per_step=tokens_per_step, epochs=2.0, max_steps=None, seed=seed)

    after = data.draw(st.integers(0, len(make())))
    whole = [(step.number, step.examples.tolist()) for step in make().iterate(0)]
    rest = [(step.number, step.examples.tolist()) for step in make().iterate(after)]
    assert rest == whole[after:]


@given(lengths, st.integers(1, 40))
def test_max_steps_is_met_exactly(sizes, steps):
    plan = Plan(sizes, tokens_per_step=64, epochs=None, max_steps=steps, seed=0)
    assert len(plan) == steps
    assert [step.number for step in plan.iterate(0)] == list(range(1, steps + 1))


def test_steps_of_an_epoch_are_of_nearly_equal_size():
    sizes = np.random.default_rng(0).integers(20, 400, 1000)
    plan = Plan(sizes, tokens_per_step=4096, epochs=1.0, max_steps=None, seed=0)
    tokens = [int(sizes[step.examples].sum()) for step in plan.iterate(0)]
    assert min(tokens) > 0.85 * 4096
    assert max(tokens) < 1.15 * 4096


def test_a_fraction_of_an_epoch_uses_that_share_of_the_examples():
    plan = Plan(np.full(100, 10), tokens_per_step=50, epochs=0.3, max_steps=None, seed=0)
    assert sum(len(step.examples) for step in plan.iterate(0)) == 30


@pytest.mark.parametrize("split", [split_packed, split_padded])
@given(lengths, st.integers(8, 600), st.integers(1, 4))
def test_devices_share_a_step_without_losing_or_doubling_an_example(split, sizes, tokens, devices):
    examples = np.arange(len(sizes))
    shares = split(examples, sizes, tokens=tokens, devices=devices)
    assert len(shares) == devices
    assert len({len(share) for share in shares}) == 1  # all devices make the same number of passes
    assert sorted(np.concatenate([batch for share in shares for batch in share])) == examples.tolist()


@given(lengths, st.integers(8, 600))
def test_packed_micro_batches_are_balanced(sizes, tokens):
    (share,) = split_packed(np.arange(len(sizes)), sizes, tokens=tokens, devices=1)
    loads = [int(sizes[batch].sum()) for batch in share]
    assert max(loads) <= sizes.sum() / len(share) + sizes.max()


@given(lengths, st.integers(300, 2000))
def test_padded_micro_batches_stay_within_their_tokens(sizes, tokens):
    (share,) = split_padded(np.arange(len(sizes)), sizes, tokens=tokens, devices=1)
    assert all(len(batch) * sizes[batch].max() <= tokens for batch in share)


def test_packed_layout():
    store = Store([example(10, 3, 1), example(20, 2, 0)])
    batch = collate(store, [0, 1], packed=True, filler=0)
    assert batch.ids.tolist() == [[10, 11, 12, 20, 21]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.bounds.tolist() == [0, 3, 5]
    assert batch.targets.tolist() == [[False, True, True, False, True]]  # the first token of an example has no context


def test_padded_layout():
    store = Store([example(10, 3, 2), example(20, 2, 1)])
    batch = collate(store, [0, 1], packed=False, filler=9)
    assert batch.ids.tolist() == [[10, 11, 12], [20, 21, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.targets.tolist() == [[False, False, True], [False, True, False]]
    assert batch.bounds is None
