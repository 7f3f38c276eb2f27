"""Makes a dataset item by item: durable after each batch, shared out over processes, the same however it was made.

What a batch gives must depend on its items alone. Batches are cut in the same way whatever the number of processes, so
that a batch is computed with the same shapes, hence to the same bits, wherever and whenever it is.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import torch
import torch.distributed as dist

from tutelage.engine.context import DATASET, StageContext
from tutelage.engine.heartbeat import Heartbeat
from tutelage.engine.interrupts import Interrupts
from tutelage.engine.learner import is_out_of_memory
from tutelage.errors import RunFailed, RunStopped
from tutelage.models.generation import load_located
from tutelage.models.loading import adapter_settings, load_model, load_tokenizer, resize_for
from tutelage.models.locating import Located
from tutelage.runs.files import sync_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Row = dict[str, Any]


def load_context_model(context: StageContext, reference: str = "") -> tuple[Any, PreTrainedTokenizerBase]:
    """A model for generation in the stage's precision and on this process's device, and its tokenizer.

    Args:
        reference: any reference of a model, `stage:NAME` among them; the stage's own model where empty.
    Raises:
        TutelageError: when there is no such model, or it can't be loaded.
    """
    located, tokenizer = context.model, context.tokenizer
    if reference:
        located = context.locate(reference, f"stages.{context.stage.name}")
        tokenizer = load_tokenizer(located, context.recipe.tokenizer, context.base)
    model = _loaded(located, context.devices.frozen_dtype)
    if located.kind != "adapter":
        resize_for(model, tokenizer)
    device = context.devices.accelerator
    index = os.environ.get("LOCAL_RANK", "0")
    return model.to(f"{device}:{index}" if device == "cuda" else device).eval(), tokenizer


def _loaded(located: Located, dtype: torch.dtype) -> Any:
    """An adapter is merged, which makes generation faster; a soft prompt can't be."""
    if located.kind == "adapter" and adapter_settings(Path(located.path)).get("peft_type") == "PROMPT_TUNING":
        return load_located(located, dtype)
    return load_model(located, dtype=dtype)


def make_dataset(
    context: StageContext, items: Sequence[T], work: Callable[[list[T]], list[list[Row]]], *, batch: int
) -> Path:
    """Make the rows of a stage's dataset, going on where a former process was killed.

    Args:
        items: what rows are made of, each by itself; plain data, so that a change of them is noticed.
        work: gives, for each item of a batch, its rows (any number of them). The same items must give the same rows.
        batch: how many items it is given at a time.
    Returns:
        the dataset's file: the rows of all items in their order, as JSON lines.
    Raises:
        RunFailed: when memory does not suffice.
        RunStopped: when asked to stop, after the batch that was begun is safe.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    parts = _Parts(context.folder / "parts", _key(context, items, batch), rank)
    batches = [items[start : start + batch] for start in range(0, len(items), batch)]
    made = parts.made()
    mine = [number for number in range(rank, len(batches), processes) if number not in made]
    progress = _Progress(
        context, items=len(items), steps=len(batches), made=len(made), processes=processes, announced=rank == 0
    )
    with _together(processes):
        with _attended(context, rank, work=mine) as (heartbeat, interrupts):
            for done, number in enumerate(mine, 1):
                began = time.perf_counter()
                parts.append(number, _rows(context, work, list(batches[number])))
                heartbeat.took(time.perf_counter() - began)
                progress.tell(done)
                if interrupts.received is not None:
                    raise _stopped(interrupts.received, context)
                heartbeat.beat(done, 0)
        _wait_for_all(processes)
        path = context.folder / "dataset" / DATASET
        if rank == 0:
            parts.merge(path, len(batches))
            progress.finish()
        _wait_for_all(processes)
    return path


def _rows(context: StageContext, work: Callable[[list[T]], list[list[Row]]], items: list[T]) -> list[list[Row]]:
    try:
        made = work(items)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fix = "set a smaller batch_size or fewer max_new_tokens (tutelage resume --set)"
        raise RunFailed.at(context.stage.name, "memory does not suffice for a batch of answers", fix) from error
    if len(made) != len(items):
        raise RunFailed.at(context.stage.name, f"made {len(made)} results of {len(items)} items")
    return made


def _key(context: StageContext, items: Sequence[Any], batch: int) -> str:
    """A name for what decides the rows: they are not taken over from a stage that was set up otherwise."""
    stage = context.stage
    model = context.model.path.removeprefix(str(context.run.path))  # which may be moved
    what = [
        context.phase.name,
        context.phase.config,
        stage.trainer.seed,
        context.devices.precision,
        model,
        batch,
        items,
    ]
    encoded = msgspec.json.encode(what, enc_hook=lambda value: type(value).__name__)
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


class _Line(msgspec.Struct):
    """A batch in a part file: its number, and each item's rows."""

    batch: int
    rows: list[list[Row]]


