"""The parts that are measured on this machine: rows that stream, and state that two processes share."""

import gzip
import json
import sys

import pytest
from bench.scaling.sharding import Sharded, Weighed, measure
from bench.scaling.streaming import Growth, Streamed, compare, stream, word_tokenizer, write_source


def test_the_source_unpacks_to_what_it_says(tmp_path):
    file = tmp_path / "rows.jsonl.gz"
    rows, size = write_source(file, 2e7, 4000)
    with gzip.open(file) as opened:
        lines = opened.read().splitlines()
    assert len(lines) == rows
    assert sum(len(line) + 1 for line in lines) == size == pytest.approx(2e7, rel=0.25)
    assert len(json.loads(lines[0])["text"]) == pytest.approx(4000, abs=10)
    assert file.stat().st_size < size / 20


def streamed(rows: int, most: int) -> Streamed:
    sizes = {"row_bytes": 1000.0, "source_bytes": 1000.0 * rows, "packed_bytes": 1, "store_bytes": 1}
    return Streamed(rows=rows, tokens=rows, stages=[], most=most, **sizes)


def test_growth_is_between_few_rows_and_many():
    found = Growth(streamed(100, 5000), streamed(1100, 7000))
    assert found.bytes_per_row == 2.0
    assert found.extrapolated_bytes == 7000 + 2 * (100_000_000 - 1100)
    assert Growth(streamed(100, 5000), streamed(1100, 4000)).bytes_per_row == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_rows_stream_through_the_core(tmp_path):
    found = stream(0.001, 4000, tmp_path)
    with gzip.open(tmp_path / "rows.jsonl.gz") as opened:
        text = json.loads(opened.readline())["text"]
    each = len(word_tokenizer()(text)["input_ids"]) + 1  # and the token that ends a document
    assert found.tokens == found.rows * each
    assert found.store_bytes > 5 * found.tokens
    assert found.stages[-1].name == "all windows read"
    assert all(0 < stage.anonymous <= stage.resident for stage in found.stages)
    assert found.most >= max(stage.anonymous for stage in found.stages)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_is_constant():
    """Three hundred thousand rows take hardly more than a quarter of them: the columns of an index are 40 bytes a row."""
    found = compare(0.033, 100)
    assert found.many.rows == 4 * found.few.rows
    assert found.bytes_per_row < 20


def test_shares_are_of_what_one_process_holds():
    found = Sharded(Weighed(100, 300), [Weighed(60, 150), Weighed(40, 150)])
    assert [found.share(process) for process in (0, 1)] == pytest.approx([0.525, 0.475])


@pytest.mark.slow
def test_two_processes_hold_half_each(tmp_path):
    found = measure(tmp_path)
    assert found.alone.optimizer == pytest.approx(2 * found.alone.parameters, rel=0.001)
    assert len(found.each) == 2
    assert sum(held.parameters for held in found.each) == found.alone.parameters
    assert [found.share(process) for process in (0, 1)] == pytest.approx([0.5, 0.5], abs=0.01)
