"""Columns in files: what they hold is what arrays in memory would, and memory does not grow with the rows."""

from __future__ import annotations

import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data import columns
from tutelage.data.batches import Plan
from tutelage.data.columns import Column, are_among, kept
from tutelage.data.mixing import hold_out, repeat, row_of_examples, shared
from tutelage.data.rendering import Tokens
from tutelage.data.store import Selection, TokenStore, open_or_write
from tutelage.data.windows import Windows
from tutelage.engine.rehearsal import longest_rows

CHUNK = 4
END = 0


@pytest.fixture(autouse=True, scope="module")
def _small_chunks():
    """Chunks so small that every test goes over their borders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "CHUNK", CHUNK)
        yield


def stored(folder, rows: list[list[list[int]]]) -> TokenStore:
    """A store of rows of pieces; rows of the same first piece have the same digest."""

    def write(writer):
        for number, pieces in enumerate(rows, start=1):
            made = [Tokens(np.array(ids, dtype=np.int32), np.array(ids) % 2 == 0) for ids in pieces]
            writer.add(made, f"x line {number}", 2**63 + sum(pieces[0]))
        return {}

    return open_or_write(folder, write)


ids = st.lists(st.integers(0, 5), min_size=1, max_size=6)
contents = st.lists(st.lists(ids, min_size=1, max_size=3), max_size=14)
sources = st.lists(contents, min_size=1, max_size=3)


@pytest.mark.parametrize("count", [0, 1, CHUNK, 2 * CHUNK + 1])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64])
def test_a_column_is_the_file_that_numpy_writes(tmp_path, dtype, count):
    values = np.arange(count, dtype=dtype) * (2**60 if dtype == np.uint64 else 3)
    column = Column(tmp_path / "x.npy", dtype)
    for value in values.tolist():
        column.append(value)
    column.finish()
    read = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert read.dtype == dtype
    assert read.tolist() == values.tolist()


@pytest.mark.parametrize("width", [0, 3])
def test_a_column_of_rows(tmp_path, width):
    blocks = [np.random.default_rng(0).random((rows, width), dtype=np.float32) for rows in (1, 4, 2)]
    column = Column(tmp_path / "x.npy", np.float32)
    for block in blocks:
        column.extend(block)
    with pytest.raises(ValueError, match="rows of"):
        column.extend(np.zeros((1, width + 1)))
    column.finish()
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.concatenate(blocks))


def test_a_column_that_is_not_finished_is_not_read(tmp_path):
    column = Column(tmp_path / "x.npy", np.int64)
    column.extend(np.arange(99))
    column.close()
    with pytest.raises(ValueError, match="pickle"):
        np.load(tmp_path / "x.npy")


def test_kept_arrays_leave_no_name_behind_and_may_be_written(tmp_path):
    made = kept(iter([np.arange(3), np.arange(2)]), np.int32, tmp_path)
    made[1] = 7
    assert made.dtype == np.int32
    assert made.tolist() == [0, 7, 2, 0, 1]
    assert not list(tmp_path.iterdir())
    assert kept(iter([]), np.int64, tmp_path).tolist() == []


@given(st.lists(st.integers(0, 20)), st.lists(st.integers(0, 20)))
def test_membership(values, known):
    found = are_among(np.array(values, dtype=np.uint64), np.array(sorted(known), dtype=np.uint64))
    assert found.tolist() == [value in known for value in values]


@settings(max_examples=40, deadline=None)
@given(made=sources, share=st.floats(0.01, 0.5), weight=st.floats(0.05, 3), seed=st.integers(0, 9))
def test_what_is_held_out_and_repeated_is_chosen_as_in_memory(tmp_path_factory, made, share, weight, seed):
    folder = tmp_path_factory.mktemp("stores")
    stores = [stored(folder / str(number), rows) for number, rows in enumerate(made)]
    firsts = [_first_examples(store) for store in stores]
    wanted = _held_in_memory(stores, firsts, share, seed)
    if wanted is None:
        with pytest.raises(ValueError, match="none to train on"):
            hold_out(stores, share, seed)
        wanted = [np.zeros(len(store), dtype=bool) for store in stores]
    else:
        assert [mask.tolist() for mask in hold_out(stores, share, seed)] == [mask.tolist() for mask in wanted]
    for store, first, mask in zip(stores, firsts, wanted, strict=True):
        rows = np.cumsum(np.isin(np.arange(len(store)), first)) - 1
        assert row_of_examples(store).tolist() == rows.tolist()
        for held in (mask, None):
            usable = np.ones(len(store), dtype=bool) if held is None else ~held
            for times in (weight, 1.0, 2.0):
                assert list(repeat(store, held, times, seed)) == _repeated_in_memory(rows, usable, times, seed)


def _first_examples(store: TokenStore) -> np.ndarray:
    seen = [store.place(index) for index in range(len(store))]
    return np.array([i for i, place in enumerate(seen) if i == 0 or place != seen[i - 1]], dtype=np.int64)


def _held_in_memory(stores, firsts, share, seed):
    digests = np.concatenate([store.digests[first] for store, first in zip(stores, firsts, strict=True)])
    unique, counts = np.unique(digests, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(unique))
    wanted = max(1, round(share * int(counts.sum())))
    chosen = unique[order[: int(np.searchsorted(counts[order].cumsum(), wanted)) + 1]]
    return None if len(chosen) == len(unique) else [np.isin(store.digests, chosen) for store in stores]


def _repeated_in_memory(rows, usable, weight, seed):
    examples = np.flatnonzero(usable)
    kinds = np.unique(rows[examples])
    extra = round((weight - int(weight)) * len(kinds))
    chosen = np.random.default_rng(seed).permutation(kinds)[: max(1, extra) if weight < 1 else extra]
    return [*np.tile(examples, int(weight)), *examples[np.isin(rows[examples], chosen)]]


@settings(max_examples=40, deadline=None)
@given(made=sources, data=st.data())
def test_a_selection_has_the_columns_of_its_examples(tmp_path_factory, made, data):
    folder = tmp_path_factory.mktemp("stores")
    stores = [stored(folder / str(number), rows) for number, rows in enumerate(made)]
    picks = [
        data.draw(
            st.lists(st.integers(0, len(store) - 1), max_size=12).map(lambda picked: np.array(picked, dtype=np.int64))
            if len(store)
            else st.just(np.zeros(0, dtype=np.int64))
        )
        for store in stores
    ]
    for taken in (picks, [range(len(store)) for store in stores]):
        _has_columns(Selection(stores, taken), stores, taken)
    whole = Selection(stores, [range(len(store)) for store in stores])
    assert whole.fingerprint == Selection(stores, [np.arange(len(store)) for store in stores]).fingerprint
    some = Selection(stores, picks)
    assert shared(some, whole) == len(some)
    assert shared(whole, some) == np.isin(whole.digests, some.digests).sum()


def _has_columns(selection, stores, picks):
    expected = [store[int(index)] for store, pick in zip(stores, picks, strict=True) for index in pick]
    assert [tokens.ids.tolist() for tokens in selection] == [tokens.ids.tolist() for tokens in expected]
    assert selection.lengths.tolist() == selection.longest.tolist() == [len(tokens) for tokens in expected]
    assert selection.starts.tolist() == [0, *np.cumsum([len(tokens) for tokens in expected])]
    assert selection.weights.tolist() == [tokens.weight for tokens in expected]
    assert [end for chunk in selection.ends() for end in chunk] == [tokens.ids[-1] for tokens in expected]
    assert [f"x line {row}" for row in selection.rows] == [selection.place(index) for index in range(len(selection))]
    for outside in (-1, len(selection)):
        with pytest.raises(IndexError):
            selection[outside]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=14))
def test_groups_of_sequences(tmp_path_factory, sizes):
    """Examples of several sequences each, which number 1, 2 and so on."""
    folder = tmp_path_factory.mktemp("store") / "key"

    def write(writer):
        for number, parts in enumerate(sizes, start=1):
            values = np.full((len(parts), 2), number, dtype=np.float32)
            each = np.array(parts, dtype=np.int32)
            made = Tokens(np.arange(each.sum(), dtype=np.int32), np.ones(each.sum(), dtype=bool), each, values)
            writer.add([made], f"x line {number}", number)
        return {}

    store = open_or_write(folder, write)
    assert store.longest.tolist() == [max(parts) for parts in sizes]
    for index, parts in enumerate(sizes):
        assert store[index].parts.tolist() == parts
        assert store[index].values.tolist() == [[index + 1.0] * 2] * len(parts)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 300), min_size=1, max_size=60),
    tokens=st.integers(8, 1000),
    epochs=st.floats(0.2, 2.5),
    most=st.none() | st.integers(1, 20),
    seed=st.integers(0, 5),
)
def test_a_plan_orders_and_cuts_as_one_in_memory(sizes, tokens, epochs, most, seed):
    """Runs go on after an upgrade, so the order and the cuts are those of a permutation of all examples at once."""
    sizes = np.array(sizes)
    plan = Plan(sizes, tokens_per_step=tokens, epochs=epochs, max_steps=most, seed=seed)
    expected = []
    epoch = 0
    while len(expected) < most if most is not None else epoch < epochs:
        order = np.random.default_rng([seed, epoch]).permutation(len(sizes))
        share = 1.0 if most is not None else min(1.0, epochs - epoch)
        order = order[: max(1, round(share * len(order)))]
        ends = np.cumsum(sizes[order])
        steps = min(len(order), max(1, round(int(ends[-1]) / tokens)))
        cuts = np.unique(np.searchsorted(ends, np.arange(1, steps) * (ends[-1] / steps)) + 1)
        expected += [part.tolist() for part in np.split(order, cuts) if len(part)]
        epoch += 1
    expected = expected[:most]
    assert [step.examples.tolist() for step in plan.iterate(0)] == expected
    assert plan.tokens == sum(int(sizes[step].sum()) for step in expected)


@given(sizes=st.lists(st.integers(1, 20), max_size=30), tokens=st.integers(0, 200))
def test_the_longest_examples_are_those_of_all_in_memory(sizes, tokens):
    examples = Lengths(sizes)
    order = np.argsort(-examples.lengths, kind="stable")
    assert longest_rows(examples, tokens).tolist() == order[np.cumsum(examples.lengths[order]) <= tokens].tolist()


class Lengths(list):
    """Examples of which nothing but their lengths is asked."""

    @property
    def lengths(self) -> np.ndarray:
        return np.array(self, dtype=np.int64)


def test_a_writer_that_is_killed_leaves_no_store(tmp_path):
    code = """
