"""Datasets are made to the same bytes in one go, after a kill, and by several processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training import events, in_child

import tutelage
from tutelage.engine.context import StageContext
from tutelage.engine.devices import Devices
from tutelage.engine.making import load_context_model, make_dataset
from tutelage.models.locating import Located
from tutelage.recipe import Stage, Tokens, Trainer
from tutelage.runs.folder import RunFolder

ITEMS = [{"number": number, "times": number % 3} for number in range(11)]


class Writing(tutelage.Phase):
    """Makes rows of numbers."""

    name = "writing"
    makes = "dataset"

    def run(self, context):
        raise NotImplementedError


def context_of(folder: Path, *, seed: int = 0, model: str = "nowhere", tokenizer=None, base: Path | None = None):
    run = RunFolder.open(folder) if (folder / "run.json").is_file() else None
    run = run or RunFolder.create(folder, "numbers", {"stages": [{"name": "write", "phase": "writing"}]})
    stage = Stage(name="write", phase={"kind": "writing"}, trainer=Trainer(seed=seed))
    recipe = SimpleNamespace(tokenizer=Tokens())
    devices = Devices("cpu", 1, "single", "fp32")
    return StageContext(
        run, recipe, stage, Writing(), None, [], Located("model", model), tokenizer, None, devices, base or folder, []
    )  # fmt: skip


def work(batch):
    """Several rows an item, or none, that know of their batch: so that it matters how batches are cut."""
    return [[{"item": item, "row": row, "batch": len(batch)} for row in range(item["times"])] for item in batch]


def expected() -> list[dict]:
    return [row for start in range(0, 11, 3) for rows in work(ITEMS[start : start + 3]) for row in rows]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(folder: str, rank: int = 0, processes: int = 1, port: int = 0, killed_at: int = 0, called: str = "") -> None:
    """What a child process does."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))

    def watched(batch):
        if called:
            with Path(called).open("a") as file:
                file.write(f"{batch[0]['number']}\n")
        if killed_at and batch[0]["number"] >= killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(batch)

    make_dataset(context_of(Path(folder)), ITEMS, watched, batch=3)


def test_rows_come_in_the_order_of_their_items(tmp_path):
    path = make_dataset(context_of(tmp_path / "run"), ITEMS, work, batch=3)
    assert path == tmp_path / "run/stages/write/dataset/data.jsonl"
    assert rows_of(path) == expected()
    assert [(event["step"], event["steps"]) for event in events(tmp_path / "run", "step")] == [
        (1, 4), (2, 4), (3, 4), (4, 4)
    ]  # fmt: skip
    (started,) = events(tmp_path / "run", "stage_started")
    assert (started["steps"], started["examples"], started["resumed_from"]) == (4, 11, 0)


def test_a_killed_process_loses_nothing_and_nothing_is_made_twice(tmp_path):
    run, called = str(tmp_path / "run"), tmp_path / "called"
    first = in_child(make, run, 0, 1, 0, 6, str(called))
    first.join()
    assert first.exitcode == -signal.SIGKILL
    assert not (tmp_path / "run/stages/write/dataset").exists()
    (part,) = (tmp_path / "run/stages/write/parts").glob("*/*.jsonl")
    with part.open("ab") as file:
        file.write(b'{"batch":2,"rows":[[{"item"')  # as a kill in the middle of a write leaves it
    second = in_child(make, run, 0, 1, 0, 0, str(called))
    second.join()
    assert second.exitcode == 0
    assert called.read_text().split() == ["0", "3", "6", "6", "9"]
    assert rows_of(tmp_path / "run/stages/write/dataset/data.jsonl") == expected()
    assert events(tmp_path / "run", "stage_started")[-1]["resumed_from"] == 2


