"""Whether a very large data set is prepared in constant memory: resident memory while one streams through the core.

    python -m bench.scaling.streaming [--gb GB] [--row BYTES] [--json]

The rows are generated, never on disk as they are read: a gzip file of a few megabytes holds one block of rows as often
as it takes, and the core's own reader unpacks it while it tokenises into its memory-mapped store. What is measured is
the phase pretrain's preparation (reading, converting, tokenising, storing, arranging in windows) and a pass over all
windows. A word tokenizer stands for a real one, whose tables are larger but as constant.

Two figures are told at each stage: resident memory, in which pages of mapped files count that the system may drop, and
anonymous memory, which it can't (both from /proc/self/status, so Linux alone). What anonymous memory grows by from the
first tenth on is taken for each row, and carried on to 100 GB: an extrapolation, as no 100 GB were read.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import threading
from collections.abc import Iterator
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
EXTRAPOLATED = 100e9
"Bytes of rows to which the growth is carried on."


class Stage(msgspec.Struct, frozen=True):
    """Memory at one stage, in bytes, and how many bytes of rows had been read."""

    name: str
    read: float
    resident: int
    anonymous: int


class Streamed(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and what it would be with more rows of the same size."""

    rows: int
    row_bytes: float
    source_bytes: float
    packed_bytes: int
    tokens: int
    store_bytes: int
    stages: list[Stage]
    bytes_per_row: float
    "Growth of anonymous memory for each row after the first tenth."
    extrapolated_bytes: float
    "Anonymous memory if 100 GB of such rows were read."


def stream(gigabytes: float, row_bytes: int, folder: Path) -> Streamed:
    """Prepare so many bytes of generated rows, and watch this process's memory."""
    from tutelage.data.preparing import prepare
    from tutelage.plugins import host
    from tutelage.recipe import Data

    source = folder / "rows.jsonl.gz"
    rows, size = write_source(source, gigabytes * 1e9, row_bytes)
    tokenizer = word_tokenizer()
    phase = host().get("phase", "pretrain", "phase")()
    stages = [_now("before", 0.0)]
    with _watching(stages, folder, size):
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
    for index in range(len(windows)):
        _ = windows[index].ids.sum()
    stages.append(_now("all windows read", size))
    files = [path for path in (folder / "cache").rglob("*") if path.is_file()]
    growth, most = growth_of(stages, size / rows)
    return Streamed(
        rows=rows,
        row_bytes=size / rows,
        source_bytes=size,
        packed_bytes=source.stat().st_size,
        tokens=sum(path.stat().st_size for path in files if path.name == "ids.bin") // 4,
        store_bytes=sum(path.stat().st_size for path in files),
        stages=stages,
        bytes_per_row=growth,
        extrapolated_bytes=most + growth * max(0.0, EXTRAPOLATED - size) / (size / rows),
    )


def growth_of(stages: list[Stage], row_bytes: float) -> tuple[float, int]:
    """Bytes of anonymous memory for each row after the first tenth, to the stage that has most; and what that has."""
    first, *later = stages[1:]
    most = max(later, key=lambda stage: stage.anonymous)
    rows = (most.read - first.read) / row_bytes
    return max(0, most.anonymous - first.anonymous) / rows if rows else 0.0, most.anonymous


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
def _watching(stages: list[Stage], folder: Path, size: float) -> Iterator[None]:
    """Add stages while the block runs, each time that another tenth of the tokens that are expected is stored."""
    done = threading.Event()

    def watch() -> None:
        expected, tenth = 4 * size / 8, 1
        while not done.wait(0.2):
            stored = sum(path.stat().st_size for path in folder.glob("cache/tokens/*/ids.bin"))
            if stored >= expected * tenth / 10:
                stages.append(_now(f"{stored / MIB:,.0f} MiB of tokens stored", min(size, stored / expected * size)))
                tenth = int(stored / expected * 10) + 1

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@click.command()
@click.option("--gb", type=float, default=2.0, show_default=True, help="Gigabytes of rows to stream.")
@click.option("--row", "row_bytes", type=int, default=ROW_BYTES, show_default=True, help="Bytes of a row.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(gb: float, row_bytes: int, as_json: bool) -> None:
    """Stream generated rows through the core, and tell of its memory."""
    with tempfile.TemporaryDirectory() as work:
        found = stream(gb, row_bytes, Path(work))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for line in lines_of(found):
        click.echo(line)


def lines_of(found: Streamed) -> Iterator[str]:
    """What was measured, in lines."""
    yield f"{found.rows:,} rows, {found.source_bytes / 1e9:.2f} GB, {found.tokens / 1e6:,.0f}M tokens"
    for stage in found.stages:
        memory = f"resident {stage.resident / MIB:6,.0f} MiB, anonymous {stage.anonymous / MIB:6,.0f} MiB"
        yield f"{stage.read / 1e9:6.2f} GB  {memory}  {stage.name}"
    yield f"{found.bytes_per_row:.0f} bytes of anonymous memory for each row"
    yield f"extrapolated to 100 GB of such rows: {found.extrapolated_bytes / MIB:,.0f} MiB"


if __name__ == "__main__":
    main()
