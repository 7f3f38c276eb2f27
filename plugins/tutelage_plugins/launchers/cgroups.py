"""Memory limits by the kernel: a cgroup (version 2) for each attempt, below one that was delegated to the server.

Files as in the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def usable(folder: Path) -> bool:
    """Whether limited groups can be made below this one."""
    try:
        return "memory" in (folder / "cgroup.subtree_control").read_text().split() and os.access(folder, os.W_OK)
    except OSError:
        return False


def make(group: Path, memory: int) -> None:
    """Make a group whose processes may use so many bytes (0: any) and die together when they want more."""
    group.mkdir(exist_ok=True)
    if memory:
        (group / "memory.max").write_text(str(memory))
        with contextlib.suppress(OSError):  # kernels without swap accounting lack it
            (group / "memory.swap.max").write_text("0")
    (group / "memory.oom.group").write_text("1")


def join(group: Path) -> None:
    """Move this process into a group."""
    (group / "cgroup.procs").write_text("0")


def exceeded(group: Path) -> str:
    """What the kernel says of processes that it killed for the group's limit, or ''."""
    with contextlib.suppress(OSError):
        counts = dict(line.split() for line in (group / "memory.events").read_text().splitlines())
        if int(counts.get("oom_kill", 0)):
            limit = int((group / "memory.max").read_text())
            return f"the kernel ended it: its processes wanted more than {limit / 2**30:.2f} GiB"
    return ""


def remove(group: Path) -> None:
    """End what is left in a group, and remove it; nothing when there is none."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            (group / "cgroup.kill").write_text("1")
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
        else:
            return
