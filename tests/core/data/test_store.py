"""The token store gives back what was written, is whole or absent, and is written once."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data.rendering import Tokens
from tutelage.data.store import Selection, TokenStore, open_or_write


def tokens(*ids: int) -> Tokens:
    return Tokens(np.array(ids, dtype=np.int32), np.array([i % 2 == 1 for i in ids], dtype=bool))


def filled(folder, rows: list[list[list[int]]]) -> TokenStore:
    def write(writer):
        for number, pieces in enumerate(rows, start=1):
            writer.add([tokens(*piece) for piece in pieces], f"data/x.jsonl line {number}", number * 10)
        return {"note": "kept"}

    return open_or_write(folder, write)


pieces = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.lists(pieces, min_size=1, max_size=3), max_size=6))
def test_what_was_written_is_read(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("store") / "key"
    filled(folder, rows)
    store = TokenStore(folder)
    expected = [(piece, number) for number, row in enumerate(rows, start=1) for piece in row]
    assert len(store) == len(expected)
    assert store.lengths.tolist() == [len(piece) for piece, _ in expected]
    assert store.weights.tolist() == [tokens(*piece).weight for piece, _ in expected]
    assert store.rows.tolist() == [number for _, number in expected]
    assert store.digests.tolist() == [number * 10 for _, number in expected]
    for index, (piece, number) in enumerate(expected):
        assert store[index].ids.tolist() == piece
        assert store[index].learn.tolist() == tokens(*piece).learn.tolist()
        assert store.place(index) == f"data/x.jsonl line {number}"
    assert store.meta["note"] == "kept"
    with pytest.raises(IndexError):
        store[len(expected)]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def write(writer):
        writer.add([tokens(1, 2)], "x line 1", 1)
        raise KeyError("oops")

    with pytest.raises(KeyError):
        open_or_write(tmp_path / "key", write)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
    assert len(filled(tmp_path / "key", [[[1, 2]]])) == 1


def test_what_a_killed_writer_left_is_replaced(tmp_path):
    partial = tmp_path / "key.partial"
    partial.mkdir()
    (partial / "ids.bin").write_bytes(b"torn")
    assert len(filled(tmp_path / "key", [[[1, 2]]])) == 1
    assert not partial.exists()


@pytest.mark.parametrize("name", ["ids.bin", "learn.bin", "weights.npy", "meta.json"])
def test_a_torn_store_is_written_anew(tmp_path, name):
    filled(tmp_path / "key", [[[1, 2, 3]]])
    file = tmp_path / "key" / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="token store"):
        TokenStore(tmp_path / "key")
    assert filled(tmp_path / "key", [[[1, 2, 3]]])[0].ids.tolist() == [1, 2, 3]


def test_processes_that_want_the_same_store_write_it_once(tmp_path):
    code = """
import sys, time
import numpy as np
from pathlib import Path
from tutelage.data.rendering import Tokens
from tutelage.data.store import open_or_write
folder = Path(sys.argv[1])
def write(writer):
    with (folder / "written").open("a") as file:
        file.write("once ")
    time.sleep(0.5)
    writer.add([Tokens(np.arange(4, dtype=np.int32), np.ones(4, dtype=bool))], "x line 1", 1)
    return {}
print(open_or_write(folder / "key", write)[0].ids.tolist())
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in processes] == ["[0, 1, 2, 3]"] * 3
    assert (tmp_path / "written").read_text() == "once "


def test_a_selection_is_its_picks_in_order(tmp_path):
    first, second = filled(tmp_path / "a", [[[1]], [[3, 5]]]), filled(tmp_path / "b", [[[7, 9, 11]]])
    picked = Selection([first, second], [np.array([1, 1, 0]), np.array([0])])
    assert [example.ids.tolist() for example in map(picked.__getitem__, range(4))] == [[3, 5], [3, 5], [1], [7, 9, 11]]
    assert picked.lengths.tolist() == [2, 2, 1, 3]
    assert picked.weights.tolist() == [1, 1, 0, 2]
    assert [picked.place(index) for index in range(4)] == [f"data/x.jsonl line {n}" for n in (2, 2, 1, 1)]
    assert picked.fingerprint == Selection([first, second], [np.array([1, 1, 0]), np.array([0])]).fingerprint
    assert picked.fingerprint != Selection([first, second], [np.array([1, 0, 0]), np.array([0])]).fingerprint


def test_no_file_of_a_store_is_a_pickle(tmp_path):
    filled(tmp_path / "key", [[[1, 2]]])
    for path in (tmp_path / "key").glob("*.npy"):
        assert np.load(path, allow_pickle=False).dtype != object
    assert json.loads((tmp_path / "key" / "meta.json").read_text())["labels"] == ["data/x.jsonl line"]