import os, signal, sys
import numpy as np
from pathlib import Path
from tutelage.data import columns
from tutelage.data.rendering import Tokens
from tutelage.data.store import open_or_write
columns.CHUNK = 4
def write(writer):
    for number in range(1, 99):
        writer.add([Tokens(np.arange(4, dtype=np.int32), np.ones(4, dtype=bool))], f"x line {number}", 1)
    made = columns.kept(iter([np.arange(9)]), np.int64, Path(sys.argv[1]))
    if sys.argv[2] == "finish":
        writer.finish({})
    os.kill(os.getpid(), signal.SIGKILL)
open_or_write(Path(sys.argv[1]) / "key", write)
"""
    for when in ("amid", "finish"):
        killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), when], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert sorted(path.name for path in tmp_path.iterdir()) == ["key.lock", "key.partial"]
        if when == "amid":
            (tmp_path / "key.partial").rename(tmp_path / "half")
            with pytest.raises(ValueError, match="not a token store"):
                TokenStore(tmp_path / "half")
            (tmp_path / "half").rename(tmp_path / "key.partial")
    assert len(stored(tmp_path / "key", [[[1, 2]]])) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.lock"]


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Ten times the rows, written, held out from, repeated, cut into windows and planned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "CHUNK", 512)
        _peak(tmp_path / "before", 100)
        few, many = _peak(tmp_path / "few", 3000), _peak(tmp_path / "many", 30_000)
    assert many - few < 27_000 * 16  # bytes; the plan's order takes 4 a window, arrays in memory would take 76 a row


def _peak(folder, count: int) -> int:
    folder.mkdir()
    row = Tokens(np.array([1, 2, END], dtype=np.int32), np.ones(3, dtype=bool))

    def write(writer):
        for number in range(1, count + 1):
            writer.add([row], f"x line {number}", number)
        return {}

    tracemalloc.start()
    store = open_or_write(folder / "key", write)
    held = hold_out([store], 0.3, 0)[0]
    train = Selection([store], [repeat(store, held, 1.5, 0)])
    assert shared(Selection([store], [columns.marked(held, folder)]), train) == 0
    windows = Windows(train, 4, apart=END)
    plan = Plan(windows.lengths, tokens_per_step=windows.weights.sum() // 10, epochs=1.0, max_steps=None, seed=0)
    assert sum(len(step.examples) for step in plan.iterate(0)) == len(windows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
