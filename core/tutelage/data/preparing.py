"""Data is prepared once: rows become tokens in a cached, memory-mapped store, and a recipe's selection of them is made.

A store is keyed by the content of its source, the tokenizer with its chat template, the settings and the code that
decide what an example is. Tokenising is spread over the processors by the tokenizers library's own threads; on Alpaca
rows it is about three quarters of the processor time. The rest runs in one thread, which is the limit on many cores.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.data.columns import marked
from tutelage.data.counting import DataReport, SourceReport
from tutelage.data.mixing import hold_out, repeat, shared
from tutelage.data.problems import RowProblems
from tutelage.data.progress import reading_progress
from tutelage.data.reading import Source, detect, files_of, fingerprint, rows
from tutelage.data.rendering import Renderer, Tokens
from tutelage.data.store import SCHEMA, Selection, TokenStore, Writer, open_or_write
from tutelage.data.windows import Windows
from tutelage.errors import Problem, TutelageError
from tutelage.formats import NAMES, DataFormat, Record, Text
from tutelage.models.locating import cache_folder
from tutelage.phase import TrainingPhase
from tutelage.plugins import Host
from tutelage.recipe import Data
from tutelage.recipe import Source as MixedSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_AT_A_TIME = 512
_CHARACTERS_AT_A_TIME = 1 << 20
"Of plain text, whose rows may be long."


class Prepared(msgspec.Struct):
    """A stage's data, ready to be batched."""

    train: Selection | Windows
    eval: Selection | Windows | None
    report: DataReport
    fingerprints: dict[str, str]
    "Of the contents of each source, by what the recipe calls it."


class _Part(msgspec.Struct):
    """One source of a recipe's data, found."""

    source: Source
    format: DataFormat | None
    weight: float = 1.0


class _Setting(msgspec.Struct):
    """What decides, besides rows and tokenizer, which examples a source becomes."""

    phase: TrainingPhase
    data: Data
    renderer: Renderer
    max_length: int
    host: Host


def prepare(
    phase: TrainingPhase,
    data: Data,
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    host: Host,
    place: str,
    cache: Path | None = None,
    end_ids: frozenset[int] = frozenset(),
) -> Prepared:
    """Make a stage's data ready: read, check and tokenise what is not cached yet, hold out, and mix.

    Args:
        base: the folder that relative paths start from.
        place: the recipe's field, which problems with the recipe name.
        cache: where stores are kept, in `tokens/` below it; `cache_folder()` if None.
        end_ids: ids besides EOS at which generation stops.

    Raises:
        TutelageError: with every problem found in the sources and their rows.
    """
    parts, held = _parts(data, base, host, place)
    try:
        renderer = Renderer(tokenizer, data.learn_from, end_ids)
    except ValueError as error:
        raise TutelageError.at("tokenizer", str(error)) from None
    setting = _Setting(phase, data, renderer, max_length, host)
    folder = (cache or cache_folder()) / "tokens"
    tokenizer_key = tokenizer_fingerprint(tokenizer)
    fingerprints = {part.source.label: fingerprint(part.source) for part in chain(parts, held)}
    problems: list[Problem] = []
    stores: list[TokenStore] = []
    for part in chain(parts, held):
        key = _key(setting, part, fingerprints[part.source.label], tokenizer_key)
        try:
            stores.append(_store(setting, part, folder / key))
        except TutelageError as error:
            problems += error.problems
    reports = [msgspec.convert(store.meta["report"], SourceReport) for store in stores]
    problems += [problem for report in reports if (problem := report.loss(data.allow_loss, max_length))]
    if problems:
        raise TutelageError(problems)
    with _room(folder):
        try:
            train, evaluation = _select(stores[: len(parts)], stores[len(parts) :], parts, data, seed)
        except ValueError as error:
            fix = "give more rows, or a file of its own as eval"
            raise TutelageError.at(f"{place}.eval_split", str(error), fix) from None
        try:
            arranged = phase.arrange(train, renderer, max_length)
            held_out = phase.arrange(evaluation, renderer, max_length) if evaluation else None
        except ValueError as error:
            raise TutelageError.at(place, str(error)) from None
        twice = shared(evaluation, train) if evaluation else 0
        if held_out is not None:  # its columns are made when they are asked for: now, while a lack of room can be told
            _ = held_out.lengths, held_out.weights, held_out.longest
        return Prepared(arranged, held_out, _report(reports, arranged, held_out, twice), fingerprints)


