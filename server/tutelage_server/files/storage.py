"""Where files' bytes lie: a folder, or whatever fsspec reaches (S3 and others, with their packages)."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError
from tutelage.runs.files import sync_folder
from tutelage_server.problems import refused
from tutelage_server.settings import Settings
from tutelage_server.store.tables import StoredFile

BLOCK = 2**20


class Storage:
    """Objects by key. All methods block, and may be called from any thread.

    Raises, each of them: Refused 503 when the storage can't be reached, or lacks an object that should be there.
    """

    def __init__(self, address: str) -> None:
        """`address` is a folder, or a URL such as `s3://bucket/prefix`.

        Raises:
            TutelageError: when no installed package knows such a URL.
        """
        import fsspec

        try:
            self._system, self._root = fsspec.core.url_to_fs(address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            fix = "install what reaches it, such as: pip install 'tutelage[s3]'"
            raise TutelageError.at("files", f"{address} can't be used: {error}", fix) from None
        self.is_local = "file" in _protocols(self._system)

    def put(self, local: Path, key: str) -> None:
        """Store a file that is whole; until this returns, the key has its old object or none."""
        if not self.is_local:
            with self._asked(key):
                self._system.put_file(str(local), self._at(key))
            return
        to = Path(self._at(key))
        to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        local.chmod(0o400)  # jobs share it by hard links
        _link_or_copy(local, to)

    def place(self, key: str, path: Path) -> None:
        """Make an object a file of this machine: the same file by a hard link where that can be, else a copy."""
        with self._asked(key):
            if self.is_local:
                _link_or_copy(Path(self._at(key)), path)
                return
            beside = path.with_name(f".{os.urandom(8).hex()}.part")
            try:
                self._system.get_file(self._at(key), str(beside))
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)

    def blocks(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes of an object from `start` up to `end`, in blocks."""
        with self._asked(key):
            options: dict[str, Any] = {} if self.is_local else {"cache_type": "readahead", "block_size": 8 * BLOCK}
            with self._system.open(self._at(key), "rb", **options) as stream:
                stream.seek(start)
                left = end - start if end is not None else None
                while left is None or left > 0:
                    block = stream.read(BLOCK if left is None else min(BLOCK, left))
                    if not block:
                        break
                    left = None if left is None else left - len(block)
                    yield block

    def remove(self, key: str) -> None:
        """Remove an object; that there is none is no error."""
        with self._asked(key), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._at(key))

    def _at(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    @contextlib.contextmanager
    def _asked(self, key: str) -> Iterator[None]:
        """Makes of whatever a storage raises what a caller can understand."""
        try:
            yield
        except FileNotFoundError as error:
            raise _unavailable(f"lacks the bytes of {key}") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _unavailable(f"can't be used now: {error.strerror or error}") from error
        except Exception as error:
            if self.is_local:
                raise
            raise _unavailable(f"can't be used now: {type(error).__name__}") from error


@functools.lru_cache(maxsize=16)
def _storage(address: str) -> Storage:
    return Storage(address)


def storage_of(settings: Settings) -> Storage:
    """The storage of a server.

    Raises:
        TutelageError: when its settings name none that can be used.
    """
    return _storage(settings.files or str(settings.folder / "files"))


def open_file(settings: Settings, file: StoredFile, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The bytes of a file that is processed, in blocks of at most 1 MiB.

    Raises:
        Refused: 503
    """
    return storage_of(settings).blocks(file.object, start, end)


def lines_in(blocks: Iterable[bytes], longest: int) -> Iterator[bytes]:
    """The lines of what comes in blocks, without their ends; of a longer line only so many bytes and one more."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from (line[: longest + 1] for line in whole)
        rest = rest[: longest + 1]
    if rest:
        yield rest


def open_lines(settings: Settings, file: StoredFile, longest: int) -> Iterator[bytes]:
    """The lines of a stored file, as `lines_in` gives them."""
    return lines_in(open_file(settings, file), longest)


def place_file(settings: Settings, file: StoredFile, path: Path) -> None:
    """Put a file that is processed at a path, with the record of its review beside it where there is one. It is not to
    be written to, for others may share it.

    Raises:
        Refused: 503
    """
    storage_of(settings).place(file.object, path)
    for record in reviews_folder(settings, file.id).glob("*.review"):
        if record.parent != path.parent:
            shutil.copyfile(record, path.with_name(f"{path.name}.review"))


def reviews_folder(settings: Settings, file_id: str) -> Path:
    """Where the record of a file's review is kept."""
    return settings.folder / "reviews" / file_id


def _link_or_copy(source: Path, to: Path) -> None:
    """`to` appears whole, replacing what was there."""
    beside = to.with_name(f".{os.urandom(8).hex()}.part")
    try:
        try:
            os.link(source, beside)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            with source.open("rb") as stream, beside.open("xb") as copy:
                shutil.copyfileobj(stream, copy, BLOCK)
                copy.flush()
                os.fsync(copy.fileno())
            beside.chmod(0o400)
        beside.replace(to)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(to.parent)


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _unavailable(wrong: str) -> Exception:
    headers = {"retry-after": "5"}
    return refused(503, "the storage of files", wrong, "try again later", code="storage_unavailable", headers=headers)
