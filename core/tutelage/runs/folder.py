"""A run's folder: its record, its recipe, its events, and the lock that keeps other processes from writing it."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec

from tutelage.config import read_file
from tutelage.errors import RunFailed, TutelageError
from tutelage.runs.files import write_atomically

State = Literal["queued", "running", "succeeded", "failed", "stopped", "waiting"]
Listener = Callable[[dict[str, Any]], None]

RECORD = "run.json"
RECIPE = "recipe.yaml"
EVENTS = "events.jsonl"
LOCK = ".lock"
HOLDER = ".lock.holder"


class StageRecord(msgspec.Struct, kw_only=True):
    """What is known of one stage. `artifact` is a folder relative to the run's, or empty."""

    name: str
    state: State = "queued"
    phase: str = ""
    adapter: str = ""
    kind: str = ""
    artifact: str = ""
    metrics: dict[str, float | None] = {}
    steps_planned: int | None = None
    steps_done: int = 0
    started: str = ""
    ended: str = ""


class RunRecord(msgspec.Struct, kw_only=True):
    """What is known of a run, as `run.json` holds it. Times are UTC in ISO 8601."""

    name: str
    state: State = "queued"
    reason: str = ""
    "Why the run failed or stopped."
    created: str = ""
    tutelage: str = ""
    versions: dict[str, str] = {}
    "Versions of Python and of the libraries that decide a result."
    platform: str = ""
    base: str = ""
    "The folder that relative paths of the recipe start from."
    seeds: dict[str, int] = {}
    "Seed of every stage."
    data: dict[str, dict[str, str]] = {}
    "Fingerprints of the data of every stage, by source."
    stages: list[StageRecord] = []