class _Head(msgspec.Struct):
    """As much of a line as is needed to find it again."""

    batch: int


class _Parts:
    """Files of batches, one of each process that ever worked on them, in a folder named by what decides the rows."""

    def __init__(self, folder: Path, key: str, rank: int) -> None:
        self._folder = folder / key
        self._rank = rank
        self._folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            for other in folder.iterdir():
                if other != self._folder:
                    shutil.rmtree(other)
        self._file = self._folder / f"{rank}.jsonl"
        if self._file.exists():
            _cut_torn_line(self._file)

    def made(self) -> dict[int, tuple[Path, int]]:
        """The batches that are there, and where: a file, and the position in it. A torn last line is none."""
        found = {}
        for file in sorted(self._folder.glob("*.jsonl")):
            with file.open("rb") as lines:
                position = 0
                for line in lines:
                    if line.endswith(b"\n"):
                        found[msgspec.json.decode(line, type=_Head).batch] = (file, position)
                    position += len(line)
        return found

    def append(self, batch: int, rows: list[list[Row]]) -> None:
        """Write a batch's rows to disk; they are safe when this returns.

        Raises:
            RunFailed: when the disk is full or can't be written.
        """
        line = msgspec.json.encode(_Line(batch, rows)) + b"\n"
        try:
            with self._file.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self._folder)
        except OSError as error:
            raise RunFailed.at(str(self._file), f"can't be written: {error.strerror}", "make room") from error

    def merge(self, path: Path, count: int) -> None:
        """Write all rows in the order of their items, beside and renamed.

        Raises:
            RunFailed: when the disk is full or can't be written.
        """
        made = self.made()
        beside = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            with beside.open("wb") as file:
                for number in range(count):
                    for rows in _read(*made[number]).rows:
                        file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise RunFailed.at(str(path), f"can't be written: {error.strerror}", "make room") from error


def _read(file: Path, position: int) -> _Line:
    with file.open("rb") as lines:
        lines.seek(position)
        return msgspec.json.decode(lines.readline(), type=_Line)


def _cut_torn_line(file: Path) -> None:
    """Take off a last line that a kill left without its end."""
    data = file.read_bytes()
    if not data.endswith(b"\n"):
        os.truncate(file, data.rfind(b"\n") + 1)


class _Progress:
    """Tells how far all processes are, by how far the first one is: batches are dealt out in turn."""

    def __init__(
        self, context: StageContext, *, items: int, steps: int, made: int, processes: int, announced: bool
    ) -> None:
        self._context = context
        self._steps = steps
        self._made = made
        self._processes = processes
        self._announced = announced
        self._began = time.perf_counter()
        self._told = made
        devices = context.devices
        if announced:
            context.emit(
                "stage_started",
                phase=context.phase.name,
                steps=steps,
                examples=items,
                resumed_from=made,
                device=devices.accelerator,
                devices=devices.world,
                precision=devices.precision,
            )

    def tell(self, done: int) -> None:
        """This process has made so many batches. The last step is told when all is merged."""
        step = self._made + done * self._processes
        if self._announced and step < self._steps:
            self._emit(step)

    def finish(self) -> None:
        """All is made."""
        if self._steps:
            self._emit(self._steps)
            self._context.emit("checkpoint", step=self._steps, path=str(self._context.folder / "dataset"))

    def _emit(self, step: int) -> None:
        now = time.perf_counter()
        self._context.emit(
            "step", step=step, steps=self._steps, seconds=(now - self._began) / max(1, step - self._told)
        )
        self._began, self._told = now, step


@contextmanager
def _attended(context: StageContext, rank: int, work: Sequence[int]) -> Iterator[tuple[Heartbeat, Interrupts]]:
    """While there is work: signs of life, and signals are taken as a wish to stop after a batch."""
    heartbeat, interrupts = Heartbeat(context.folder / "ranks", rank), Interrupts()
    interrupts.install()
    if work:
        heartbeat.rest()  # how long a batch takes is not known before the first
    try:
        yield heartbeat, interrupts
    finally:
        interrupts.remove()
        heartbeat.stop()


@contextmanager
def _together(processes: int) -> Iterator[None]:
    """Processes that can wait for each other; the slowest may take its time."""
    if processes == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", timeout=datetime.timedelta(days=30))
    try:
        yield
    finally:
        dist.destroy_process_group()


def _wait_for_all(processes: int) -> None:
    if processes > 1:
        dist.all_reduce(torch.zeros(1))


def _stopped(number: int, context: StageContext) -> RunStopped:
    run = str(context.run.path)
    wrong = f"stopped by {signal.Signals(number).name}; what was made is kept"
    error = RunStopped.at(run, wrong, f"go on with: tutelage resume {shlex.quote(run)}")
    error.exit_code = 128 + number
    return error
