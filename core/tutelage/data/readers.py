"""One reader per kind of file. Each yields `(place, row)` and streams, but for JSON lists, which are loaded whole.

A reader notes what is wrong with its file or with one of its lines in `problems` and goes on if it can.
`advance` is called with the number of bytes read, for progress.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from tutelage.data.problems import RowProblems
from tutelage.data.texts import Documents, NotText, pieces
from tutelage.errors import TutelageError

Rows = Iterator[tuple[str, Any]]
Advance = Callable[[int], None]

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LONGEST_FIELD = 2**31 - 1
_OBJECT_A_LINE = "each line must be one JSON object"


def read(path: Path, label: str, problems: RowProblems, advance: Advance, documents: Documents = "paragraph") -> Rows:
    """Yield the rows of a file whose name ends as one of `SUFFIXES`; `label` is what places call it.

    Args:
        documents: what is a document in a text file: a line, a paragraph or the file.
    """
    reader = SUFFIXES[suffix_of(path)]
    if reader is _text:
        reader = partial(_text, documents=documents)
    before = problems.count
    empty = True
    try:
        for place, row in reader(path, label, problems, advance):
            empty = False
            if isinstance(row, dict):
                yield place, row
            else:
                problems.add(place, f"is {_kind(row)}, not an object with named fields")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problems.add(label, f"can't be read: {reason}", "is it whole and of the kind that its name says?")
    if empty and problems.count == before:
        problems.add(label, "holds no rows", "give a file with at least one row")


def suffix_of(path: Path) -> str:
    """The end of a name that says the kind of file: `.jsonl`, `.json.gz` …"""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


class _Counted(io.FileIO):
    """A file that tells how many bytes were read from it."""

    advance: Advance

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        self.advance(count or 0)
        return count


@contextmanager
def _open(path: Path, advance: Advance) -> Iterator[BinaryIO]:
    raw = _Counted(path)
    raw.advance = advance
    with io.BufferedReader(raw, 1 << 16) as buffered:
        if path.suffix.lower() == ".gz":
            with gzip.GzipFile(fileobj=buffered) as unzipped:
                yield cast("BinaryIO", unzipped)
        else:
            yield buffered


def _not_text(head: bytes) -> str:
    """Why bytes from the start of a file can't be UTF-8 text, or ''."""
    if head.startswith(_UTF16):
        return "is UTF-16, not UTF-8 text"
    return "is a binary file, not text" if b"\0" in head else ""


def _text_lines(file: BinaryIO, label: str, problems: RowProblems) -> Iterator[tuple[int, bytes]]:
    """Number the lines of a text file, without its byte order mark."""
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(_BOM)
            if reason := _not_text(line):
                problems.add(label, reason, "save it as UTF-8 text")
                return
        yield number, line


def _json_lines(path: Path, label: str, problems: RowProblems, advance: Advance) -> Rows:
    decode = msgspec.json.Decoder().decode
    with _open(path, advance) as file:
        for number, line in _text_lines(file, label, problems):
            if line.isspace():
                continue
            place = f"{label} line {number}"
            try:
                yield place, decode(line)
            except UnicodeDecodeError:
                problems.add(place, "is not UTF-8 text", "save the file as UTF-8")
            except (msgspec.DecodeError, RecursionError) as error:
                problems.add(place, _reason(error), _OBJECT_A_LINE)


def _json(path: Path, label: str, problems: RowProblems, advance: Advance) -> Rows:
    """A list of objects, or (as many `.json` files are) one object a line."""
    with _open(path, lambda _: None) as file:
        head = file.read(4096).removeprefix(_BOM).lstrip()
    if not head.startswith(b"["):
        yield from _json_object_or_lines(path, label, problems, advance, head)
        return
    with _open(path, advance) as file:
        data = file.read().removeprefix(_BOM)
    try:
        rows = msgspec.json.decode(data)
    except UnicodeDecodeError:
        problems.add(label, "is not UTF-8 text", "save it as UTF-8")
    except (msgspec.DecodeError, RecursionError) as error:
        problems.add(f"{label} line {_line_of(error, data)}", _reason(error), "mend the JSON there")
    else:
        yield from ((f"{label} row {number}", row) for number, row in enumerate(rows, start=1))


