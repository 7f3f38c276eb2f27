"""Fingerprints of rows and of a whole dataset: what a signature vouches for."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage_advisor.audit.reading import open_source, raw_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = 100
"Rows under one hash of the seal, so that a change is named to within as many rows."


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a dataset: its rows, in order. File names and white space between fields don't count."""

    rows: int
    fingerprint: str
    blocks: list[str]


def row_fingerprint(row: dict[str, Any], error: str = "") -> str:
    """SHA-256 (first 128 bits) of a row as JSON with sorted keys; of the reason, for a row that can't be read."""
    content = error.encode() if error else msgspec.json.encode(row, order="sorted", enc_hook=str)
    return hashlib.sha256(content).hexdigest()[:32]


def fingerprints(path: str | Path) -> Iterator[str]:
    """The fingerprint of every row, in order.

    Raises:
        TutelageError: when the data can't be read.
    """
    for _, row, error in raw_rows(open_source(path)):
        yield row_fingerprint(row, error)


def seal(path: str | Path) -> Seal:
    """Read a dataset once and fingerprint it.

    Raises:
        TutelageError: when the data can't be read.
    """
    whole, block = hashlib.sha256(), hashlib.sha256()
    blocks: list[str] = []
    rows = 0
    for found in fingerprints(path):
        whole.update(found.encode())
        block.update(found.encode())
        rows += 1
        if rows % BLOCK == 0:
            blocks.append(block.hexdigest()[:16])
            block = hashlib.sha256()
    if rows % BLOCK:
        blocks.append(block.hexdigest()[:16])
    return Seal(rows=rows, fingerprint=whole.hexdigest(), blocks=blocks)


def differences(signed: Seal, now: Seal) -> list[str]:
    """Sentences that say where a dataset is no longer what was signed; none when it is."""
    if signed.fingerprint == now.fingerprint and signed.rows == now.rows:
        return []
    found = []
    if signed.rows != now.rows:
        found.append(f"it had {signed.rows} rows when it was signed and has {now.rows} now")
    for index, (before, after) in enumerate(zip(signed.blocks, now.blocks, strict=False)):
        if before != after:
            last = min((index + 1) * BLOCK, max(signed.rows, now.rows))
            found.append(f"rows {index * BLOCK + 1} to {last} are not those that were signed")
            if signed.rows != now.rows:
                break  # after a row was added or removed every later block differs
    return found or ["rows were changed"]
