"""Attempts as processes of this machine, which live on when the server does not."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

import tutelage
from tutelage.errors import Problem, TutelageError
from tutelage.launcher import Capacity, Launch, Launcher, Resources, Status
from tutelage.runs.attempt import CLOSED, OUTCOME, Claim, boot_id, claims, close, started_at
from tutelage_plugins.launchers import cgroups, keeper, outcomes
from tutelage_plugins.launchers.environment import environment, visible_devices
from tutelage_plugins.launchers.processes import end_all, of_attempt, runs_module

LAUNCHED = "launched"
BEGINNING = 60.0
"Seconds after a launch for which an attempt that has not begun may still be about to."
FORKING = 5.0
"Seconds after which a launch has surely left a process, if it ever does."


class Local(Launcher):
    """Attempts as processes of this machine, which live on when the server does not."""

    name = "local"
    local = True

    class Config(tutelage.Config):
        """What this machine may give out."""

        cpus: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="CPU cores; null: all.")] = None
        gpus: Annotated[Annotated[int, Meta(ge=0)] | None, Meta(description="GPUs; null: all that are found.")] = None
        memory_gib: Annotated[Annotated[float, Meta(gt=0)] | None, Meta(description="Memory; null: all.")] = None
        cgroup: Annotated[
            str,
            Meta(
                description="A cgroup (version 2) folder, delegated to the server, with the memory controller on for "
                "its children, by which the kernel holds attempts to their memory; without one they are watched."
            ),
        ] = ""
        inherit: Annotated[list[str], Meta(description="Variables of the server that attempts may see.")] = []

    @classmethod
    def missing(cls) -> str:
        """Needs Linux and util-linux's setsid."""
        if sys.platform != "linux":
            return "processes are followed through Linux's /proc, and this is another system"
        return "" if shutil.which("setsid") else "setsid is not installed; get it with: apt-get install util-linux"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        if self.config.cgroup and not cgroups.usable(Path(self.config.cgroup)):
            raise TutelageError.at(
                "cgroup",
                f"{self.config.cgroup} is no cgroup in which groups with a memory limit can be made",
                "delegate one (systemd: Delegate=memory), write +memory to its cgroup.subtree_control, or leave it out",
            )
        self._capacity: Capacity | None = None

    def capacity(self) -> Capacity:
        """The machine's, unless the config says less."""
        if self._capacity is None:
            config = self.config
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
            self._capacity = Capacity(
                cpus=config.cpus or len(os.sched_getaffinity(0)),
                gpus=_gpus() if config.gpus is None else config.gpus,
                memory_gib=config.memory_gib or round(memory, 2),
            )
        return self._capacity

    def problems(self, resources: Resources) -> list[Problem]:
        """What this machine doesn't have."""
        has = self.capacity()
        found = []
        if resources.nodes > 1:
            fix = "ask for one node, or submit to a cluster"
            found.append(Problem(place="resources.nodes", wrong="this launcher has one machine", fix=fix))
        for name, asked, most in (
            ("gpus", resources.gpus, has.gpus),
            ("cpus", resources.cpus, has.cpus),
            ("memory_gib", resources.memory_gib or 0, has.memory_gib),
        ):
            if asked > most:
                wrong = f"{asked} are asked for and the machine has {most}"
                found.append(Problem(place=f"resources.{name}", wrong=wrong, fix=f"ask for at most {most}"))
        return found

    def launch(self, launch: Launch) -> str:
        """Start a keeper, and with it the attempt, in a session of its own, below the system's first process."""
        if self.find(launch):
            return launch.name
        folder, resources = launch.folder.resolve(), launch.resources
        words = keeper.command(folder, memory_gib=resources.memory_gib, cgroup=str(self._group(launch) or ""))
        variables = environment(launch, inherit=self.config.inherit) | visible_devices(launch.devices)
        setsid = shutil.which("setsid") or "setsid"
        try:
            (folder / LAUNCHED).touch()
            # --fork: the process that is started here ends at once, so no attempt becomes this process's to reap.
            subprocess.run([setsid, "--fork", *words], check=True, env=variables, cwd=folder, **_SILENT)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise TutelageError.at(str(folder), f"the attempt can't be started: {error}") from error
        return launch.name

    def find(self, launch: Launch) -> str:
        """An attempt's name, when its folder says that it was launched."""
        return launch.name if claims(launch.folder) or _beginning(launch.folder) else ""

    def statuses(self, attempts: dict[str, Launch]) -> dict[str, Status]:
        """What the kernel knows of the processes that claimed the attempts."""
        return {
            handle: _status(launch) if handle == launch.name else Status(state="absent")
            for handle, launch in attempts.items()
        }

    def stop(self, handle: str, launch: Launch) -> None:
        """SIGTERM to the attempt's process; one that has not begun won't."""
        close(launch.folder)
        for claim in claims(launch.folder)[-1:]:
            _signal(claim, signal.SIGTERM)

    def kill(self, handle: str, launch: Launch) -> None:
        """End the attempt and everything that descends from it or carries its name."""
        close(launch.folder)
        # The keeper last: it inherits what the others leave behind, and ends that too.
        end_all(lambda: [pid for pid in of_attempt(launch.name) if not runs_module(pid, keeper.KEEPER)])
        until = time.monotonic() + 2
        while of_attempt(launch.name) and time.monotonic() < until:
            time.sleep(0.01)
        end_all(lambda: of_attempt(launch.name))
        if group := self._group(launch):
            cgroups.remove(group)

    def _group(self, launch: Launch) -> Path | None:
        return Path(self.config.cgroup, launch.name) if self.config.cgroup else None


