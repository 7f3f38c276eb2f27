"""Reads a dataset for the audit: row by row, whatever is wrong with a row, in little memory."""

from __future__ import annotations

import gzip
import re
import zlib
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec
from msgspec.structs import replace

from tutelage.data.problems import RowProblems
from tutelage.data.readers import suffix_of
from tutelage.data.reading import Source, files_of, rows
from tutelage.datacheck import Example
from tutelage.errors import TutelageError
from tutelage.formats import Continuation, Conversation, DataFormat, Prompt, Ranking, Record, Text
from tutelage.plugins import host
from tutelage_advisor.audit.lenient import readable_turns, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_ROW = 16 * 2**20
"Bytes of one line; what is longer is no row of a dataset."
LARGEST_LIST = 2**30
"A JSON list is read whole; a longer one must be JSON Lines."
_LINES = (".jsonl", ".jsonl.gz", ".ndjson")
_HELD_OUT = ("eval", "test", "valid", "dev", "heldout", "held-out", "held_out")

RawRow = tuple[str, dict[str, Any], str]
"A row's place, its content, and why it can't be read (then the content is empty)."


def open_source(path: str | Path) -> Source:
    """What `path` names: a data file, a folder of them, or `hub:OWNER/NAME`.

    Raises:
        TutelageError: when there is no such thing, or nothing in it can be read.
    """
    return files_of(str(path), Path.cwd(), "data")


def split_source(path: str | Path) -> tuple[Source, Source | None]:
    """The rows to audit, and those that a folder's file names call held-out (`test.jsonl`, `eval-1.jsonl`)."""
    source = open_source(path)
    held_out = tuple(item for item in source.files if item[1].name.lower().startswith(_HELD_OUT))
    if not held_out or len(held_out) == len(source.files):
        return source, None
    training = tuple(item for item in source.files if item not in held_out)
    return replace(source, files=training), replace(source, files=held_out)


def examples(source: Source, limit: int | None = None) -> Iterator[Example]:
    """Every row of a source as an example, numbered from 1 across its files; at most `limit` rows.

    Raises:
        TutelageError: when a file is binary or can't be read at all.
    """
    formats = cast("list[DataFormat]", [made() for made in host().classes("format").values()])
    for number, (place, row, error) in enumerate(islice(raw_rows(source), limit), 1):
        yield _example(number, place, row, error, formats)


def about_rows(path: str | Path, read: int) -> int:
    """How many rows a dataset has: of JSON Lines by its size and the first `read` lines, else counted."""
    source, _ = split_source(path)
    plain = [file for _, file in source.files if suffix_of(file) in (".jsonl", ".ndjson")]
    others = tuple(item for item in source.files if item[1] not in plain)
    about = 0.0
    for file in plain:
        with file.open("rb") as opened:
            lengths = [len(line) for line in islice(opened, read)]
        about += file.stat().st_size * len(lengths) / sum(lengths) if lengths else 0
    counted = sum(1 for _ in raw_rows(replace(source, files=others))) if others or source.repository else 0
    return round(about) + counted


def raw_rows(source: Source) -> Iterator[RawRow]:
    """The rows of a source as they lie there, those that can't be read among them.

    Raises:
        TutelageError: as `examples`.
    """
    for label, path in source.files:
        try:
            if suffix_of(path) in _LINES:
                yield from _line_rows(label, path)
            else:
                _refuse_unfit(label, path)
                yield from _other_rows(replace(source, files=((label, path),)))
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TutelageError.at(
                label, f"can't be read: {reason}", "is it whole, and of the kind that its name says?"
            ) from None
    if source.repository:
        yield from _other_rows(source)


class _Noted(RowProblems):
    """Keeps what is wrong with rows until the rows before them were given out."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[RawRow] = []

    def add(self, place: str, wrong: str, fix: str = "") -> None:
        """Note a row that can't be read; what is wrong with the whole file is an error."""
        if not re.search(r" (?:line|row) \d+$", place):
            raise TutelageError.at(place, wrong, fix)
        self.waiting.append((place, {}, wrong))


