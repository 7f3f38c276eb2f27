"""`python -m tutelage.runs.attempt FOLDER`: one execution of a run, by which launchers start all work.

The folder's `attempt.json` says what to do. The command claims the folder first, so that an attempt that was launched
twice runs once; it trains, or resumes the run where one exists; it passes on what asks it to stop; it ends every
process that the run left; and then it says in `outcome.json` how the run ended. Without `outcome.json` the attempt was
killed.

Linux only: it is the kernel that ends the run's process together with this one (prctl, PR_SET_PDEATHSIG) and hands
orphans to this one (PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tutelage.runs.files import write_atomically
from tutelage.runs.folder import RECORD, now

ORDER, CLOSED, LOG, OUTCOME = "attempt.json", "closed.json", "log.txt", "outcome.json"
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"Signals that ask the run to save and stop; clusters send different ones before a time limit."

_PARENT_DEATH_SIGNAL, _CHILD_SUBREAPER = 1, 36
_TAIL = 16_384


class Order(msgspec.Struct, kw_only=True):
    """What an attempt is to do; paths are relative to its folder."""

    recipe: str = "../../recipe.yaml"
    run: str = "../../run"
    name: str = ""
    "The attempt's name, which its processes carry as TUTELAGE_ATTEMPT."
    allow_changes: bool = False
    "Go on although data or versions changed since the run began."
    time_limit: float | None = None
    "Minutes until every process of it is dead; it is asked to save a tenth of it before, at most two minutes."
    command: list[str] | None = None
    "What to run in place of `tutelage train` and `tutelage resume`."


class Claim(msgspec.Struct, kw_only=True):
    """The process that carries an attempt out."""

    pid: int
    started: int
    "When it started, in the kernel's clock ticks since boot: a process id alone may have been given out again."
    host: str
    boot_id: str


class Outcome(msgspec.Struct, kw_only=True):
    """How an attempt ended. No process of it but the one that writes this is alive by then."""

    exit_code: int
    "The run's: 0 succeeded, 1 failed, 2 something to mend, 3 waiting for people, 130 or 143 stopped and saved."
    signal: int = 0
    "The signal that ended the run's process, where one did."
    state: str = ""
    "The run's state as its record has it; empty where this attempt never wrote one."
    reason: str = ""
    why: str = ""
    "`time-limit` where this attempt's limit ended it."
    ended: str = ""
    start: int = 0
    "Which start of the attempt this was: a cluster that requeues a job starts it again."


def claim(folder: Path) -> bool:
    """Claim an attempt for this process; False when another did, or when the attempt was closed before it began.

    A cluster that requeues a job starts the same attempt again, with a restart count, which is a claim of its own.
    """
    mine = Claim(pid=os.getpid(), started=started_at(os.getpid()) or 0, host=socket.gethostname(), boot_id=boot_id())
    beside = folder / f".claim.{mine.host}.{mine.pid}"
    write_atomically(beside, msgspec.json.encode(mine))  # on the disk: a power cut must leave no empty claim
    try:
        os.link(beside, folder / f"claimed-{_start()}.json")  # exists whole or not at all, and only one gets it
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    return not (folder / CLOSED).exists()


def claims(folder: Path) -> list[Claim]:
    """Who carried an attempt out, the latest restart last."""
    files = sorted(folder.glob("claimed-*.json"), key=_start_of)
    return [msgspec.json.decode(file.read_bytes(), type=Claim) for file in files]


def last_start(folder: Path) -> int:
    """The number of an attempt's last start, which is 0 unless its cluster started it again; -1 when it never began."""
    return max(map(_start_of, folder.glob("claimed-*.json")), default=-1)


def last_outcome(folder: Path) -> Outcome | None:
    """How an attempt's last start ended; None when it said nothing (yet), or nothing that can be read.

    What a former start said lies there until the next one ends, and counts no more.
    """
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        outcome = msgspec.json.decode((folder / OUTCOME).read_bytes(), type=Outcome)
        return outcome if outcome.start >= last_start(folder) else None
    return None


def close(folder: Path) -> bool:
    """See to it that an attempt doesn't begin from now on; returns whether it had begun.

    Closing writes first and then looks for claims, claiming does it the other way round: one of both sees the other.
    """
    if not (folder / CLOSED).exists():
        write_atomically(folder / CLOSED, b"{}\n")
    return any(folder.glob("claimed-*.json"))


