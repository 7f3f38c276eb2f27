"""The plugin base class of launchers: where a run executes (this machine, Slurm, Ray).

A launcher starts *attempts*. An attempt is one execution of a job's run, in the run's folder, by the command

    python -m tutelage.runs.attempt FOLDER

with FOLDER the attempt's own (`attempt.json` in it says what to do; `claimed.json`, `log.txt` and `outcome.json` are
written by the command itself). The command claims the folder before it does anything, so that an attempt that was
launched twice runs once; it trains or, where the run exists already, resumes; and it passes SIGTERM on, so that the run
saves a checkpoint and stops. A launcher thus needs to remember nothing: `find` tells what became of an attempt whose
launch was never answered.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tutelage.config import Config
from tutelage.errors import Problem, TutelageError
from tutelage.plugin import Plugin


class Resources(Config):
    """What a job asks for."""

    nodes: Annotated[int, Meta(ge=1, le=1024, description="Machines.")] = 1
    gpus: Annotated[int, Meta(ge=0, le=64, description="GPUs of each machine.")] = 0
    cpus: Annotated[int, Meta(ge=1, le=4096, description="CPU cores of each machine.")] = 1
    memory_gib: Annotated[
        Annotated[float, Meta(gt=0, le=65536)] | None,
        Meta(description="Memory of each machine; null asks for no limit."),
    ] = None
    minutes: Annotated[
        Annotated[int, Meta(ge=1, le=525600)] | None,
        Meta(description="Time limit of an attempt; it saves a checkpoint before. Null sets none."),
    ] = None


class Launch(msgspec.Struct, kw_only=True):
    """One attempt that a launcher is to start."""

    name: str
    "Unique and fit for a cluster's job name: `tutelage-<job>-<attempt>`."
    folder: Path
    "The attempt's folder, on a disk that every node sees."
    resources: Resources
    devices: list[int] = []
    "Indices of this machine's GPUs that the attempt may use (local launchers; others are allotted theirs)."
    environment: dict[str, str] = {}
    "Variables for the attempt; values may be secret, so they are passed in the environment and never in arguments."


class Status(msgspec.Struct, kw_only=True, frozen=True):
    """What a launcher knows of an attempt.

    `pending`: accepted, not begun. `running`. `ended`: no process of it lives; why, as the cluster saw it. `absent`: no
    such attempt was ever started, or the cluster has forgotten it.
    """

    state: Literal["pending", "running", "ended", "absent"]
    why: Literal["", "exited", "killed", "node-lost", "time-limit", "memory-limit", "cancelled", "preempted"] = ""
    exit_code: int | None = None
    where: str = ""
    "Nodes, for people."
    detail: str = ""
    "The cluster's own words, for people: why it is pending, or how it ended."


class LauncherUnreachable(TutelageError):
    """The cluster can't be asked now. It says nothing of the jobs: they stay as they are until it answers."""


class Capacity(msgspec.Struct, kw_only=True, frozen=True):
    """What a launcher may give out at a time; None where its cluster queues by itself."""

    cpus: int
    gpus: int
    memory_gib: float


class Launcher(Plugin):
    """Plugin base: starts attempts somewhere, says what became of them, ends them.

    All methods may block for seconds, never for longer than a minute, and raise LauncherUnreachable when the cluster
    doesn't answer. An instance is made from its config by the operator (`[launchers.NAME]` in the server's settings).
    """

    local: bool = False
    "Whether attempts are processes of the machine where this object lives, so that no other machine can follow them."

    @classmethod
    def missing(cls) -> str:
        """Why this launcher can't be used here (what is not installed, and how to get it), or ''."""
        return ""

    def capacity(self) -> Capacity | None:
        """What can be given out in all; None where the cluster has a queue of its own."""
        return None

    def problems(self, resources: Resources) -> list[Problem]:
        """Why an attempt with these resources could never start here; asked before a job is accepted."""
        return []

    @abstractmethod
    def launch(self, launch: Launch) -> str:
        """Start an attempt; return its handle (what the cluster calls it). Called again for the same attempt, where an
        answer was lost, it must return the first one's handle or start nothing that would run twice.

        Raises:
            TutelageError: when it can't be started at all; LauncherUnreachable when it is not known whether it was.
        """

    @abstractmethod
    def find(self, launch: Launch) -> str:
        """The handle of an attempt that was launched, known or not, by its name and folder; '' when there is none."""

    @abstractmethod
    def statuses(self, attempts: dict[str, Launch]) -> dict[str, Status]:
        """The state of all these attempts, by handle, with as few questions to the cluster as it takes (one).

        Raises:
            LauncherUnreachable
        """

    @abstractmethod
    def stop(self, handle: str, launch: Launch) -> None:
        """Ask an attempt to save and stop (SIGTERM to its command). Returns at once; repeating it is harmless."""

    @abstractmethod
    def kill(self, handle: str, launch: Launch) -> None:
        """End every process of an attempt now, and free what it held. Returns at once; repeating it is harmless."""
