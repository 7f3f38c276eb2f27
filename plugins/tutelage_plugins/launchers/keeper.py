"""`python -m tutelage_plugins.launchers.keeper FOLDER …`: the parent of an attempt on a machine without a job manager.

It holds the attempt to its memory, inherits whatever processes lose their parent, ends all of them when the attempt
ends, however that was, and writes `ended.json`. When it is killed itself, the kernel kills the attempt.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec

from tutelage.runs.attempt import CLOSED, STOPS, claims
from tutelage.runs.files import write_atomically
from tutelage_plugins.launchers import cgroups
from tutelage_plugins.launchers.processes import descendants, end_all, proportional_bytes, resident_bytes

ENDED, KILL, LOG, ENVIRONMENT = "ended.json", "kill.json", "launch.log", "environment.json"
ATTEMPT = [sys.executable, "-P", "-m", "tutelage.runs.attempt"]
KEEPER = "tutelage_plugins.launchers.keeper"
LOOK = 0.5
"Seconds between looks at memory and at what was asked by files."


class Ended(msgspec.Struct, kw_only=True):
    """How an attempt's own process ended, which it can't tell when it was killed."""

    exit_code: int
    why: Literal["exited", "killed", "memory-limit"]
    detail: str = ""


def command(
    folder: Path, *, memory_gib: float | None, cgroup: str = "", by_files: bool = False, python: str = sys.executable
) -> list[str]:
    """What starts a keeper with its attempt.

    Args:
        by_files: whether it takes its variables, and what is asked of it, from files in the attempt's folder.
    """
    words = [python, "-P", "-m", KEEPER, str(folder)]
    words += [f"--memory={int(memory_gib * 2**30)}"] if memory_gib else []
    words += [f"--cgroup={cgroup}"] if cgroup else []
    return [*words, "--by-files"] if by_files else words


def write_environment(folder: Path, variables: dict[str, str]) -> None:
    """Leave an attempt's variables for a keeper on another machine; nobody else may read them, and it removes them."""
    descriptor = os.open(folder / ENVIRONMENT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(variables))


def _take_environment(folder: Path) -> dict[str, str]:
    file = folder / ENVIRONMENT
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    finally:
        file.unlink(missing_ok=True)


def keep(folder: Path, memory: int, cgroup: Path | None, by_files: bool) -> int:
    """Run the attempt of a folder to its end; returns its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*STOPS, signal.SIGCHLD})
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    parent = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)
        if cgroup is not None:
            cgroups.join(cgroup)

    if cgroup is not None:
        cgroups.make(cgroup, memory)
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [*ATTEMPT, str(folder)],
            env={**os.environ, **(_take_environment(folder) if by_files else {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            preexec_fn=prepare,
        )
    reason = _wait(process, folder, 0 if cgroup is not None else memory, by_files)
    end_all(lambda: descendants(os.getpid()), seconds=60)
    if cgroup is not None:
        reason = reason or cgroups.exceeded(cgroup)
        cgroups.remove(cgroup)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if any(claim.pid == process.pid for claim in claims(folder)[-1:]):  # else it was another's attempt
        why: Literal["exited", "killed", "memory-limit"] = "killed" if process.returncode < 0 else "exited"
        ended = Ended(exit_code=code, why="memory-limit" if reason else why, detail=reason)
        write_atomically(folder / ENDED, msgspec.json.encode(ended))
    return code


def _wait(process: subprocess.Popen[bytes], folder: Path, memory: int, by_files: bool) -> str:
    """Wait, passing signals on; returns why it was ended for its memory, if it was."""
    asked = False
    while process.poll() is None:
        received = signal.sigtimedwait({*STOPS, signal.SIGCHLD}, LOOK if memory or by_files else 60.0)
        if received is not None and received.si_signo in STOPS:
            process.send_signal(signal.SIGTERM)
        if by_files and not asked and (folder / CLOSED).exists():
            asked = True
            process.send_signal(signal.SIGTERM)
        if by_files and (folder / KILL).exists():
            process.kill()
        if memory and (said := _beyond(memory)):
            process.kill()
            process.wait()
            return said
    return ""


def _beyond(memory: int) -> str:
    mine = descendants(os.getpid())
    if resident_bytes(mine) <= memory or (used := proportional_bytes(mine)) <= memory:
        return ""
    return f"its processes used {used / 2**30:.2f} GiB and may use {memory / 2**30:.2f} GiB"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog=f"python -m {KEEPER}")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", type=int, default=0, help="bytes that its processes may use together; 0: any")
    parser.add_argument("--cgroup", type=Path, help="the cgroup (v2) to make for it")
    parser.add_argument("--by-files", action="store_true", help="take variables and wishes from files in the folder")
    given = parser.parse_args()
    return keep(given.folder.resolve(), given.memory, given.cgroup, given.by_files)


if __name__ == "__main__":
    sys.exit(main())
