"""Files sent to a server and brought from it: what broke off goes on where it was, and every byte is checked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tutelage.errors import TutelageError
from tutelage_server.client.client import AGAIN, Client, ConnectionLost, ServerRefused, segment

PIECE = 8 * 2**20
"Bytes that are sent in one request."
BLOCK = 2**20

_AS_IT_IS = {"accept": "*/*", "accept-encoding": "identity"}

Progress = Callable[[int], None]
"Called with how many bytes more are done."


class LocalFile(msgspec.Struct, frozen=True):
    """A file of this machine, with its size and SHA-256."""

    path: Path
    bytes: int
    sha256: str


def describe(path: Path, progress: Progress = lambda _: None) -> LocalFile:
    """Read a file once for its hash.

    Raises:
        TutelageError: when it can't be read, or its name is no text.
    """
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise TutelageError.at(repr(path.name), "the name holds bytes that are no text (UTF-8)", "rename it") from None
    try:
        with path.open("rb") as stream:
            digest, size = hashlib.sha256(), 0
            while block := stream.read(BLOCK):
                digest.update(block)
                size += len(block)
                progress(len(block))
    except OSError as error:
        raise TutelageError.at(str(path), f"can't be read: {error.strerror}") from None
    return LocalFile(path, size, digest.hexdigest())


def held(client: Client, file: LocalFile) -> dict[str, Any] | None:
    """The server's file with the same content and kind of name, ready to be used; None when it has none."""
    found: list[dict[str, Any]] = client.get("/v1/files", sha256=file.sha256, limit=100)["items"]
    ready = (each for each in found if each["status"] == "processed")
    return next((each for each in ready if _kind(each["name"]) == _kind(file.path.name)), None)


def _kind(name: str) -> list[str]:
    """What of a name tells how the file is read."""
    return [suffix.lower() for suffix in Path(name).suffixes[-2:] if suffix.lower() in _TELLING]


_TELLING = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".gguf", ".jinja"})


def upload(
    client: Client, file: LocalFile, *, name: str = "", purpose: str = "", progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Send a file, from where an earlier try ended; what the server has already is not sent.

    Raises:
        ServerRefused, ConnectionLost
        TutelageError: when the file changes while it is sent.
    """
    body = {"name": name or file.path.name, "bytes": file.bytes, "sha256": file.sha256, "purpose": purpose}
    stored: dict[str, Any] = client.post("/v1/files", {key: value for key, value in body.items() if value != ""})
    place = f"/v1/files/{segment(stored['id'])}"
    done = int(stored.get("received", 0))
    if stored["status"] == "processed":
        progress(file.bytes)
        return stored
    progress(done)
    moved = time.monotonic()
    with file.path.open("rb") as stream:
        while done < file.bytes:
            stream.seek(done)
            piece = stream.read(min(PIECE, file.bytes - done))
            if not piece:
                raise TutelageError.at(str(file.path), "became shorter while it was sent", "send it again")
            reached, trouble = _send(client, place, done, piece)
            if reached != done:
                moved = time.monotonic()
            elif trouble is not None and time.monotonic() - moved > client.enough:
                raise trouble
            progress(reached - done)
            done = reached
    result: dict[str, Any] = client.get(place)
    return result


def _send(client: Client, place: str, offset: int, piece: bytes) -> tuple[int, TutelageError | None]:
    """Send one piece; where the server is then, whatever became of the answer, and what went wrong."""
    headers = {"upload-offset": str(offset), "content-type": "application/offset+octet-stream"}
    try:
        client.request("PATCH", f"{place}/content", content=piece, headers=headers, again=False)
        return offset + len(piece), None
    except ConnectionLost as error:
        trouble: TutelageError = error
    except ServerRefused as error:
        if error.status not in AGAIN | {409}:
            raise
        trouble = error
    time.sleep(0.5)
    return int(client.request("HEAD", f"{place}/content").headers["upload-offset"]), trouble


def download(
    client: Client, path: str, to: Path, *, size: int | None, sha256: str, progress: Progress = lambda _: None
) -> None:
    """Bring a file, from where an earlier try ended; it gets its name when it is whole and right.

    Raises:
        ServerRefused, ConnectionLost
        TutelageError: when what arrives is not what was announced, or can't be written.
    """
    part = to.with_name(f".{to.name}.part")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        before = _receive(client, path, part, size, progress)
        if _hash(part) != sha256 and before:  # what an earlier try left was of another file
            progress(-part.stat().st_size)
            part.unlink()
            _receive(client, path, part, size, progress)
        if _hash(part) != sha256:
            part.unlink()
            raise TutelageError.at(str(to), "arrived with another checksum than the server's", "bring it again")
        part.replace(to)
    except OSError as error:
        raise TutelageError.at(str(to), f"can't be written: {error.strerror}") from None


def _receive(client: Client, path: str, part: Path, size: int | None, progress: Progress) -> int:
    """Append to `part` until it is whole; return how many bytes were there before."""
    before = part.stat().st_size if part.exists() else 0
    if size is not None and before > size:
        part.unlink()
        before = 0
    progress(before)
    since: float | None = None
    while True:
        have = part.stat().st_size if part.exists() else 0
        if size is not None and have == size and part.exists():
            return before
        try:
            with client.stream(path, {**_AS_IT_IS, **({"range": f"bytes={have}-"} if have else {})}) as answer:
                if have and answer.status_code != 206:
                    progress(-have)
                    have = before = 0
                with part.open("ab" if have else "wb") as file:
                    for block in answer.iter_raw():
                        file.write(block)
                        progress(len(block))
                        since = None
            if size is None or part.stat().st_size >= size:
                return before
            broken: TutelageError = ConnectionLost.at(client.url, "ended an answer too soon")
        except ConnectionLost as error:
            broken = error
        except ServerRefused as error:
            if error.status not in AGAIN:
                raise
            broken = ConnectionLost(error.problems)
        since = since or time.monotonic()
        if time.monotonic() - since > client.enough:
            raise broken
        time.sleep(0.5)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