def stream(data: Data, base: Path, host: Host, place: str) -> Iterator[tuple[str, Record]]:
    """The records of a stage's training data one by one; rows that can't be used are passed over.

    Raises:
        TutelageError: when a source can't be had.
    """
    for part in _parts(data, base, host, place)[0]:
        wrong = RowProblems()
        yield from _records(host, part, rows(part.source, wrong), SourceReport(part.source.label), wrong)


def sources_of(data: Data, base: Path, host: Host, place: str) -> list[Source]:
    """The sources of a stage's training data, found.

    Raises:
        TutelageError: when one can't be had.
    """
    return [part.source for part in _parts(data, base, host, place)[0]]


def records(
    phase: str, takes: tuple[type, ...], data: Data, base: Path, host: Host, place: str
) -> list[tuple[str, Record]]:
    """All records of a stage's training data, in their order, each with the place that it comes from.

    Args:
        phase: who takes them, for messages.
        takes: the kinds of records that are wanted.
    Raises:
        TutelageError: with every problem found in the sources and their rows.
    """
    found: list[tuple[str, Record]] = []
    problems: list[Problem] = []
    for part in _parts(data, base, host, place)[0]:
        wrong = RowProblems()
        try:
            for where, record in _records(host, part, rows(part.source, wrong), SourceReport(part.source.label), wrong):
                if not isinstance(record, takes):
                    wrong.add(where, _not_taken(phase, takes, record))
                found.append((where, record))
            wrong.raise_any(part.source.label)
        except TutelageError as error:
            problems += error.problems
    if problems:
        raise TutelageError(problems)
    return found


def fingerprints(data: Data, base: Path, host: Host, place: str) -> dict[str, str]:
    """Of the contents of each source of a stage's data, by what the recipe calls it.

    Raises:
        TutelageError: when a source can't be read.
    """
    parts, held = _parts(data, base, host, place)
    return {part.source.label: fingerprint(part.source) for part in chain(parts, held)}


def look_through(data: Data, base: Path, host: Host, place: str) -> None:
    """Read all rows and convert them, but make nothing of them: for when there is no tokenizer.

    Raises:
        TutelageError: with every problem found in the sources and their rows.
    """
    problems: list[Problem] = []
    for part in chain(*_parts(data, base, host, place)):
        found = RowProblems()
        try:
            for _ in _records(host, part, rows(part.source, found), SourceReport(part.source.label), found):
                pass
            found.raise_any(part.source.label)
        except TutelageError as error:
            problems += error.problems
    if problems:
        raise TutelageError(problems)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides how a tokenizer turns records into ids."""
    backend: Any = tokenizer
    template = json.dumps(tokenizer.chat_template, sort_keys=True)
    special = json.dumps({name: str(token) for name, token in tokenizer.special_tokens_map.items()}, sort_keys=True)
    return _hash(backend.backend_tokenizer.to_str(), template, special, str(tokenizer.eos_token_id))


def _parts(data: Data, base: Path, host: Host, place: str) -> tuple[list[_Part], list[_Part]]:
    """The sources to train on and to evaluate on; every one that can't be had is told of at once."""
    asked = [
        (f"{place}.mix.{number}.source", f"{place}.mix.{number}.format", mixed) for number, mixed in enumerate(data.mix)
    ]
    if data.train:
        asked.append((f"{place}.train", "", MixedSource(source=data.train)))
    training = len(asked)
    if data.eval:
        asked.append((f"{place}.eval", "", MixedSource(source=data.eval)))
    problems: list[Problem] = []
    parts: list[_Part] = []
    for source_place, format_place, mixed in asked:
        name, name_place = (mixed.format, format_place) if mixed.format else (data.format, f"{place}.format")
        chosen = None
        try:
            chosen = host.get("format", name, name_place)() if name else None
        except TutelageError as error:
            problems += [problem for problem in error.problems if problem not in problems]
        try:
            source = msgspec.structs.replace(files_of(mixed.source, base, source_place), documents=data.documents)
            parts.append(_Part(source, chosen, mixed.weight))
        except TutelageError as error:
            problems += error.problems
    if problems:
        raise TutelageError(problems)
    return parts[:training], parts[training:]