def _json_object_or_lines(path: Path, label: str, problems: RowProblems, advance: Advance, head: bytes) -> Rows:
    if reason := _not_text(head):
        problems.add(label, reason, "give a JSON list of objects")
        return
    first_line = head.partition(b"\n")[0].rstrip()
    if first_line == b"{" or (head and not head.startswith(b"{")):
        found = "one object" if head.startswith(b"{") else "something else"
        problems.add(label, f"holds {found}, not a list of rows", "give a JSON list of objects, or one object a line")
        return
    yield from _json_lines(path, label, problems, advance)


def _csv(path: Path, label: str, problems: RowProblems, advance: Advance) -> Rows:
    csv.field_size_limit(_LONGEST_FIELD)
    with _open(path, advance) as file:
        lines = _decoded(_text_lines(file, label, problems), label)
        try:
            first = next(lines, "")
            delimiter = "\t" if ".tsv" in path.suffixes else _delimiter(first)
            reader = csv.reader(itertools.chain([first], lines), strict=True, delimiter=delimiter)
            header = next(reader, [])
            if repeated := sorted({name for name in header if header.count(name) > 1}):
                problems.add(f"{label} line 1", f"the column {repeated[0]!r} appears twice", "rename one of them")
                return
            yield from _csv_rows(reader, header, label, problems)
        except csv.Error as error:
            problems.add(f"{label} line {reader.line_num}", f"malformed: {error}", "mend the quotes there")
        except TutelageError as error:
            problems.add(error.problems[0].place, error.problems[0].wrong, error.problems[0].fix)


def _delimiter(header: str) -> str:
    """What parts the columns: the most frequent of comma, semicolon (many spreadsheets') and tab outside quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max((",", ";", "\t"), key=bare.count)


def _csv_rows(reader: Any, header: list[str], label: str, problems: RowProblems) -> Rows:
    start = reader.line_num + 1
    for cells in reader:
        place, start = f"{label} line {start}", reader.line_num + 1
        if not cells:
            continue
        if len(cells) != len(header):
            parted = {",": "commas", ";": "semicolons", "\t": "tabs"}[reader.dialect.delimiter]
            fix = f"mend the row: {parted} part the fields, and a text that holds one stands in double quotes"
            problems.add(place, f"has {len(cells)} fields where the header has {len(header)}", fix)
            continue
        yield place, dict(zip(header, cells, strict=True))


def _decoded(lines: Iterator[tuple[int, bytes]], label: str) -> Iterator[str]:
    """Raises TutelageError at the line that is not UTF-8: what follows can't be told apart from it."""
    for number, line in lines:
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            raise TutelageError.at(f"{label} line {number}", "is not UTF-8 text", "save the file as UTF-8") from None


def _parquet(path: Path, label: str, problems: RowProblems, advance: Advance) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        problems.add(label, "can't be read without the package pyarrow", "pip install 'tutelage[train]'")
        return
    try:
        file = parquet.ParquetFile(path)
        total = max(file.metadata.num_rows, 1)
        size = path.stat().st_size
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{label} row {number}", row
            advance(size * batch.num_rows // total)
    except pyarrow.ArrowException as error:
        problems.add(label, f"is not a Parquet file that can be read: {error}".splitlines()[0], "write it anew")


def _text(path: Path, label: str, problems: RowProblems, advance: Advance, documents: Documents = "paragraph") -> Rows:
    with _open(path, lambda _: None) as file:
        reason = _not_text(file.read(4096).removeprefix(_BOM))
    if reason:
        problems.add(label, reason, "save it as UTF-8 text")
        return
    try:
        with _open(path, advance) as file:
            for line, text, starts, ends in pieces(file, documents):
                whole = {} if starts and ends else {"starts": starts, "ends": ends}
                yield f"{label} line {line}", {"text": text, **whole}
    except NotText as error:
        problems.add(f"{label} line {error.line}", "is not UTF-8 text", "save the file as UTF-8")


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    message = str(error)
    byte = re.search(r"\(byte (\d+)\)", message)
    if "truncated" in message:
        return "malformed JSON: it ends too early"
    where = f" at character {int(byte.group(1)) + 1} or so" if byte else ""
    return f"malformed {re.sub(r' ?[(]byte [0-9]+[)]', '', message).replace('JSON is malformed', 'JSON')}{where}"


def _line_of(error: Exception, data: bytes) -> int:
    byte = re.search(r"\(byte (\d+)\)", str(error))
    return data[: int(byte.group(1))].count(b"\n") + 1 if byte else data.rstrip().count(b"\n") + 1


SUFFIXES: dict[str, Callable[[Path, str, RowProblems, Advance], Rows]] = {
    ".json": _json,
    ".json.gz": _json,
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".txt": _text,
    ".txt.gz": _text,
}
