"""What people said, one JSON object a line: lines are only added, and each is on the disk before anybody is told so.

Several people write at once, each line under a lock of the file. To take a judgement back is a further line. A line
that was cut off in the middle (by a kill, or a full disk) was never acknowledged; the next writer removes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec

from tutelage.errors import TutelageError
from tutelage.runs.files import sync_folder, write_atomically

Kind = Literal["joined", "ranking", "bad", "skip", "undo", "comment"]
ANSWERS: tuple[Kind, ...] = ("ranking", "bad", "skip")
"What answers a question: an order of the answers, that all are bad, or that the person can't say."


class Judgement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line: who did what, when."""

    kind: Kind
    person: str
    at: str
    "UTC, ISO 8601."
    task: str = ""
    ranks: list[float] = []
    "One for each of the task's answers, in the task's own order: 1 is best, equal ranks are ties."
    shown: list[int] = []
    "The places of the answers in the order in which they were shown."
    seconds: float | None = None
    "From when the question was shown."
    comment: str = ""
    by: Literal["person", "import", "simulated"] = "person"

    def same_as(self, other: Judgement) -> bool:
        """Whether both say the same of the same question."""
        return (self.kind, self.task, self.ranks) == (other.kind, other.task, other.ranks)


Said = dict[str, dict[str, Judgement]]
"For each question, each person's answer that stands."


def standing(entries: Iterable[Judgement]) -> Said:
    """The answers that were not taken back."""
    said: Said = {}
    for entry in entries:
        if entry.kind in ANSWERS:
            said.setdefault(entry.task, {})[entry.person] = entry
        elif entry.kind == "undo":
            said.get(entry.task, {}).pop(entry.person, None)
    return said


class JudgementLog:
    """The file of a stage's judgements."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Judgement]:
        """All lines so far, oldest first; none when nobody has judged.

        Raises:
            TutelageError: at a line that is damaged.
        """
        return self._read()[0]

    def append(self, decide: Callable[[list[Judgement]], list[Judgement]]) -> list[Judgement]:
        """Add what `decide` makes of the lines so far; nobody else writes meanwhile. All is added, or nothing.

        Returns:
            What was added, once it is on the disk.
        Raises:
            TutelageError: what `decide` raises; when the file is damaged or can't be written.
        """
        from filelock import FileLock

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                entries, whole = self._read()
                added = decide(entries)
                lines = b"".join(msgspec.json.encode(entry) + b"\n" for entry in added)
                if len(added) == 1:
                    self._add(lines, len(whole))
                elif added:
                    write_atomically(self.path, whole + lines)
                return added
        except OSError as error:
            raise TutelageError.at(
                str(self.path),
                f"can't be written: {error.strerror}",
                "the last answer was not saved; nothing else is lost",
            ) from None

    def _read(self) -> tuple[list[Judgement], bytes]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return [], b""
        except OSError as error:
            raise TutelageError.at(str(self.path), f"can't be read: {error.strerror}") from None
        whole = data[: data.rfind(b"\n") + 1]
        entries = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entries.append(_DECODER.decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                fix = "put the line back as it was, or remove it"
                raise TutelageError.at(f"{self.path} line {number}", f"is no judgement: {error}", fix) from None
        return entries, whole

    def _add(self, line: bytes, size: int) -> None:
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.ftruncate(descriptor, size)
            os.lseek(descriptor, size, os.SEEK_SET)
            if os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, size)
                raise OSError(28, "No space left on device")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_folder(self.path.parent)


_DECODER = msgspec.json.Decoder(Judgement)