def _key(setting: _Setting, part: _Part, content: str, tokenizer: str) -> str:
    """Names the store of a source; whatever changes its examples changes the key."""
    phase, data = setting.phase, setting.data
    settings = {
        "schema": SCHEMA,
        "labels": [part.source.label, *(label for label, _ in part.source.files)],
        "format": _code(type(part.format))
        if part.format
        else sorted(map(_code, setting.host.classes("format").values())),
        "phase": "" if _renders_alike(phase) else [_code(type(phase)), msgspec.to_builtins(phase.config)],
        "learn_from": data.learn_from,
        "documents": part.source.documents,
        "too_long": data.too_long if phase.bounds_rows else "",
        "max_length": setting.max_length if phase.bounds_rows else 0,
        "end_ids": setting.renderer.given_ends,
        "versions": [version("transformers"), version("tokenizers")],
    }
    return _hash(content, tokenizer, json.dumps(settings, sort_keys=True))


def _renders_alike(phase: TrainingPhase) -> bool:
    """Whether a phase leaves it to the renderer what an example is, and counts its learnt tokens."""
    kind = type(phase)
    return kind.example is TrainingPhase.example and kind.weight is TrainingPhase.weight


def _code(kind: type) -> str:
    """Names a class and the source of its module, so that an edited plugin is not served what its older self made."""
    module = sys.modules.get(kind.__module__)
    try:
        source = inspect.getsource(module) if module else ""
    except (OSError, TypeError):
        source = ""
    return f"{kind.__module__}.{kind.__qualname__} {_hash(source)}"


