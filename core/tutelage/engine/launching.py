"""One process per device, started by torchrun; this process follows their events and ends them when it must end.

On several machines, torchrun is started once on each by the command that the launcher names in `TUTELAGE_SPREAD`, and
all meet at this process. The run's folder must be on a disk that all of them see.

No process outlives this one: on Linux the kernel kills them with their parent, so a run that was killed is never
written by leftovers.
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
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tutelage.engine.context import StageContext
from tutelage.engine.devices import NODES, Devices
from tutelage.engine.interrupts import Interrupts
from tutelage.errors import Problem, RunFailed, RunStopped, RunWaiting, TutelageError
from tutelage.phase import Artifact
from tutelage.runs.files import write_atomically
from tutelage.runs.folder import EVENTS, RunFolder

OUTCOME, STOP = "outcome.json", "stop"

SPREAD = "TUTELAGE_SPREAD"
"The variable that holds the words (a JSON list) before a command that run it once on each of the run's machines."

HOST = "TUTELAGE_HOST"
"The variable that says by which name the other machines reach this one, where its host name won't do."

CPUS = "TUTELAGE_CPUS"
"The variable in which a launcher says how many cores of each machine a run may use."


class Outcome(msgspec.Struct, kw_only=True):
    """How a process ended its stage; the first to fail is the one that counts."""

    artifact: str = ""
    kind: str = ""
    metrics: dict[str, float] = {}
    problems: list[Problem] = []
    exit_code: int = 0
    stopped: bool = False
    out_of_memory_at: int = 0
    "Tokens of the micro-batch for which memory did not suffice, or 0."


def run_in_processes(context: StageContext) -> Artifact:
    """Run a stage on several devices, of this machine or of several.

    Out of memory starts it again from its last checkpoint with half the micro-batch.

    Raises:
        TutelageError: what a process raised.
    """
    limit = 0
    while True:
        outcome = _launch(context, limit)
        if outcome.out_of_memory_at > 1:
            limit = outcome.out_of_memory_at // 2
            context.emit("notice", text=f"out of memory: micro-batches now have {limit} tokens; the result is the same")
            continue
        if outcome.stopped:
            stopped = RunStopped(outcome.problems)
            stopped.exit_code = outcome.exit_code
            raise stopped
        if outcome.exit_code == RunWaiting.exit_code:
            raise RunWaiting(outcome.problems)
        if outcome.problems:
            raise RunFailed(outcome.problems) if outcome.exit_code == 1 else TutelageError(outcome.problems)
        return Artifact(outcome.kind, Path(outcome.artifact), outcome.metrics)


def _launch(context: StageContext, limit: int) -> Outcome:
    ranks = context.folder / "ranks"
    ranks.mkdir(exist_ok=True)
    for left in ranks.iterdir():
        left.unlink()
    devices = context.devices
    with _meeting(devices) as meeting:
        command = [*_spread(devices), sys.executable, "-m", "torch.distributed.run", *meeting]
        command += [f"--nproc-per-node={devices.count}", "-m", "tutelage.engine.worker"]
        return _run([*command, str(context.run.path), context.stage.name, str(limit)], context, ranks)


def _spread(devices: Devices) -> list[str]:
    """The words before a command that run it once on each machine; none where there is one machine."""
    if devices.nodes == 1:
        return []
    try:
        return msgspec.json.decode(os.environ.get(SPREAD, ""), type=list[str])
    except msgspec.MsgspecError:
        wrong = f"{NODES} says {devices.nodes} and {SPREAD} is not a JSON list of words"
        raise TutelageError.at(SPREAD, wrong, "have it name the command that runs what follows it on each") from None


@contextlib.contextmanager
def _meeting(devices: Devices) -> Iterator[list[str]]:
    """How torchrun's processes find each other: of several machines, at a store that this process holds meanwhile."""
    if devices.nodes == 1:
        yield ["--standalone"]
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host = os.environ.get(HOST) or socket.gethostname()
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    place = [f"--rdzv-endpoint={host}:{store.port}", "--rdzv-conf=is_host=0", f"--rdzv-id={uuid.uuid4().hex}"]
    yield [f"--nnodes={devices.nodes}", "--rdzv-backend=c10d", *place]


def _threads(devices: Devices) -> dict[str, str]:
    """Each process gets its share of the cores that the run may use, unless a person said otherwise."""
    allotted = os.environ.get(CPUS)
    if allotted is None and "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, int(allotted or os.cpu_count() or 1) // devices.count))}


def _run(command: list[str], context: StageContext, ranks: Path) -> Outcome:
    environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, **_threads(context.devices)}
    log = context.folder / "processes.log"
    interrupts = Interrupts()
    with log.open("ab") as output, _Follower(context.run):
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
        interrupts.install()
        try:
            code = _wait(process, interrupts, ranks, elsewhere=context.devices.nodes > 1)
        finally:
            interrupts.remove()
            if process.poll() is None:
                process.terminate()
                process.wait()
    found = ranks / OUTCOME
    if found.is_file():
        return msgspec.json.decode(found.read_bytes(), type=Outcome)
    if interrupts.received is not None:
        stopped = RunStopped.at(str(context.run.path), f"stopped by {signal.Signals(interrupts.received).name}")
        stopped.exit_code = 128 + interrupts.received
        raise stopped
    tail = b"\n".join(log.read_bytes().splitlines()[-5:]).decode(errors="replace")
    raise RunFailed.at(
        context.stage.name, f"a process ended with code {code} without a word; last lines: {tail}", f"see {log}"
    )


def _wait(process: subprocess.Popen[bytes], interrupts: Interrupts, ranks: Path, *, elsewhere: bool) -> int:
    """Wait for the processes; hand the first signal on to each, so that they save and stop."""
    told = False
    while True:
        try:
            return process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if interrupts.received is not None and not told:
                told = (_tell_elsewhere if elsewhere else _tell)(ranks, interrupts.received)
                if not told:
                    process.terminate()


def _tell(ranks: Path, number: int) -> bool:
    told = False
    for file in ranks.glob("rank-*.json"):
        try:
            os.kill(json.loads(file.read_bytes())["pid"], number)
            told = True
        except (OSError, ValueError):
            continue
    return told


def _tell_elsewhere(ranks: Path, number: int) -> bool:
    """Processes of other machines are told by a file, which `obey` looks for."""
    if not any(ranks.glob("rank-*.json")):
        return False
    write_atomically(ranks / STOP, str(number))
    return True


def obey(ranks: Path) -> None:
    """Have this process get the signal that it is to be told from another machine, when the time comes."""

    def look() -> None:
        while not (ranks / STOP).exists():
            time.sleep(0.5)
        os.kill(os.getpid(), int((ranks / STOP).read_text()))

    threading.Thread(target=look, name="tutelage-obey", daemon=True).start()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux: prctl, PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class _Follower:
    """A thread that hands what other processes append to the run's events to this process's listeners."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        path = run.path / EVENTS
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tutelage-follow", daemon=True)
        self._rest = b""

    def __enter__(self) -> _Follower:
        self._run.followed = True
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._read()
        self._file.close()
        self._run.followed = False

    def _follow(self) -> None:
        while not self._done.wait(0.1):
            self._read()

    def _read(self) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            self._run.tell(json.loads(line))
