"""Contenders are processes of their own: their lines of JSON with the time of arrival, their seconds, their memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT = 900.0
"Seconds after which a process is taken to hang."
TUTELAGE = str(Path(sys.executable).with_name("tutelage"))


class Failed(Exception):
    """A process failed; says how."""


@dataclass
class Ended:
    """A process that ended well: each line of JSON it printed, when (in seconds from its start), and what it took.

    `peak_gib` is the largest resident set of any process in it.
    """

    lines: list[tuple[dict[str, Any], float]]
    seconds: float
    peak_gib: float

    def events(self, name: str) -> list[tuple[dict[str, Any], float]]:
        """The events of a name, of a process that tells events."""
        return [(line, at) for line, at in self.lines if line.get("event") == name]


def run(
    command: Sequence[str],
    folder: Path,
    *,
    variables: Mapping[str, str] | None = None,
    cores: set[int] | None = None,
    listen: Callable[[dict[str, Any], int], None] | None = None,
    may_end: Sequence[int] = (0,),
    limit: float = LIMIT,
) -> Ended:
    """Run a command in a folder, which is made, and wait for it.

    The caller must be small: Linux counts the memory of who starts a process into that process's peak.

    Args:
        variables: further environment variables.
        cores: the processors that it may use; all that this process may, if None.
        listen: is told each line as it comes, with the process's id.
        may_end: exit codes that are no failure.
    Raises:
        Failed: with the end of its log, when it fails or runs longer than `limit` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[tuple[dict[str, Any], float]] = []
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **(variables or {})},
            cwd=folder,
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
        watch = threading.Timer(limit, process.send_signal, [signal.SIGKILL])
        watch.start()
        try:
            assert process.stdout is not None
            with process.stdout:
                for text in process.stdout:
                    if text.startswith('{"'):
                        lines.append((json.loads(text), time.perf_counter() - started))
                        if listen is not None:
                            listen(lines[-1][0], process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
        finally:
            watch.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in may_end:
        told = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        end = "\n".join(told.strip().splitlines()[-6:])[-1000:]
        said = f"it ran longer than {limit:g} s" if seconds >= limit else f"it ended with {process.returncode}"
        raise Failed(f"{' '.join(command[:4])} …: {said}:\n{end}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Ended(lines, seconds, usage.ru_maxrss * unit / 2**30)


def ask(module: str, request: Mapping[str, Any], folder: Path, **options: Any) -> Ended:
    """Run a module of the bench, such as `bench.peer`, on a request: one JSON object, read from a file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {**options.pop("variables", {}), "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    command = [sys.executable, "-m", module, str(folder / "request.json")]
    return run(command, folder, variables=variables, **options)


def request() -> dict[str, Any]:
    """In such a module: what is asked of it."""
    asked: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return asked


def tell(**told: Any) -> None:
    """In such a module: a line of JSON, at once."""
    print(json.dumps(told), flush=True)
