"""Lends stored files to somebody who reads them by path: in a folder of their own, which then goes away."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tutelage_server.files.storage import place_file
from tutelage_server.settings import Settings
from tutelage_server.store.tables import StoredFile

_KINDS = re.compile(r"(\.[A-Za-z0-9]{1,10}){1,2}$")


@contextlib.contextmanager
def borrowed(settings: Settings, files: list[StoredFile]) -> Iterator[tuple[Path, list[str]]]:
    """A folder with the files, and what each is called there.

    Raises:
        Refused: 503
    """
    root = settings.folder / "borrowed"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        names = [local_name(file, index) for index, file in enumerate(files)]
        for file, name in zip(files, names, strict=True):
            place_file(settings, file, folder / name)
        yield folder, names
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def local_name(file: StoredFile, index: int = 0) -> str:
    """A name on disk that says nothing but how the file is read: `data.jsonl.gz`."""
    kinds = _KINDS.search(file.name)
    return f"data{index or ''}{kinds[0].lower() if kinds else ''}"