class RunFolder:
    """One run on disk. Reading needs no lock; whoever writes holds `lock()`."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path = path
        self.record = record
        self.followed = False
        "Whether somebody reads the events file and tells the listeners from there."
        self._listeners: list[Listener] = []

    @classmethod
    def create(cls, path: Path, name: str, recipe: dict[str, Any], base: Path | None = None) -> RunFolder:
        """Make the folder of a new run. `recipe` is plain data with every default spelled out.

        Raises:
            TutelageError: when the folder holds something already, or can't be made.
        """
        path = path.resolve()
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(entry.name != RECIPE for entry in path.iterdir()):
                raise FileExistsError
            (path / RECIPE).unlink(missing_ok=True)  # all that a run leaves which was killed while it was made
            with (path / RECIPE).open("x", encoding="utf-8") as file:  # of two that start at once, one gets it
                file.write(recipe_text(recipe))
        except FileExistsError:
            fix = "name another folder, or go on with an unfinished run: tutelage resume"
            raise TutelageError.at(str(path), "is not an empty folder", fix) from None
        except OSError as error:
            raise TutelageError.at(str(path), f"can't be made: {error.strerror}", "name another folder") from None
        stages = [
            StageRecord(name=stage["name"], phase=kind_of(stage.get("phase")), adapter=kind_of(stage.get("adapter")))
            for stage in recipe["stages"]
        ]
        record = RunRecord(
            name=name,
            created=now(),
            tutelage=installed("tutelage"),
            versions=versions(),
            platform=platform.platform(),
            base=str(base or Path.cwd()),
            seeds={stage["name"]: (stage.get("trainer") or {}).get("seed", 0) for stage in recipe["stages"]},
            stages=stages,
        )
        folder = cls(path, record)
        folder.save()
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read a run that exists.

        Raises:
            TutelageError: when there is no run at `path`, or its record is damaged.
        """
        path = path.resolve()
        if not (path / RECORD).is_file():
            raise TutelageError.at(str(path), "is no run folder (it has no run.json)", "see tutelage runs list")
        try:
            record = msgspec.json.decode((path / RECORD).read_bytes(), type=RunRecord)
        except (OSError, msgspec.MsgspecError) as error:
            raise TutelageError.at(str(path / RECORD), f"can't be read: {error}") from None
        return cls(path, record)

    def reload(self) -> None:
        """Read the record again: another process may have written it."""
        self.record = RunFolder.open(self.path).record

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe as it was resolved, as plain data."""
        data: dict[str, Any] = read_file(self.path / RECIPE)
        return data

    def stage(self, name: str) -> StageRecord:
        """The record of a stage; KeyError when the run has no such stage."""
        for stage in self.record.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def stage_folder(self, name: str) -> Path:
        """Where a stage keeps its checkpoints, metrics and artifact; made if need be."""
        folder = self.path / "stages" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def update(self, **fields: Any) -> None:
        """Set fields of the record and save it."""
        for name, value in fields.items():
            setattr(self.record, name, value)
        self.save()

    def update_stage(self, name: str, **fields: Any) -> None:
        """Set fields of a stage's record and save it."""
        stage = self.stage(name)
        for field, value in fields.items():
            setattr(stage, field, value)
        self.save()

    def save(self) -> None:
        """Write `run.json` whole or not at all."""
        try:
            write_atomically(self.path / RECORD, msgspec.json.format(_json(self.record), indent=2) + b"\n")
        except OSError as error:
            raise RunFailed.at(str(self.path / RECORD), f"can't be written: {error.strerror}") from error

    def outcome(self) -> dict[str, Any]:
        """The run's folder, its state, and what each stage made; an artifact is an absolute folder or None."""
        stages = [
            {
                "name": stage.name,
                "state": stage.state,
                "artifact": str(self.path / stage.artifact) if stage.artifact else None,
                "kind": stage.kind,
                "metrics": stage.metrics,
            }
            for stage in self.record.stages
        ]
        return {"run": str(self.path), "state": self.record.state, "stages": stages}

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every event of this process from now on."""
        self._listeners.append(listener)

    def event(self, kind: str, /, **fields: Any) -> None:
        """Append one line to `events.jsonl` in one write, and tell the listeners. NaN and infinity become null."""
        line = _json({"time": now(), "event": kind, **fields})
        try:
            _append(self.path / EVENTS, line + b"\n")
        except OSError as error:
            raise RunFailed.at(str(self.path / EVENTS), f"can't be written: {error.strerror}") from error
        if self._listeners and not self.followed:
            self.tell(msgspec.json.decode(line))

    def tell(self, event: dict[str, Any]) -> None:
        """Hand an event to the listeners."""
        for listener in self._listeners:
            listener(event)

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event so far, oldest first. Lines that were torn by a kill are left out."""
        try:
            file = (self.path / EVENTS).open("rb")
        except FileNotFoundError:
            return
        with file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                with contextlib.suppress(msgspec.DecodeError):
                    event = msgspec.json.decode(line)
                    if isinstance(event, dict) and "event" in event:
                        yield event

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing, and mend what a killed writer left.

        Raises:
            TutelageError: when another process holds it, naming that process.
        """
        import filelock

        lock = filelock.FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=1)  # `locked` holds it for an instant
        except filelock.Timeout:
            wrong = f"is being written by {_holder(self.path / HOLDER)}"
            raise TutelageError.at(str(self.path), wrong, "wait for it, or stop it first") from None
        except OSError as error:
            raise TutelageError.at(str(self.path / LOCK), f"can't be locked: {error.strerror}") from None
        try:
            (self.path / HOLDER).write_text(f"{os.getpid()} {socket.gethostname()}", encoding="utf-8")
            self._mend()
            yield
        finally:
            (self.path / HOLDER).unlink(missing_ok=True)
            lock.release()

    def _mend(self) -> None:
        _drop_torn_line(self.path / EVENTS)
        for beside in self.path.glob(f".{RECORD}.*.tmp"):
            beside.unlink()

    def locked(self) -> bool:
        """Whether a living process holds the run."""
        import filelock

        if not (self.path / LOCK).exists():
            return False
        lock = filelock.FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return True
        except OSError:  # a folder that can only be read
            return False
        lock.release()
        return False


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def installed(distribution: str) -> str:
    """The version of an installed distribution, without importing it, or ''."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that decide a run's result."""
    found = {name: installed(name) for name in ("torch", "transformers", "peft", "lightning", "bitsandbytes")}
    return {"python": platform.python_version(), **{name: value for name, value in found.items() if value}}


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a number of torch or numpy
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} can't be written as JSON")


def kind_of(settings: Any) -> str:
    """The plugin's name in `{kind: NAME, …}`, or in the short form."""
    return str(settings.get("kind", "")) if isinstance(settings, dict) else str(settings or "")


def recipe_text(recipe: dict[str, Any]) -> str:
    """What a run's recipe file holds."""
    from tutelage._yaml import dump

    return "# The recipe of this run as it was resolved: every default is spelled out.\n" + dump(recipe)


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, line)
    finally:
        os.close(descriptor)
    if written < len(line):
        raise OSError(28, "No space left on device")


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left without its end, so that the next event starts a line of its own."""
    if not path.is_file():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def _holder(path: Path) -> str:
    try:
        pid, _, host = path.read_text(encoding="utf-8").partition(" ")
    except OSError:
        return "another process"
    return f"process {pid}" if host == socket.gethostname() else f"process {pid} on {host}"