def _hash(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{len(part)}:".encode())
        digest.update(part.encode())
    return digest.hexdigest()


def _store(setting: _Setting, part: _Part, folder: Path) -> TokenStore:
    with _room(folder.parent):
        return open_or_write(folder, partial(_tokenise, setting, part))


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Tells of a cache that can't be written."""
    try:
        yield
    except OSError as error:
        raise TutelageError.at(
            str(folder),
            f"prepared data can't be written: {error.strerror or error}",
            "set TUTELAGE_CACHE to a folder with room",
        ) from None


def _tokenise(setting: _Setting, part: _Part, writer: Writer) -> dict[str, Any]:
    """Write the examples of a source, and return the store's meta data.

    Raises:
        TutelageError: when any row can't be read, converted or learnt from.
    """
    problems = RowProblems()
    report = SourceReport(part.source.label)
    with reading_progress(f"Tokenising {part.source.label}", part.source.size) as advance:
        records = _records(setting.host, part, rows(part.source, problems, advance), report, problems)
        for chunk in _chunks(records):
            for (place, _), tokens in zip(chunk, _examples(setting, chunk), strict=True):
                if wrong := _unlearnable(setting, tokens):
                    problems.add(place, wrong)
                elif isinstance(tokens, Tokens):
                    _add(setting, writer, report, place, tokens)
    problems.raise_any(part.source.label)
    return {"report": msgspec.to_builtins(report)}


def _records(
    host: Host,
    part: _Part,
    found: Iterator[tuple[str, dict[str, Any]]],
    report: SourceReport,
    problems: RowProblems,
) -> Iterator[tuple[str, Record]]:
    """Convert rows by the one format that the first of them has."""
    chosen = part.format
    for place, row in found:
        chosen = chosen or detect(row, host, place)
        report.read += 1
        report.format = chosen.name
        try:
            yield place, chosen.convert(row)
        except ValueError as error:
            problems.add(place, str(error), f"every row must have the format {chosen.name}")
        except Exception as error:  # a fault of the plugin's own; its rows are still told of like any others
            problems.add(place, f"the format {chosen.name} failed: {type(error).__name__}: {error}")


def _chunks(records: Iterator[tuple[str, Record]]) -> Iterator[list[tuple[str, Record]]]:
    """Records in lists that are tokenised at a time."""
    chunk: list[tuple[str, Record]] = []
    characters = 0
    for place, record in records:
        chunk.append((place, record))
        characters += len(record.text) if isinstance(record, Text) else 0
        if len(chunk) == _ROWS_AT_A_TIME or characters >= _CHARACTERS_AT_A_TIME:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _examples(setting: _Setting, chunk: list[tuple[str, Record]]) -> Iterable[Tokens | Exception]:
    if _renders_alike(setting.phase) and all(isinstance(record, setting.phase.takes) for _, record in chunk):
        return setting.renderer.render_many([record for _, record in chunk])
    return [_example(setting, record) for _, record in chunk]


def _not_taken(phase: str, takes: tuple[type, ...], record: Record) -> str:
    taken = " or ".join(NAMES[kind] for kind in takes)
    return f"is {NAMES[type(record)]}, and the phase {phase} takes {taken}"


def _example(setting: _Setting, record: Record) -> Tokens | Exception:
    if not isinstance(record, setting.phase.takes):
        return ValueError(_not_taken(setting.phase.name, setting.phase.takes, record))
    try:
        return setting.phase.example(record, setting.renderer)
    except Exception as error:  # as for formats
        return error


def _unlearnable(setting: _Setting, tokens: Tokens | Exception) -> str:
    """Why there is no learning from this, or ''."""
    if isinstance(tokens, ValueError):
        return str(tokens)
    if isinstance(tokens, Exception):
        return f"the phase failed to make an example of it: {type(tokens).__name__}: {tokens}"
    if not setting.phase.bounds_rows:  # a row is a part of a whole, such as a piece of a long text
        return ""
    if not tokens.learn.any() or tokens.weight == 0:
        return "nothing in it is learnt"
    return "" if setting.renderer.ends_learnt(tokens) else "the token that ends what is learnt is not learnt"


def _add(setting: _Setting, writer: Writer, report: SourceReport, place: str, tokens: Tokens) -> None:
    """Write a row's example, or what is left or made of it where it is too long."""
    limit, length = setting.max_length, int(tokens.lengths.max())
    report.longest = max(report.longest, length)
    digest = hashlib.blake2b(tokens.ids.tobytes() + tokens.learn.tobytes(), digest_size=8).digest()
    pieces = [tokens]
    if length > limit and setting.phase.bounds_rows:
        pieces = _shortened(tokens, limit, "drop" if tokens.parts is not None else setting.data.too_long)
        if not pieces:
            cut = setting.data.too_long == "cut" and tokens.parts is None
            report.note(
                f"with nothing to learn in their first {limit:,} tokens" if cut else f"longer than {limit:,} tokens",
                place,
            )
            report.dropped += 1
            return
        if setting.data.too_long == "cut":
            report.cut += 1
        else:
            report.split += 1
        report.note(f"{setting.data.too_long} at {limit:,} tokens", place)
    report.kept += 1
    report.examples += len(pieces)
    report.tokens += sum(map(len, pieces))
    report.learnt += sum(piece.weight for piece in pieces)
    writer.add(pieces, place, int.from_bytes(digest, "little"), setting.phase.weight)


def _shortened(tokens: Tokens, limit: int, how: str) -> list[Tokens]:
    """What a row longer than `limit` tokens leaves; pieces with nothing to learn are left out.

    Pieces of a split row overlap by one token, so that each learnt token has one before it to be predicted from and
    is learnt once.
    """
    if how == "drop":
        return []
    starts = [0] if how == "cut" else range(0, len(tokens) - 1, limit - 1)
    pieces = [Tokens(tokens.ids[start : start + limit], tokens.learn[start : start + limit]) for start in starts]
    return [piece for piece in pieces if piece.weight]


def _select(
    training: list[TokenStore], held: list[TokenStore], parts: list[_Part], data: Data, seed: int
) -> tuple[Selection, Selection | None]:
    """The examples of an epoch and those of an evaluation; ValueError where nothing would be left to train on."""
    out = hold_out(training, data.eval_split, seed) if data.eval_split else []
    pairs = zip_longest(zip(training, parts, strict=True), out)
    train = Selection(training, [repeat(store, mask, part.weight, seed) for (store, part), mask in pairs])
    if held:
        return train, Selection(held, [range(len(store)) for store in held])
    return train, Selection(training, [marked(mask, train.folder) for mask in out]) if out else None


def _report(
    reports: list[SourceReport], train: Selection | Windows, evaluation: Selection | Windows | None, twice: int
) -> DataReport:
    return DataReport(
        read=sum(report.read for report in reports),
        kept=sum(report.kept for report in reports),
        cut=sum(report.cut for report in reports),
        split=sum(report.split for report in reports),
        dropped=sum(report.dropped for report in reports),
        examples=len(train),
        tokens=int(train.lengths.sum()),
        learnt=int(train.weights.sum()),
        longest=int(train.longest.max()),
        eval_examples=len(evaluation) if evaluation else 0,
        eval_tokens=int(evaluation.lengths.sum()) if evaluation else 0,
        eval_in_train=twice,
        sources=reports,
    )