def _other_rows(source: Source) -> Iterator[RawRow]:
    noted = _Noted()
    for place, row in rows(source, noted):
        yield from noted.waiting
        noted.waiting.clear()
        yield place, row, ""
    for place, _, wrong in noted.waiting:
        if wrong.startswith(("malformed", "is not UTF-8")):  # a list or a table can't be read beyond such a place
            raise TutelageError.at(place, wrong, "mend it there")
    yield from noted.waiting


def _refuse_unfit(label: str, path: Path) -> None:
    """Files of other kinds than JSON Lines are read with less care for memory, so what is no data is refused first."""
    with path.open("rb") as file:
        head = file.read(2**16)
    if suffix_of(path) in (".json", ".csv", ".tsv"):
        _refuse_binary(head, label)
    if suffix_of(path) == ".json" and head.lstrip()[:1] == b"[" and path.stat().st_size > LARGEST_LIST:
        raise TutelageError.at(
            label, "is a JSON list of more than 1 GB", "make it JSON Lines, which is read row by row"
        )


def _line_rows(label: str, path: Path) -> Iterator[RawRow]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with cast("BinaryIO", opener(path, "rb")) as file:
        line_number = 0
        while line := file.readline(LONGEST_ROW):
            line_number += 1
            if line_number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            _refuse_binary(line, label)
            place = f"{label} line {line_number}"
            if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
                _skip_line(file, label)
                yield place, {}, f"the line is longer than {LONGEST_ROW // 2**20} MB"
            elif not line.isspace():
                yield place, *_decoded(line)


def _skip_line(file: BinaryIO, label: str) -> None:
    while (chunk := file.readline(LONGEST_ROW)) and not chunk.endswith(b"\n"):
        _refuse_binary(chunk, label)


def _refuse_binary(data: bytes, label: str) -> None:
    if b"\0" in data:
        raise TutelageError.at(label, "is binary (it holds NUL bytes), not text", "save it as UTF-8 text")


def _decoded(line: bytes) -> tuple[dict[str, Any], str]:
    try:
        row = msgspec.json.decode(line)
    except UnicodeDecodeError:
        return {}, "is not UTF-8 text"
    except (msgspec.DecodeError, RecursionError) as error:
        return {}, f"is not JSON: {error}"
    return _mapping(row)


def _mapping(row: Any) -> tuple[dict[str, Any], str]:
    return (row, "") if isinstance(row, dict) else ({}, f"is a JSON {type(row).__name__}, not an object")


def _example(number: int, place: str, row: dict[str, Any], error: str, formats: list[DataFormat]) -> Example:
    if error:
        return Example(number=number, place=place, row=row, error=error)
    form = next((known for known in formats if known.matches(row)), None)
    if form is None:
        turns, shape = readable_turns(row)
        why = (
            ""
            if shape == "preference"
            else f"has no known format; its columns are {', '.join(map(str, row)) or 'none'}"
        )
        return Example(number=number, place=place, row=row, format=shape, turns=turns, error=why)
    try:
        turns = _turns(form.convert(row))
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        turns, _ = readable_turns(row)
        return Example(number=number, place=place, row=row, format=form.name, turns=turns, error=str(problem))
    return Example(number=number, place=place, row=row, format=form.name, turns=turns)


def _turns(record: Record) -> list[tuple[str, str]]:
    """The turns of a record; of ranked answers the best one, which is what the others are measured by."""
    if isinstance(record, Conversation):
        return _asked(record.messages)
    if isinstance(record, Continuation):
        return [("user", record.prompt), ("assistant", record.completion)]
    if isinstance(record, Text):
        return [("text", record.text)]
    best = record.answers[record.ranks.index(min(record.ranks))] if isinstance(record, Ranking) else record.answer
    return [*_asked(record.prompt), *([("assistant", best)] if best else [])]


def _asked(prompt: Prompt) -> list[tuple[str, str]]:
    if isinstance(prompt, str):
        return [("user", prompt)]
    return [(str(turn["role"]), text_of(turn)) for turn in prompt]
