"""Finding and ending an attempt's processes on this machine (Linux), strays too."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


def processes() -> dict[int, int]:
    """Every process that is not dead already, with its parent."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) and fields[0] not in (b"Z", b"X"):
            found[int(entry.name)] = int(fields[1])
    return found


def descendants(ancestor: int) -> list[int]:
    """Processes that descend from one."""
    parents = processes()
    return [pid for pid in parents if ancestor in _ancestors(pid, parents)]


def of_attempt(name: str) -> list[int]:
    """Processes that carry an attempt's name in their environment, or descend from one that does."""
    parents = processes()
    marked = {pid for pid in parents if _carries(pid, f"TUTELAGE_ATTEMPT={name}".encode())}
    return [pid for pid in parents if pid in marked or not marked.isdisjoint(_ancestors(pid, parents))]


def end_all(find: Callable[[], list[int]], *, seconds: float = 5.0) -> bool:
    """Kill what `find` finds until it finds nothing (it may be starting more); returns whether that came about."""
    until = time.monotonic() + seconds
    while found := [pid for pid in find() if pid != os.getpid()]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def resident_bytes(pids: list[int]) -> int:
    """The memory of processes; what several share counts for each of them."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * PAGE
    return total


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


def _carries(pid: int, variable: bytes) -> bool:
    try:
        return variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _stat(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def proportional_bytes(pids: list[int]) -> int:
    """The memory of processes, what several share counted once (proportional set size); slower to ask for."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def runs_module(pid: int, module: str) -> bool:
    """Whether a process is `python -m MODULE`."""
    try:
        return module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
