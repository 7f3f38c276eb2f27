"""Checks recipes as `tutelage check` does, and estimates them, in a process that is kept warm.

The server itself never imports torch. `python -m tutelage_server.jobs.checking` does, reads a question a line, and
answers each with a line. It ends with the server, whichever way that ends, because its input ends then. A check that
takes too long, or that its process does not survive, is a problem of the recipe; the next one gets a new process.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import msgspec

from tutelage.errors import Problem, TutelageError
from tutelage_server.settings import Settings

_log = logging.getLogger(__name__)
_KEPT = 256
"Answers that are remembered."


class Ask(msgspec.Struct, kw_only=True):
    """A question."""

    folder: str
    "The job's."
    recipe: str
    "Its recipe, a file in it."
    estimated: str
    "The recipe to estimate, which may name other models of the same shapes."
    hardware: dict[str, Any] = {}


class Checked(msgspec.Struct, kw_only=True):
    """An answer."""

    problems: list[Problem] = []
    notes: list[str] = []
    data: dict[str, Any] = {}
    estimate: dict[str, Any] | None = None
    highest_usd: float | None = None
    "The upper end of what it is likely to cost."


class Checker:
    """The process that checks, started when it is first asked."""

    def __init__(self, allow_hub: bool = False, seconds: float = 300.0) -> None:
        self._allow_hub, self._seconds = allow_hub, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = 0
        self._known: OrderedDict[str, Checked] = OrderedDict()

    def check(self, ask: Ask, digest: str) -> Checked:
        """Check and estimate a recipe.

        Args:
            digest: the same for the same recipe, data and hardware; the answer may be one that was given before.
        """
        with self._lock:
            if digest in self._known:
                self._known.move_to_end(digest)
                return self._known[digest]
            answer = self._ask(ask)
            if answer is None:
                wrong = "could not be checked: the check took too long, or more memory than there is"
                return Checked(problems=[Problem(place="recipe", wrong=wrong, fix="try it with less data")])
            self._known[digest] = answer
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return answer

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, ask: Ask) -> Checked | None:
        for _ in range(2):  # a process that was idle may have been killed by somebody
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            fresh = self._asked == 0
            self._asked += 1
            try:
                process.stdin.write(msgspec.json.encode(ask) + b"\n")
                process.stdin.flush()
                line = _line(process.stdout, self._seconds)
            except TimeoutError:
                break
            except OSError:  # nobody reads the question
                line = b""
            if line:
                return msgspec.json.decode(line, type=Checked)
            self._end()
            if fresh:
                break
        self._end()
        return None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            environment = {name: value for name, value in os.environ.items() if not name.startswith("TUTELAGE_SERVER_")}
            environment |= {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            if not self._allow_hub:
                environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tutelage_server.jobs.checking"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C at the server is not meant for it
            )
            self._asked = 0
        return self._process

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()
        self._process = None


def digest_of(recipe: dict[str, Any], hashes: dict[str, str], hardware: dict[str, Any], others: Any) -> str:
    """What is the same for the same check: a hash of all that it looks at."""
    return hashlib.sha256(msgspec.json.encode([recipe, hashes, hardware, others], order="deterministic")).hexdigest()


def hardware_of(settings: Settings, gpus: int, nodes: int) -> dict[str, Any]:
    """The hardware of a job, as estimates know it."""
    if not settings.gpu or not gpus:
        return {"nodes": nodes}
    price = {} if settings.hourly_usd is None else {"usd_per_gpu_hour": settings.hourly_usd}
    return {"gpu": settings.gpu, "gpus": gpus, "nodes": nodes, **price}


def _line(stream: IO[bytes], seconds: float) -> bytes:
    """The next line of a pipe; empty when the pipe ends.

    Raises:
        TimeoutError: when it takes too long.
    """
    until = time.monotonic() + seconds
    parts: list[bytes] = []
    while True:
        if not select.select([stream], [], [], max(0.0, until - time.monotonic()))[0]:
            raise TimeoutError
        part = os.read(stream.fileno(), 1 << 16)
        parts.append(part)
        if not part or part.endswith(b"\n"):
            break
    line = b"".join(parts)
    return line if line.endswith(b"\n") else b""


def answer(ask: Ask) -> Checked:
    """Check and estimate one recipe; runs in the process that may import torch."""
    from tutelage.api import check

    folder = Path(ask.folder)
    report = check(folder / ask.recipe, out=folder / "run", here=False)
    found = Checked(problems=report.problems, notes=report.notes, data=report.data)
    if report.ok:
        try:
            _estimate(folder / ask.estimated, ask.hardware, found)
        except TutelageError as error:
            found.notes += [f"no estimate: {problem}" for problem in error.problems]
        except Exception as error:  # a third party's phase may have a config that the estimator has never seen
            found.notes.append(f"no estimate: {type(error).__name__}")
    return _without(found, folder)


def _estimate(recipe: Path, hardware: dict[str, Any], found: Checked) -> None:
    from tutelage_advisor.catalog import load
    from tutelage_advisor.estimates.recipes import estimate_recipe

    catalog = load()
    made = estimate_recipe(recipe, hardware, catalog, [])
    found.estimate = msgspec.to_builtins(made)
    if made.usd is not None:
        found.highest_usd = sum(
            stage.intervals.get("usd", (0.0, stage.usd or 0.0))[1] for stage in made.stages.values()
        )
    if not hardware.get("gpu"):
        return
    room = catalog.gpu(hardware["gpu"], "gpu").usable
    for name, stage in made.stages.items():
        if stage.fits is False:
            told = f"needs about {stage.memory.peak_gib:.1f} GiB of each {stage.gpu}, which gives {room:.1f}"
            if stage.intervals["memory.peak_gib"][0] <= room:
                found.notes.append(f"stages.{name}: {told}: it may not fit")
                continue
            fix = "use adapter: lora or qlora, strategy: fsdp over more GPUs, or a smaller model"
            found.problems.append(Problem(place=f"stages.{name}", wrong=told, fix=fix))


def _without(found: Checked, folder: Path) -> Checked:
    """The answer without the folder's own path, which is nobody's business and differs from try to try."""
    text = msgspec.json.encode(found)
    for each in {str(folder), str(folder.resolve())}:
        quoted = msgspec.json.encode(each)[1:-1]
        text = text.replace(quoted + b"/", b"").replace(quoted, b".")
    return msgspec.json.decode(text, type=Checked)


def main() -> None:
    """Answer questions until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")  # rather this than the server
    import tutelage.engine.preflight  # noqa: F401 - slow, and every check needs it

    for line in sys.stdin.buffer:
        answers.write(msgspec.json.encode(answer(msgspec.json.decode(line, type=Ask))) + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
