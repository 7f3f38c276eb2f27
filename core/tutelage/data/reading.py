"""Where rows come from: a file, a folder of files, or a data set of the Hugging Face hub."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tutelage.data.problems import RowProblems
from tutelage.data.readers import SUFFIXES, Advance, read, suffix_of
from tutelage.data.texts import Documents
from tutelage.errors import Problem, TutelageError
from tutelage.formats import DataFormat
from tutelage.plugins import Host

HUB = "hub:"
_HUB_NAME = re.compile(r"^(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<split>[\w.\[\]%:+-]+))?$")
_KINDS = "JSON, JSONL (also .gz), CSV, Parquet or text (.txt)"


class Source(msgspec.Struct, frozen=True):
    """Something that yields rows: files, or a hub data set."""

    label: str
    "What the recipe calls it, and what places start with."
    place: str
    "The recipe's field that names it."
    files: tuple[tuple[str, Path], ...] = ()
    "Each file and what places call it."
    repository: str = ""
    split: str = "train"
    documents: Documents = "paragraph"
    "What is a document in its text files: a line, a paragraph or a file."

    @property
    def size(self) -> int:
        """Bytes on disk; 0 for a hub data set."""
        return sum(path.stat().st_size for _, path in self.files)


def files_of(source: str, base: Path, place: str) -> Source:
    """Find what a recipe's `source` names: a file or folder relative to `base`, or `hub:OWNER/NAME[:SPLIT]`.

    Raises:
        TutelageError: when there is no such thing, or nothing in it can be read.
    """
    if source.startswith(HUB):
        match = _HUB_NAME.match(source.removeprefix(HUB))
        if match is None:
            raise TutelageError.at(
                place, f"{source!r} names no hub data set", "write hub:OWNER/NAME or hub:OWNER/NAME:SPLIT"
            )
        return Source(source, place, repository=match["repository"], split=match["split"] or "train")
    path = base / Path(source).expanduser()
    try:
        if path.is_dir():
            files = _inside(path, source, place)
        elif path.is_file():
            files = ((source, path),)
        else:
            raise TutelageError.at(place, f"there is no file or folder {source}", _hint(source, path))
    except OSError as error:
        raise TutelageError.at(place, f"{source} can't be looked at: {error.strerror}") from None
    problems = [problem for label, file in files if (problem := _unreadable(label, file))]
    if problems:
        raise TutelageError(problems)
    return Source(source, place, files)


def rows(
    source: Source, problems: RowProblems | None = None, advance: Advance = lambda _: None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row with its place, such as `data/train.jsonl line 17` or `x.parquet row 5`.

    Malformed rows are noted in `problems` and skipped. `advance` is told of the bytes read.

    Raises:
        TutelageError: at the end, when there were malformed rows and no `problems` were given; at once for a hub
            data set that can't be had.
    """
    found = RowProblems() if problems is None else problems
    if source.repository:
        for number, row in enumerate(_hub(source), start=1):
            yield f"{source.label} row {number}", row
    for label, path in source.files:
        yield from read(path, label, found, advance, source.documents)
    if problems is None:
        found.raise_any(source.label)


def fingerprint(source: Source) -> str:
    """A hash (BLAKE2b, 128 bits, hexadecimal) of the contents, streamed; file names count by their kind only."""
    digest = hashlib.blake2b(digest_size=16)
    if source.repository:
        files = [Path(file["filename"]) for file in _hub(source).cache_files]
        digest.update(f"{source.repository}:{source.split}".encode())
        kinds = [".arrow"] * len(files)
    else:
        files = [path for _, path in source.files]
        kinds = [suffix_of(path) for path in files]
    for kind, path in zip(kinds, files, strict=True):
        digest.update(f"{kind} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def detect(first_row: dict[str, Any], host: Host, place: str) -> DataFormat:
    """The format that recognises a row.

    Raises:
        TutelageError: when none does, or more than one.
    """
    formats = [kind() for kind in host.classes("format").values() if issubclass(kind, DataFormat)]
    matching = [found for found in formats if found.matches(first_row)]
    if len(matching) == 1:
        return matching[0]
    seen = ", ".join(map(str, first_row)) or "none"
    if matching:
        names = " and ".join(found.name for found in matching)
        raise TutelageError.at(place, f"its columns ({seen}) fit the formats {names}", "say which by data.format")
    wanted = "; ".join(f"{found.name}: {', '.join(found.columns)}" for found in formats)
    raise TutelageError.at(place, f"its columns ({seen}) fit no data format", f"formats want {wanted}")


def _inside(folder: Path, source: str, place: str) -> tuple[tuple[str, Path], ...]:
    """The data files in a folder and below, by name; hidden ones are left out, and notes (text beside other data)."""
    below = sorted(path for path in folder.rglob("*") if path.is_file())
    visible = [path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    found = [path for path in visible if suffix_of(path) in SUFFIXES]
    data = [path for path in found if not suffix_of(path).startswith(".txt")] or found
    if not data:
        there = ", ".join(path.name for path in visible[:5]) or "nothing"
        raise TutelageError.at(
            place, f"the folder {source} holds no data files (there is {there})", f"it needs {_KINDS}"
        )
    return tuple((f"{source.rstrip('/')}/{path.relative_to(folder).as_posix()}", path) for path in data)


def _unreadable(label: str, path: Path) -> Problem | None:
    if suffix_of(path) not in SUFFIXES:
        return Problem(
            place=label,
            wrong=f"is a kind of file that is not known ({path.suffix or 'no suffix'})",
            fix=f"give {_KINDS}",
        )
    if not os.access(path, os.R_OK):
        return Problem(place=label, wrong="may not be read", fix="give yourself the right to read it")
    if path.stat().st_size == 0:
        return Problem(place=label, wrong="is empty", fix="give a file with at least one row")
    return None


def _hint(source: str, path: Path) -> str:
    siblings = {_stem(other): other.name for other in path.parent.iterdir()} if path.parent.is_dir() else {}
    near = difflib.get_close_matches(_stem(path), siblings, n=1)
    if near:
        return f"did you mean {Path(source).with_name(siblings[near[0]])}?"
    if _HUB_NAME.match(source):
        return f"for a data set of the hub write hub:{source}"
    return (
        f"paths start at the recipe's folder, {path.parent if path.parent.is_dir() else 'and there is no such folder'}"
    )


def _stem(path: Path) -> str:
    """A name without its suffixes, which would make any two data files look alike."""
    return path.name.partition(".")[0] or path.name


def _hub(source: Source) -> Any:
    """The data set, downloaded once into the cache of the datasets library."""
    try:
        import datasets
    except ImportError:
        raise TutelageError.at(
            source.place, f"{source.label} needs the package datasets", "pip install 'tutelage[hub]'"
        ) from None
    try:
        return datasets.load_dataset(source.repository, split=source.split)
    except Exception as error:  # the library raises what its many back ends do; a person needs the reason alone
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = "check its name and the network, or give files"
        raise TutelageError.at(source.place, f"{source.label} can't be had: {reason}", fix) from None