def test_several_processes_make_the_same(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    run = str(tmp_path / "run")
    killed = in_child(make, run, 0, 1, 0, 3)  # one alone, before: its batch is taken over
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    children = [in_child(make, run, rank, 2, port) for rank in range(2)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert rows_of(tmp_path / "run/stages/write/dataset/data.jsonl") == expected()
    steps = [event["step"] for event in events(tmp_path / "run", "step")]
    assert steps[-1] == 4
    assert steps == sorted({*steps})


def test_batches_of_more_processes_are_taken_over(tmp_path):
    context = context_of(tmp_path / "run")
    make_dataset(context, ITEMS, work, batch=3)
    (mine,) = (context.folder / "parts").glob("*/0.jsonl")
    lines = mine.read_bytes().splitlines(keepends=True)
    mine.write_bytes(lines[0])
    mine.with_name("2.jsonl").write_bytes(lines[3] + lines[1] + lines[2][:20])
    asked = []
    make_dataset(context, ITEMS, lambda batch: [asked.append(batch[0]["number"]), *work(batch)][1:], batch=3)
    assert asked == [6]
    assert rows_of(context.folder / "dataset/data.jsonl") == expected()


def test_what_was_made_is_not_made_again_unless_it_would_differ(tmp_path):
    def refuse(batch):
        raise AssertionError("was made already")

    make_dataset(context_of(tmp_path / "run"), ITEMS, work, batch=3)
    assert rows_of(make_dataset(context_of(tmp_path / "run"), ITEMS, refuse, batch=3)) == expected()
    for context, items, batch in [
        (context_of(tmp_path / "run", seed=1), ITEMS, 3),
        (context_of(tmp_path / "run"), ITEMS[1:], 3),
        (context_of(tmp_path / "run"), ITEMS, 2),
        (context_of(tmp_path / "run", model="elsewhere"), ITEMS, 3),
    ]:
        with pytest.raises(AssertionError):
            make_dataset(context, items, refuse, batch=batch)
    assert len(list((tmp_path / "run/stages/write/parts").iterdir())) == 1  # what is of no use any more is gone


def test_a_signal_stops_after_a_batch_that_is_kept(tmp_path):
    def signalled(batch):
        if batch[0]["number"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return work(batch)

    with pytest.raises(tutelage.RunStopped, match=r"stopped by SIGTERM.*tutelage resume") as stopped:
        make_dataset(context_of(tmp_path / "run"), ITEMS, signalled, batch=3)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    asked = []
    make_dataset(context_of(tmp_path / "run"), ITEMS, lambda b: [asked.append(b[0]["number"]), *work(b)][1:], batch=3)
    assert asked == [6, 9]


def test_no_items_make_an_empty_dataset(tmp_path):
    assert make_dataset(context_of(tmp_path / "run"), [], work, batch=3).read_bytes() == b""


def test_failures_are_sentences(tmp_path):
    def greedy(batch):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(tutelage.RunFailed, match="write: memory does not suffice"):
        make_dataset(context_of(tmp_path / "run"), ITEMS, greedy, batch=3)
    with pytest.raises(tutelage.RunFailed, match="write: made 2 results of 3 items"):
        make_dataset(context_of(tmp_path / "run"), ITEMS, lambda batch: work(batch)[1:], batch=3)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    context = context_of(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(tutelage.RunFailed, match=r"0\.jsonl: can't be written: No space left on device"):
            make_dataset(context, ITEMS, work, batch=3)
    assert rows_of(make_dataset(context, ITEMS, work, batch=3)) == expected()


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_adapters_are_loaded_for_generation(tiny_model, tmp_path, kind):
    import tiny_models as tiny

    from tutelage.models.generation import generate, load_for_generation
    from tutelage.models.loading import load_model, load_tokenizer
    from tutelage.models.saving import save_artifact
    from tutelage.plugins import host

    base = tiny_model("qwen2")
    plugin = host().get("adapter", kind, "")
    adapter = plugin(plugin.Config())
    tokenizer = load_tokenizer(Located("model", str(base)), Tokens(), base)
    torch.manual_seed(3)
    model = adapter.attach(load_model(Located("model", str(base)), dtype=torch.float32), tokenizer)
    tiny.step(model, tiny.some_ids(), rate=0.1)
    folder = save_artifact(adapter, model, tokenizer, tmp_path / "adapter", base_path=str(base))
    context = context_of(tmp_path / "run", model=str(base), tokenizer=tokenizer)
    context.host = host()
    loaded, its_own = load_context_model(context, str(folder))
    expected_model, _ = load_for_generation(str(folder), host(), dtype=torch.float32)
    asked = ["the cat", "2 + 3 = 5"]
    answers = generate(loaded, its_own, asked, max_new_tokens=12)
    assert answers == generate(expected_model, tokenizer, asked, max_new_tokens=12)
    plain, _ = load_context_model(context)
    assert answers != generate(plain, tokenizer, asked, max_new_tokens=12)
    assert not loaded.training
    assert next(loaded.parameters()).dtype == torch.float32
