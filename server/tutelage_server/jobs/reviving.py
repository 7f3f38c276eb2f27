"""Makes the folder of a job that goes on with another's run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from tutelage.runs.files import write_atomically
from tutelage.runs.folder import EVENTS, HOLDER, LOCK, RECORD
from tutelage_server.jobs.launching import SECRETS

_NOT_COPIED = frozenset({LOCK, HOLDER})
_WRITTEN_ONCE = frozenset({".safetensors", ".gguf", ".npy"})
"Files that runs write beside and rename, never change: two runs may share them."


def copy_run(old: Path, new: Path, final: Path) -> int:
    """Copy the recipe, the files, the secrets and the run of a job's folder into a new one; large files are shared.

    Args:
        final: where the new folder will lie, which the run's record is told.
    Returns:
        the bytes of the run's events so far, which are the old job's.
    Raises:
        OSError: when the disk is full, say.
    """
    shutil.copyfile(old / "recipe.yaml", new / "recipe.yaml")
    _copy(old / "data", new / "data", link_all=True)
    if (old / SECRETS).exists():
        (new / SECRETS).touch(mode=0o600)
        shutil.copyfile(old / SECRETS, new / SECRETS)
    if not (old / "run" / RECORD).is_file():
        return 0
    _copy(old / "run", new / "run")
    record = msgspec.json.decode((new / "run" / RECORD).read_bytes())
    record["base"] = str(final)
    write_atomically(new / "run" / RECORD, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    events = new / "run" / EVENTS
    return events.read_bytes().rfind(b"\n") + 1 if events.is_file() else 0


def _copy(source: Path, target: Path, link_all: bool = False) -> None:
    """Copy a folder's files and folders; links are left out, as nothing of a run is one."""
    target.mkdir(exist_ok=True)
    with os.scandir(source) as entries:
        for entry in entries:
            to = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                _copy(Path(entry.path), to, link_all)
            elif entry.is_file(follow_symlinks=False) and entry.name not in _NOT_COPIED:
                if link_all or Path(entry.name).suffix in _WRITTEN_ONCE:
                    os.link(entry.path, to, follow_symlinks=False)
                else:
                    shutil.copyfile(entry.path, to, follow_symlinks=False)
