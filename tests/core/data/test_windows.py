"""Text files become documents, and documents a stream in which every token is learnt once an epoch."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data.batches import Plan, collate
from tutelage.data.reading import files_of, rows
from tutelage.data.rendering import Tokens
from tutelage.data.store import Selection, open_or_write
from tutelage.data.texts import PIECE, NotText, pieces
from tutelage.data.windows import Windows
from tutelage.errors import TutelageError

END = 0


def selection(folder: Path, documents: list[list[int]], picks: list[int] | None = None) -> Selection:
    """Rows of these ids, all of them learnt."""

    def write(writer):
        for number, ids in enumerate(documents, start=1):
            row = Tokens(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=bool))
            writer.add([row], f"text.txt line {number}", number)
        return {}

    store = open_or_write(folder, write)
    return Selection([store], [np.arange(len(store)) if picks is None else np.array(picks)])


documents = st.lists(
    st.lists(st.integers(1, 99), max_size=12).map(lambda ids: [*ids, END]), min_size=1, max_size=12
).filter(lambda rows: sum(map(len, rows)) > 1)


@settings(max_examples=80, deadline=None)
@given(rows=documents, length=st.integers(2, 9))
def test_every_token_is_learnt_once_and_in_order(tmp_path_factory, rows, length):
    windows = Windows(selection(tmp_path_factory.mktemp("store") / "key", rows), length)
    stream = [token for row in rows for token in row]
    learnt = [int(token) for window in windows for token in window.ids[window.targets]]
    assert learnt == stream[1:]
    for index, window in enumerate(windows):
        assert len(window) == windows.lengths[index] == (length if index < len(windows) - 1 else len(window))
        assert window.weight == windows.weights[index] == len(window) - 1
        assert window.parts is None
    plan = Plan(windows.lengths, tokens_per_step=3 * length, epochs=2.0, max_steps=None, seed=1)
    for epoch in (0, 1):
        seen = [index for step in plan.iterate(0) if epoch < step.epoch <= epoch + 1 for index in step.examples]
        assert sorted(seen) == list(range(len(windows)))


@settings(max_examples=80, deadline=None)
@given(rows=documents, length=st.integers(2, 9))
def test_documents_apart(tmp_path_factory, rows, length):
    """Each sequence of a window is a part of one document, and only what starts a document is not learnt."""
    windows = Windows(selection(tmp_path_factory.mktemp("store") / "key", rows), length, apart=END)
    learnt = [int(token) for window in windows for token in window.ids[window.targets]]
    assert learnt == [token for row in rows for token in row[1:]]
    assert [window.weight for window in windows] == windows.weights.tolist()
    for window in windows:
        for part in window.sequences():
            assert END not in part.ids[:-1]
    packed = collate(windows, range(len(windows)), packed=True, filler=END)
    assert packed.targets.sum() == windows.weights.sum()
    assert packed.sequences == sum(len(window.lengths) for window in windows)


def test_a_document_in_pieces_stays_one(tmp_path):
    """A row that no end-of-text token closes goes on in the next one."""
    windows = Windows(selection(tmp_path / "key", [[1, 2], [3, 4, END], [5, END]]), 100, apart=END)
    assert [part.ids.tolist() for part in windows[0].sequences()] == [[1, 2, 3, 4, END], [5, END]]


def test_rows_taken_twice_and_their_places(tmp_path):
    windows = Windows(selection(tmp_path / "key", [[1, END], [2, 3, END]], picks=[1, 1, 0]), 4)
    assert [window.ids.tolist() for window in windows] == [[2, 3, END, 2], [2, 3, END, 1], [1, END]]
    assert [windows.place(index) for index in range(3)] == ["text.txt line 2", "text.txt line 2", "text.txt line 1"]
    with pytest.raises(IndexError):
        windows[3]


def test_nothing_to_learn(tmp_path):
    with pytest.raises(ValueError, match="no text"):
        Windows(selection(tmp_path / "key", [[END]]), 8)


def read(text: str | bytes, documents: str) -> list[tuple[int, str, bool, bool]]:
    return list(pieces(io.BytesIO(text.encode() if isinstance(text, str) else text), documents))


def whole(text: str, documents: str) -> list[str]:
    """Documents put together again from their pieces."""
    found: list[str] = []
    for _, piece, starts, ends in read(text, documents):
        if starts:
            found.append("")
        found[-1] += piece
        assert ends or len(piece) >= PIECE
    return found


lines = st.lists(st.sampled_from(["", " ", "one", "two words", "é", "#" * 70_000]), max_size=9)


@settings(max_examples=100, deadline=None)
@given(lines=lines)
def test_documents_of_text(lines):
    text = "\n".join(lines)
    kept = [line for line in lines if line.strip()]
    assert whole(text, "line") == kept
    paragraphs = [[]]
    for line in lines:
        paragraphs[-1].append(line) if line.strip() else paragraphs.append([])
    assert whole(text, "paragraph") == ["\n".join(paragraph) for paragraph in paragraphs if paragraph]
    first = next((index for index, line in enumerate(lines) if line.strip()), None)
    last = next((index for index in reversed(range(len(lines))) if lines[index].strip()), None)
    assert whole(text, "file") == ([] if first is None else ["\n".join(lines[first : last + 1])])


def test_places_line_ends_and_byte_order_marks():
    text = b"\xef\xbb\xbfone\r\ntwo\r\n\r\n\nthree\n"
    assert read(text, "paragraph") == [(1, "one\ntwo", True, True), (5, "three", True, True)]
    assert [number for number, *_ in read(text, "line")] == [1, 2, 5]
    with pytest.raises(NotText) as error:
        read(b"fine\nnot \xff fine\n", "line")
    assert error.value.line == 2


@pytest.mark.parametrize("line", [b"word " * 20 + b"\n", b"word " * 200])
def test_memory_does_not_grow_with_the_file(tmp_path, line):
    """Sixteen megabytes, as lines or as one line, in the memory of a few pieces."""
    path = tmp_path / "long.txt"
    path.write_bytes(line * (16_000_000 // len(line)))
    tracemalloc.start()
    with path.open("rb") as file:
        characters = sum(len(text) for _, text, _, _ in pieces(file, "file"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters >= 15_900_000
    assert peak < 1_500_000


def test_text_files_as_rows(tmp_path):
    """Each document is a row with its place; beside other data, text files are notes."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one\n\ntwo\n")
    found = list(rows(files_of("texts", tmp_path, "data.train")))
    assert found == [("texts/a.txt line 1", {"text": "one"}), ("texts/a.txt line 3", {"text": "two"})]
    (tmp_path / "texts" / "b.jsonl").write_text('{"text": "three"}\n')
    assert list(rows(files_of("texts", tmp_path, "data.train"))) == [("texts/b.jsonl line 1", {"text": "three"})]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"fine\n\n\xff", "bad.txt line 3: is not UTF-8 text"),
        (b"\xff\xfeo\0n\0e\0", "bad.txt: is UTF-16, not UTF-8 text"),
        (b"GGUF\0\0", "bad.txt: is a binary file"),
        (b"\n \n", "bad.txt: holds no rows"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, words):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(TutelageError) as told:
        list(rows(files_of("bad.txt", tmp_path, "data.train")))
    assert words in str(told.value)
