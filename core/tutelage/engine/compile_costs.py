"""What compiling cost and gained here before, remembered beside what was compiled, and whether it will pay.

A record is of one model's blocks on one device with one release of torch (`Subject`). Where there is none, what other
models took on the same device stands for it, and where nothing was compiled yet, `ASSUMED`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from tutelage.models.locating import cache_folder
from tutelage.runs.words import duration

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"
"Where torch keeps what it compiled; a user may set it."


class Subject(msgspec.Struct, frozen=True):
    """What is compiled, by all that decides what that costs and gains."""

    device: str
    "The device's name, with the number of threads where it is a CPU."
    torch: str
    blocks: str
    "The class of a model's repeated blocks."
    shape: str
    "A digest of all that the compiled code depends on: parameters, precision, layout of batches, versions."

    def __str__(self) -> str:
        return f"{self.blocks} {self.shape} on {self.device}, torch {self.torch}"


class Measured(msgspec.Struct, kw_only=True):
    """What compiling took and gained."""

    cold: float | None = None
    "Seconds, where nothing of it was compiled before."
    warm: float | None = None
    "Seconds, where the cache held all of it."
    ratio: float | None = None
    "Time of a micro-batch when compiled, as a share of its time when not."


class _Record(Measured, kw_only=True):
    subject: Subject
    folder: str = ""
    "Inductor's cache that holds it."


class Expected(msgspec.Struct, frozen=True):
    """What compiling is expected to take (seconds) and gain (`ratio`), and what that is based on."""

    seconds: float
    ratio: float
    basis: Literal["measured", "similar", "assumed"]


ASSUMED = {
    # Measured: 46 s, 10 s and 0.95 (SmolLM2-135M, LoRA of rank 16, bfloat16, one core of an EPYC with AVX-512).
    "cpu": Measured(cold=60.0, warm=15.0, ratio=0.95),
    # Published: 0.79 (torchtune, Llama 3.2 3B on an A100) and 0.86 (torchtitan, Llama 3.1 8B on H100s) of the plain
    # time. Half of the smaller gain, as plain steps here have fused norms, gates and losses. Seconds are a judgement.
    "cuda": Measured(cold=90.0, warm=20.0, ratio=0.93),
}
"By kind of device, where nothing was compiled yet; on other kinds compiling is expected to gain nothing."

WARM_SHARE = 0.3
"Of the seconds that compiling took, what it takes from the cache, where that was not measured yet."


@dataclass(frozen=True)
class Estimate:
    """Whether to compile. All in seconds.

    Attributes:
        planned: what the forward and backward passes that are still to do take when nothing is compiled.
        saves: what compiling takes off them.
        costs: what compiling takes itself.
    """

    planned: float
    saves: float
    costs: float

    @classmethod
    def of(cls, tokens: float, per_token: float, expected: Expected) -> Estimate:
        """Of so many `tokens` on this device, at so many seconds each when nothing is compiled."""
        planned = tokens * per_token
        return cls(planned, planned * (1 - expected.ratio), expected.seconds)

    @property
    def pays(self) -> bool:
        """Whether it saves more than it costs."""
        return self.saves > self.costs

    def told(self) -> str:
        """`it would save about 12 s of 2 min 20 s and cost about 60 s`."""
        saves = f"save about {duration(self.saves)} of {duration(self.planned)}" if self.saves > 0 else "save nothing"
        return f"it would {saves} and cost about {duration(self.costs)}"


class Costs:
    """What is remembered, in a file of Tutelage's cache."""

    def __init__(self) -> None:
        self._file = compiled_folder() / "measured.json"

    def expected(self, subject: Subject, kind: str) -> Expected:
        """Of compiling it now, on a `kind` of device (cpu, cuda, …)."""
        records = self._read()
        own = records.get(str(subject))
        if own is not None and own.ratio is not None and (seconds := self._seconds(own)) is not None:
            return Expected(seconds, own.ratio, "measured")
        assumed = ASSUMED.get(kind, Measured(cold=0.0, warm=0.0, ratio=1.0))
        others = [each for each in records.values() if each.subject.device == subject.device]
        others = [each for each in others if each.subject.torch == subject.torch]
        cold = _middle(each.cold for each in others)
        seconds = cold if cold is not None else assumed.cold or 0.0
        ratio = _middle(each.ratio for each in others)
        if ratio is None:
            ratio = assumed.ratio or 1.0
        return Expected(seconds, ratio, "assumed" if cold is None else "similar")

    def remember(self, subject: Subject, measured: Measured) -> None:
        """Keep what was measured; of a ratio that is known, the mean with it. That it can't be kept is no error."""
        records = self._read()
        known = records.setdefault(str(subject), _Record(subject=subject))
        known.cold = known.cold if measured.cold is None else measured.cold
        known.warm = known.warm if measured.warm is None else measured.warm
        ratios = [each for each in (known.ratio, measured.ratio) if each is not None]
        known.ratio = sum(ratios) / len(ratios) if ratios else None
        known.folder = str(inductor_folder())
        beside = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(msgspec.json.format(msgspec.json.encode(records), indent=1))
            beside.replace(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()

    def _seconds(self, known: _Record) -> float | None:
        """Of compiling what was compiled before: few where the cache still holds it."""
        held, warm = Path(known.folder, "fxgraph"), False
        with contextlib.suppress(OSError):
            warm = known.folder == str(inductor_folder()) and held.is_dir() and any(held.iterdir())
        if not warm:
            return known.cold
        if known.warm is None and known.cold is not None:
            return known.cold * WARM_SHARE
        return known.warm

    def _read(self) -> dict[str, _Record]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, _Record])
        except (OSError, msgspec.MsgspecError):
            return {}


def compiled_folder() -> Path:
    """Where compiled code, and what it cost, is kept."""
    return cache_folder() / "compiled"


def inductor_folder() -> Path:
    """Where torch keeps what it compiled: where the user says so, else in Tutelage's cache."""
    named = Path(os.environ.get(INDUCTOR) or Path(tempfile.gettempdir(), "torchinductor_"))
    # Torch itself sets the variable when it is imported, to a folder that is gone with the next start of the machine.
    by_torch = named.parent == Path(tempfile.gettempdir()) and named.name.startswith("torchinductor_")
    return compiled_folder() / "inductor" if by_torch else named.absolute()


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
