"""The record: whatever is done to it after it was written is found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import TutelageError
from tutelage_advisor.review.chain import START, TamperedError, append, read

contents = st.lists(
    st.dictionaries(st.text(max_size=5), st.text(max_size=10) | st.integers(-9, 9), max_size=3), min_size=2, max_size=6
)


def written(folder: Path, given_contents: list[dict[str, Any]]) -> Path:
    path = folder / "data.review"
    path.unlink(missing_ok=True)
    append(path, "ann", "opened", given_contents[:1])
    append(path, "bob", "decision", given_contents[1:])
    return path


@settings(max_examples=40, deadline=None)
@given(contents)
def test_what_is_appended_is_read_and_chained_by_sha256(
    tmp_path_factory: pytest.TempPathFactory, made: list[dict[str, Any]]
) -> None:
    path = written(tmp_path_factory.mktemp("chain"), made)
    assert [entry.content for entry in read(path)] == made
    before = START
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        claimed = fields.pop("hash")
        plain = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        assert fields["previous"] == before
        assert hashlib.sha256(plain.encode()).hexdigest() == claimed
        before = claimed


@settings(max_examples=40, deadline=None)
@given(contents, st.data())
def test_any_changed_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, made: list[dict[str, Any]], data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("chain"), made)
    record = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(record) - 1))
    record[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(record)
    with pytest.raises(TamperedError):
        read(path)


@settings(max_examples=40, deadline=None)
@given(contents, st.data())
def test_removed_added_and_reordered_lines_are_found(
    tmp_path_factory: pytest.TempPathFactory, made: list[dict[str, Any]], data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("chain"), made)
    lines = path.read_bytes().splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 2))
    changed = data.draw(
        st.sampled_from(
            [
                lines[:at] + lines[at + 1 :],
                lines[: at + 1] + lines[at:],
                [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
            ]
        )
    )
    path.write_bytes(b"".join(changed))
    with pytest.raises(TamperedError):
        read(path)


def test_a_line_cut_short_is_found_and_nothing_is_added_to_it(tmp_path: Path) -> None:
    path = written(tmp_path, [{"a": 1}, {"b": 2}])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(TamperedError, match="cut off"):
        read(path)
    before = path.read_bytes()
    with pytest.raises(TutelageError, match="tampered"):
        append(path, "eve", "decision", [{"c": 3}])
    assert path.read_bytes() == before


def test_appending_leaves_the_lines_before_as_they_were(tmp_path: Path) -> None:
    path = written(tmp_path, [{"a": 1}, {"b": "ü\u2028"}])
    before = path.read_bytes()
    append(path, "ann", "signature", [{"c": 3}])
    assert path.read_bytes().startswith(before)
    assert [entry.number for entry in read(path)] == [1, 2, 3]