def run_attempt(folder: Path) -> int:
    """Claim an attempt and carry it out; returns its exit code, 0 when it is another's.

    Raises:
        OSError, msgspec.MsgspecError: when the folder can't be read or written.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*STOPS, signal.SIGCHLD})
    order = msgspec.json.decode((folder / ORDER).read_bytes(), type=Order)
    if not claim(folder):
        return 0
    began = time.time()
    _prctl(_CHILD_SUBREAPER, 1)
    with _child(folder, order) as process:
        limit_reached = _wait(process, order.time_limit)
    _end_descendants()
    outcome = _outcome(folder, order, process.returncode, began)
    if limit_reached and outcome.exit_code not in (0, 3):
        outcome.why = "time-limit"
    _write(folder / OUTCOME, msgspec.json.encode(outcome))
    return outcome.exit_code


def started_at(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none, or only its remains (a zombie)."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in (b"Z", b"X") else None


def boot_id() -> str:
    """What tells this boot of the machine from others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def is_alive(claim: Claim) -> bool | None:
    """Whether the process of a claim lives; None when it is another machine's, which can't be asked."""
    if claim.host != socket.gethostname():
        return None
    return claim.boot_id == boot_id() and started_at(claim.pid) == claim.started


@contextlib.contextmanager
def _child(folder: Path, order: Order) -> Iterator[subprocess.Popen[bytes]]:
    """The run's process: in a group of its own, gone when this one is gone, its output appended to the log."""
    recipe, run = (folder / order.recipe).resolve(), (folder / order.run).resolve()
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    if order.name:
        environment.setdefault("TUTELAGE_ATTEMPT", order.name)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        _prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)

    parent = os.getpid()
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            order.command or _command(recipe, run, order.allow_changes),
            cwd=recipe.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            preexec_fn=prepare,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _command(recipe: Path, run: Path, allow_changes: bool) -> list[str]:
    tutelage = [sys.executable, "-P", "-m", "tutelage"]
    if (run / RECORD).is_file():
        return [*tutelage, "resume", str(run), "--json", *(["--allow-changes"] if allow_changes else [])]
    return [*tutelage, "train", str(recipe), "--out", str(run), "--json"]


def _wait(process: subprocess.Popen[bytes], minutes: float | None) -> bool:
    """Wait for the run, passing on what asks it to stop; returns whether the time limit was what asked."""
    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    ask = end - min(120.0, 6 * minutes) if minutes else end
    asked = limit_reached = False
    while process.poll() is None:
        clock = time.monotonic()
        if clock >= end:
            process.kill()
        elif clock >= ask and not asked:
            asked = limit_reached = True
            process.terminate()
        soon = 1.0 if clock >= end else (end if asked else ask) - clock
        received = signal.sigtimedwait({*STOPS, signal.SIGCHLD}, max(0.0, min(soon, 3600.0)))
        if received is not None and received.si_signo in STOPS and not asked:
            asked = True  # once is enough: a run that is about to end would not bear a second
            process.terminate()
    return limit_reached or time.monotonic() >= end


def _outcome(folder: Path, order: Order, code: int, began: float) -> Outcome:
    exit_code = code if code >= 0 else 128 - code
    outcome = Outcome(exit_code=exit_code, signal=max(0, -code), ended=now(), start=_start())
    record = (folder / order.run).resolve() / RECORD
    with contextlib.suppress(OSError, ValueError):
        if record.stat().st_mtime >= began - 1:  # else an earlier attempt wrote it
            told = json.loads(record.read_bytes())
            outcome.state, outcome.reason = str(told.get("state", "")), str(told.get("reason", ""))
    if outcome.exit_code in (1, 2) and not outcome.reason:
        outcome.reason = _last_words(folder / LOG)
    return outcome


def _start() -> int:
    """Which start of its attempt this process is, as the cluster counts."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _start_of(claimed: Path) -> int:
    return int(claimed.stem.partition("-")[2])


def _last_words(log: Path) -> str:
    """What a run that never began said at its end: its problems as `--json` prints them, else the last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            problems = json.loads(line)["error"]["problems"]
            return "\n".join(_sentence(problem) for problem in problems)
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:500]


def _sentence(problem: dict[str, str]) -> str:
    place, fix = problem.get("place", ""), problem.get("fix", "")
    return f"{place + ': ' if place else ''}{problem['wrong']}{'; ' + fix if fix else ''}"


def _end_descendants() -> None:
    """Kill and reap all that the run started; orphans are this process's children, so none is missed."""
    while True:
        parents = {pid: int(fields[1]) for pid in _processes() if (fields := _stat(pid))}
        for pid in parents:
            if _descends(pid, os.getpid(), parents):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid := parents.get(pid, 0):
        if pid == ancestor:
            return True
    return False


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on (the second, a name, may hold anything); [] when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _write(path: Path, content: bytes) -> None:
    """Write, trying again for a minute where the disk is full: somebody may be making room."""
    for left in range(60, -1, -1):
        try:
            write_atomically(path, content)
        except OSError:
            if not left:
                raise
            time.sleep(1)
        else:
            return


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main(arguments: list[str]) -> Any:
    """The command; returns its exit code."""
    if len(arguments) != 1:
        return "usage: python -m tutelage.runs.attempt FOLDER"
    return run_attempt(Path(arguments[0]).resolve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
