"""Whether a very large data set is prepared in constant memory: resident memory while one streams through the core.

    python -m bench.scaling.streaming [--gb GB] [--row BYTES] [--json]

The rows are generated, never on disk as they are read: a gzip file of a few megabytes holds one block of rows as often
as it takes, and the core's own reader unpacks it while it tokenises into its memory-mapped store. What is measured is
the phase pretrain's preparation (reading, converting, tokenising, storing, arranging in windows) and a pass over all
windows, and the plan of an epoch. A word tokenizer stands for a real one, whose tables are larger but as constant.

Two figures are told at each stage: resident memory, in which pages of mapped files count that the system may drop, and
anonymous memory, which it can't (both from /proc/self/status, so Linux alone). A fifth of the rows and all of them are
streamed, each by a process of its own. What the most anonymous memory grows by is taken for each row, and carried on to
100 GB: an extrapolation, as no 100 GB were read.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import random
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MIB = 2**20
BLOCK = 8 * MIB
ROW_BYTES = 4000
WORDS = tuple(f"word{number}" for number in range(512))
SEQ_LEN = 1024
TOKENS_PER_STEP = 2**16
FEW = 0.2
"Of the bytes of rows: what the whole is compared with."
EXTRAPOLATED = 100e9
"Bytes of rows to which the growth is carried on."


class Stage(msgspec.Struct, frozen=True):
    """Memory at one stage, in bytes, and how many bytes of rows had been read."""

    name: str
    read: float
    resident: int
    anonymous: int


class Streamed(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured."""

    rows: int
    row_bytes: float
    source_bytes: float
    packed_bytes: int
    tokens: int
    store_bytes: int
    stages: list[Stage]
    most: int
    "Bytes of anonymous memory, of all looks at it."


class Growth(msgspec.Struct, frozen=True):
    """Few rows and many of the same size, and what it would be with more of them."""

    few: Streamed
    many: Streamed

    @property
    def bytes_per_row(self) -> float:
        """Anonymous memory that each row more takes."""
        return max(0, self.many.most - self.few.most) / (self.many.rows - self.few.rows)

    @property
    def extrapolated_bytes(self) -> float:
        """Anonymous memory if 100 GB of such rows were read."""
        more = max(0.0, EXTRAPOLATED - self.many.source_bytes) / self.many.row_bytes
        return self.many.most + self.bytes_per_row * more


def compare(gigabytes: float, row_bytes: int) -> Growth:
    """Stream a fifth of so many bytes of rows, and all of them."""
    found = []
    for size in (FEW * gigabytes, gigabytes):
        spawn = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as work, ProcessPoolExecutor(1, mp_context=spawn) as process:
            found.append(process.submit(stream, size, row_bytes, Path(work)).result())
    return Growth(*found)


def stream(gigabytes: float, row_bytes: int, folder: Path) -> Streamed:
    """Prepare so many bytes of generated rows, and watch this process's memory."""
    from tutelage.data.batches import Plan
    from tutelage.data.preparing import prepare
    from tutelage.plugins import host
    from tutelage.recipe import Data

    source = folder / "rows.jsonl.gz"
    rows, size = write_source(source, gigabytes * 1e9, row_bytes)
    tokenizer = word_tokenizer()
    phase = host().get("phase", "pretrain", "phase")()
    stages = [_now("before", 0.0)]
    with _watching(stages, folder, size) as looks:
        prepared = prepare(
            phase,
            Data(train=source.name, documents="line"),
            folder,
            tokenizer,
            max_length=SEQ_LEN,
            seed=0,
            host=host(),
            place="data",
            cache=folder / "cache",
        )
        stages.append(_now("prepared", size))
        windows = prepared.train
        plan = Plan(windows.lengths, tokens_per_step=TOKENS_PER_STEP, epochs=1.0, max_steps=None, seed=0)
        stages.append(_now("an epoch planned", size))
        for step in plan.iterate(0):
            for index in step.examples:
                _ = windows[int(index)].ids.sum()
        stages.append(_now("all windows read", size))
    files = [path for path in (folder / "cache").rglob("*") if path.is_file()]
    return Streamed(
        rows=rows,
        row_bytes=size / rows,
        source_bytes=size,
        packed_bytes=source.stat().st_size,
        tokens=sum(path.stat().st_size for path in files if path.name == "ids.bin") // 4,
        store_bytes=sum(path.stat().st_size for path in files),
        stages=stages,
        most=max(look.anonymous for look in (*stages, *looks)),
    )


def write_source(path: Path, size: float, row_bytes: int) -> tuple[int, float]:
    """A gzip file that unpacks to about `size` bytes of JSON lines; their number, and their bytes."""
    generator = random.Random(0)
    line = b""
    while len(line) < row_bytes:
        line += generator.choice(WORDS).encode() + b" "
    row = json.dumps({"text": line.decode().strip()}).encode() + b"\n"
    often = max(1, BLOCK // len(row))
    block = gzip.compress(row * often, mtime=0)
    blocks = max(1, round(size / (often * len(row))))
    with path.open("wb") as file:
        for _ in range(blocks):
            file.write(block)
    return blocks * often, float(blocks * often * len(row))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each of the words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("<|endoftext|>", "<unk>", *WORDS))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", unk_token="<unk>")


def _now(name: str, read: float) -> Stage:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, anonymous = (1024 * int(lines[key].split()[0]) for key in ("VmRSS", "RssAnon"))
    return Stage(name, read, resident, anonymous)


@contextmanager
def _watching(stages: list[Stage], folder: Path, size: float) -> Iterator[list[Stage]]:
    """Add stages while the block runs, each time that another tenth of the tokens that are expected is stored.

    Yields:
        what was seen between them that had most.
    """
    done = threading.Event()
    looks = [_now("between", 0.0)]

    def watch() -> None:
        expected, tenth = 4 * size / 8, 1
        while not done.wait(0.02):
            looks[0] = max(looks[0], _now("between", 0.0), key=lambda look: look.anonymous)
            stored = sum(path.stat().st_size for path in folder.glob("cache/tokens/*/ids.bin"))
            if stored >= expected * tenth / 10:
                stages.append(_now(f"{stored / MIB:,.0f} MiB of tokens stored", min(size, stored / expected * size)))
                tenth = int(stored / expected * 10) + 1

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        done.set()
        thread.join()


@click.command()
@click.option("--gb", type=float, default=0.5, show_default=True, help="Gigabytes of rows to stream.")
@click.option("--row", "row_bytes", type=int, default=ROW_BYTES, show_default=True, help="Bytes of a row.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(gb: float, row_bytes: int, as_json: bool) -> None:
    """Stream generated rows through the core, and tell of its memory."""
    found = compare(gb, row_bytes)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for line in lines_of(found):
        click.echo(line)


def lines_of(found: Growth) -> Iterator[str]:
    """What was measured, in lines."""
    for each in (found.few, found.many):
        yield f"{each.rows:,} rows, {each.source_bytes / 1e9:.2f} GB, {each.tokens / 1e6:,.0f}M tokens"
        for stage in each.stages:
            memory = f"resident {stage.resident / MIB:6,.0f} MiB, anonymous {stage.anonymous / MIB:6.1f} MiB"
            yield f"{stage.read / 1e9:6.2f} GB  {memory}  {stage.name}"
        yield f"at most {each.most / MIB:.1f} MiB of anonymous memory"
    yield f"{found.bytes_per_row:.1f} bytes of it for each row more"
    yield f"extrapolated to 100 GB of such rows: {found.extrapolated_bytes / MIB:,.0f} MiB"


if __name__ == "__main__":
    main()
