"""The files that a job made: which there are, their hashes, and their bytes. Nothing outside its run is ever opened."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

import msgspec

from tutelage.runs.files import write_atomically
from tutelage_server.jobs.launching import job_folder
from tutelage_server.jobs.schemas import Artifact
from tutelage_server.settings import Settings

_HASHES = "hashes.json"
_LEFT_OUT = frozenset({"checkpoints", "ranking"})
"Folders below `run` and its stages that are no result: checkpoints, and questions with who wrote which answer."
BLOCK = 1 << 20
"Bytes of a file that are read at a time."
_locks = [threading.Lock() for _ in range(16)]
"Each for a share of all jobs: of two who ask for a job's files at once, one hashes them."


class _Hash(msgspec.Struct, array_like=True):
    size: int
    modified: int
    inode: int
    sha256: str


class Run:
    """What a job's run folder gives away."""

    def __init__(self, settings: Settings, job_id: str) -> None:
        self.folder = job_folder(settings, job_id) / "run"
        self._hashes = job_folder(settings, job_id) / _HASHES
        self._lock = _locks[hash(job_id) % len(_locks)]

    def artifacts(self, after: str, limit: int) -> tuple[list[Artifact], str | None]:
        """Files with their hashes, by path, after one; and the last path, when there are more."""
        paths = sorted(path for path in _files(self.folder, "") if path > after)
        with self._lock:
            known = self._known()
            before = dict(known)
            found = [made for path in paths[:limit] if (made := self._described(path, known)) is not None]
            if known != before:
                write_atomically(self._hashes, msgspec.json.encode(known))
        return found, paths[limit - 1] if len(paths) > limit else None

    def open(self, path: str) -> tuple[BufferedReader, Artifact] | None:
        """A file, open, with its hash; None when there is none, or it is nothing that a job gives away."""
        file = self._open(path)
        if file is None:
            return None
        with self._lock:
            known = self._known()
            before = dict(known)
            described = _describe(path, file, known)
            if known != before:
                write_atomically(self._hashes, msgspec.json.encode(known))
        return file, described

    def _described(self, path: str, known: dict[str, _Hash]) -> Artifact | None:
        file = self._open(path)
        if file is None:
            return None
        with file:
            return _describe(path, file, known)

    def _known(self) -> dict[str, _Hash]:
        try:
            return msgspec.json.decode(self._hashes.read_bytes(), type=dict[str, _Hash])
        except (OSError, msgspec.MsgspecError):
            return {}

    def _open(self, path: str) -> BufferedReader | None:
        """Open a file step by step from the run's folder, following no link, so that none can lead out of it."""
        parts = path.split("/")
        if not is_given(parts):
            return None
        try:
            at = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            for part in parts[:-1]:
                deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = deeper
            descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
        except OSError:
            return None
        finally:
            os.close(at)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        return os.fdopen(descriptor, "rb")


def is_given(parts: list[str]) -> bool:
    """Whether a path below the run, in its parts, is one that jobs give away."""
    plain = all(part and not part.startswith(".") and not set(part) & set("\\\0\n\r") for part in parts)
    inside = parts[2:-1] if parts[:1] == ["stages"] else parts[:-1]
    return plain and (not inside or inside[0] not in _LEFT_OUT) and len("/".join(parts)) <= 1000


def _describe(path: str, file: BufferedReader, known: dict[str, _Hash]) -> Artifact:
    """A file's size and hash; the hash of a file that did not change is one that was computed before."""
    told = os.fstat(file.fileno())
    hashed = known.get(path)
    if hashed is None or (hashed.size, hashed.modified, hashed.inode) != (told.st_size, told.st_mtime_ns, told.st_ino):
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        hashed = known[path] = _Hash(told.st_size, told.st_mtime_ns, told.st_ino, sha256)
    return Artifact(path=path, bytes=hashed.size, sha256=hashed.sha256)


def _files(folder: Path, prefix: str) -> Iterator[str]:
    """Paths of the plain files below a folder; links are passed over."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        path = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if is_given([*path.split("/"), "file"]):
                yield from _files(Path(entry.path), f"{path}/")
        elif entry.is_file(follow_symlinks=False) and is_given(path.split("/")):
            yield path