_SILENT: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _status(launch: Launch) -> Status:
    claimed = claims(launch.folder)
    if not claimed:
        if (launch.folder / CLOSED).exists() and (launch.folder / LAUNCHED).exists():
            return outcomes.ended(launch.folder, socket.gethostname())
        if not _beginning(launch.folder):
            return Status(state="absent")
        if _beginning(launch.folder, FORKING) or of_attempt(launch.name) or claims(launch.folder):
            return Status(state="pending")
        return Status(state="ended", where=socket.gethostname(), detail=outcomes.last_words(launch.folder))
    claim = claimed[-1]
    where = f"{claim.host}, process {claim.pid}"
    if claim.boot_id != boot_id():
        if claim.host != socket.gethostname():
            return Status(state="running", where=where, detail=f"only {claim.host} can tell what became of it")
        if not (launch.folder / keeper.ENDED).exists() and not (launch.folder / OUTCOME).exists():
            return Status(state="ended", why="node-lost", where=where, detail="the machine was started anew")
        return outcomes.ended(launch.folder, where)
    if started_at(claim.pid) == claim.started or not _is_over(launch):
        return Status(state="running", where=where)
    return outcomes.ended(launch.folder, where)


def _is_over(launch: Launch) -> bool:
    """Whether nothing lives of an attempt whose process is dead; what lost its keeper too is ended here."""
    left = of_attempt(launch.name)
    if any(runs_module(pid, keeper.KEEPER) for pid in left):
        return False
    return not left or end_all(lambda: of_attempt(launch.name), seconds=1)


def _beginning(folder: Path, seconds: float | None = None) -> bool:
    """Whether an attempt was launched so few seconds ago, by default as many as it may take to begin."""
    try:
        return time.time() - (folder / LAUNCHED).stat().st_mtime < (BEGINNING if seconds is None else seconds)
    except OSError:
        return False


def _signal(claim: Claim, number: int) -> None:
    """Signal the process of a claim, and never another that was given its number."""
    try:
        descriptor = os.pidfd_open(claim.pid)
    except OSError:
        return
    try:
        if claim.boot_id == boot_id() and started_at(claim.pid) == claim.started:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _gpus() -> int:
    """How many GPUs this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([index for index in visible.split(",") if index not in ("", "-1")])
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())
