"""The run folder: atomic records, events that survive SIGKILL, and one writer at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.config import parse_yaml
from tutelage.errors import RunFailed, TutelageError
from tutelage.runs import files, folder
from tutelage.runs.folder import RunFolder

RECIPE = {
    "name": "first",
    "model": "starter:small",
    "stages": [{"name": "tune", "phase": {"kind": "sft"}, "adapter": {"kind": "lora"}, "trainer": {"seed": 3}}],
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", "first", RECIPE, tmp_path)


def test_a_record_is_read_back_as_it_was(run: RunFolder, tmp_path: Path) -> None:
    run.update(state="running", reason="none")
    run.update_stage("tune", steps_planned=10, metrics={"loss": 0.5, "eval_loss": float("nan")})
    found = RunFolder.open(run.path).record
    assert (found.name, found.state, found.reason, found.base) == ("first", "running", "none", str(tmp_path))
    assert found.seeds == {"tune": 3}
    stage = found.stages[0]
    assert (stage.name, stage.phase, stage.adapter, stage.steps_planned) == ("tune", "sft", "lora", 10)
    assert stage.metrics == {"loss": 0.5, "eval_loss": None}
    assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert RunFolder.open(run.path).recipe == RECIPE


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(TutelageError, match="is not an empty folder"):
        RunFolder.create(tmp_path, "first", RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert RunFolder.create(tmp_path / "run", "first", RECIPE).record.state == "queued"


def test_a_folder_under_a_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TutelageError, match="can't be made"):
        RunFolder.create(tmp_path / "file" / "run", "first", RECIPE)


@pytest.mark.parametrize("damage", [None, "{", '{"name": 3}', "[]"])
def test_what_is_no_run_is_told_with_a_sentence(tmp_path: Path, damage: str | None) -> None:
    if damage is not None:
        (tmp_path / "run.json").write_text(damage)
    with pytest.raises(TutelageError, match="no run folder" if damage is None else "can't be read"):
        RunFolder.open(tmp_path)


def test_the_old_record_stays_whole_when_the_disk_is_full(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run.path / "run.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunFailed, match="No space left"):
        run.update(state="running")
    assert (run.path / "run.json").read_bytes() == before
    assert not list(run.path.glob(".run.json.*"))


def test_events_are_lines_and_reach_listeners(run: RunFolder) -> None:
    heard = []
    run.listen(heard.append)
    run.event("step", loss=float("inf"), folder=run.path)
    run.event("stage_finished", kind="adapter")
    lines = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert lines == heard == list(run.events())
    assert lines[0]["loss"] is None
    assert lines[0]["folder"] == str(run.path)
    assert lines[1]["kind"] == "adapter"
    assert lines[0]["time"].endswith("Z")


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_last_line_is_left_out_and_mended_by_the_next_writer(run: RunFolder, cut: int) -> None:
    run.event("step", step=1)
    run.event("step", step=2)
    path = run.path / "events.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    assert [event["step"] for event in run.events()] == [1]
    with run.lock():
        run.event("step", step=3)
    assert [event["step"] for event in run.events()] == [1, 3]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_reading_mends_nothing(run: RunFolder) -> None:
    """A reader may look while the writer is in the middle of a line."""
    path = run.path / "events.jsonl"
    path.write_text('{"event": "step", "st')
    list(RunFolder.open(run.path).events())
    assert path.read_text() == '{"event": "step", "st'


WRITER = """
import sys
from pathlib import Path
from tutelage.runs.folder import RunFolder
run = RunFolder.open(Path(sys.argv[1]))
with run.lock():
    step = 0
    while True:
        step += 1
        run.event("step", step=step, padding="x" * 500)
        run.update_stage("tune", steps_done=step)
        if step == 30:
            print("ready", flush=True)
"""


def test_a_run_that_is_killed_while_it_writes_is_read_and_goes_on(run: RunFolder) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(TutelageError, match=f"is being written by process {process.pid}"), run.lock():
        pass
    assert run.locked()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not run.locked()
    with run.lock():
        reopened = RunFolder.open(run.path)
        steps = [event["step"] for event in reopened.events()]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) - 1 <= reopened.record.stages[0].steps_done <= len(steps)
        assert not list(run.path.glob(".run.json.*"))


def test_the_lock_is_free_again_after_use(run: RunFolder) -> None:
    with run.lock():
        pass
    with run.lock():
        assert (run.path / folder.HOLDER).read_text().startswith(f"{os.getpid()} ")
    assert not (run.path / folder.HOLDER).exists()


def test_the_room_imports_no_torch() -> None:
    code = textwrap.dedent("""
        import sys
        import tutelage.runs.listing, tutelage.runs.folder, tutelage.report, tutelage.schema, tutelage.plugins
        tutelage.plugins.host()
        heavy = {"torch", "transformers", "peft", "lightning", "datasets"} & sys.modules.keys()
        assert not heavy, heavy
    """)
    subprocess.run([sys.executable, "-c", code], check=True)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)
    | st.from_regex(r"[0-9_.eE+-]{1,6}|yes|no|on|off|true|null|~|0x1f|0o17|1:30|2020-01-01", fullmatch=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc:#- ", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(plain)
def test_yaml_that_is_written_is_read_back_equal(data: object) -> None:
    from tutelage._yaml import dump

    assert parse_yaml(dump({"value": data})) == {"value": data}
