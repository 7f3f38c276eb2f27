"""References to models: what they mean, and the sentence when they mean nothing."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import tutelage
from tutelage.errors import TutelageError
from tutelage.models import locating
from tutelage.models.locating import Located, available, fetch, locate, ready
from tutelage.plugins import Host


class Fruit(tutelage.ModelSource):
    """A source that has one model."""

    name = "fruit"
    folder = ""

    def available(self, reference: str, place: str) -> None:
        if reference != "apple":
            raise TutelageError.at(place, f"no fruit is called {reference}")

    def fetch(self, reference: str, place: str) -> str:
        return self.folder


@pytest.fixture
def host() -> Host:
    made = Host()
    module = type(sys)("fruits")
    module.register_model_sources = tutelage.hookimpl(lambda register: register(Fruit))
    assert not made.register(module, "fruits").error
    return made


def test_folders_files_hub_names_and_sources_are_told_apart(host, tiny_model, tmp_path):
    model = tiny_model("llama-tied")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "x.GGUF").write_bytes(b"GGUF")
    assert locate(str(model), tmp_path, "model", host) == Located("model", str(model))
    assert locate("adapter", tmp_path, "model", host) == Located("adapter", str(adapter))
    assert locate("./x.GGUF", tmp_path, "model", host) == Located("gguf", str(tmp_path / "x.GGUF"))
    assert locate("owner/name-1.5B", tmp_path, "model", host) == Located("hub", "owner/name-1.5B")
    found = locate("fruit:apple", tmp_path, "model", host)
    assert (found.kind, found.path, type(found.source)) == ("source", "apple", Fruit)


def test_a_source_is_asked_and_what_it_gives_is_looked_at(host, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(Fruit, "folder", str(tiny_model("gpt2")))
    apple = locate("fruit:apple", tmp_path, "model", host)
    available(apple, "model")
    assert ready(apple) is None  # this source does not say what it holds
    assert fetch(apple) == Located("model", str(tiny_model("gpt2")))
    with pytest.raises(TutelageError, match="model: no fruit is called pear"):
        available(locate("fruit:pear", tmp_path, "model", host), "model")


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("fruti:apple", "no model source is called 'fruti'; did you mean fruit"),
        ("./nowhere", "no model is found at"),
        ("modle", "did you mean model"),
        ("missing.gguf", "there is no file"),
        ("folder/name", "no model is found at"),
        ("empty", "holds no model; it has neither config.json nor adapter_config.json"),
        ("quantised", "holds no model; give the file: "),
        ("file.txt", "is not a model"),
        ("a b/c", "no model is found at"),
    ],
)
def test_what_is_no_model_gets_a_sentence(reference, sentence, host, tmp_path):
    for name in ("model", "empty", "folder", "quantised"):
        (tmp_path / name).mkdir()
    (tmp_path / "quantised" / "q4.gguf").write_bytes(b"GGUF")
    (tmp_path / "file.txt").write_text("hello")
    with pytest.raises(TutelageError, match=r"^stages\.tune\.model: ") as caught:
        locate(reference, tmp_path, "stages.tune.model", host)
    assert sentence in str(caught.value)


def test_a_file_that_is_not_gguf_inside_is_refused(host, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(TutelageError, match="is not a GGUF file"):
        available(locate("x.gguf", tmp_path, "model", host), "model")


def test_a_hub_that_can_not_be_asked_gets_a_sentence(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TutelageError, match="the hub can't be asked for nobody/nothing-of-this-name"):
        available(Located("hub", "nobody/nothing-of-this-name"), "model")


class Boom:
    def __reduce__(self):
        return (Path.touch, (Path(self.where),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_and_never_run(name, host, tiny_model, tmp_path):
    bomb = Boom()
    bomb.where = str(tmp_path / "ran")
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_model("llama-tied") / "config.json").read_text())
    (folder / name).write_bytes(pickle.dumps(bomb))
    with pytest.raises(TutelageError, match=r"are pickles .*can run code.*convert them to safetensors"):
        locate("pickled", tmp_path, "model", host)
    from tutelage.models.loading import load_model

    with pytest.raises(TutelageError, match="pickles"):
        load_model(Located("model", str(folder)), dtype="auto")
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / name).read_bytes())  # the bomb is a real one
    assert (tmp_path / "ran").exists()


def test_a_pickled_adapter_beside_a_decoy_is_refused(host, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "decoy.safetensors").write_bytes(b"")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(TutelageError, match="pickles"):
        locate(str(tmp_path), tmp_path, "model", host)


def write_run(folder: Path, name: str, *, state: str = "succeeded", stages=(("tune", "succeeded"),), **record) -> Path:
    listed = []
    for stage, stage_state in stages:
        artifact = folder / "stages" / stage / "model"
        artifact.mkdir(parents=True)
        (artifact / "config.json").write_text("{}")
        (artifact / "model.safetensors").write_bytes(b"")
        listed.append({"name": stage, "state": stage_state, "artifact": str(artifact.relative_to(folder))})
    (folder / "run.json").write_text(json.dumps({"name": name, "state": state, "stages": listed, **record}))
    return folder


def test_a_run_folder_means_what_its_last_stage_made(host, tmp_path):
    run = write_run(tmp_path / "r1", "r", stages=[("one", "succeeded"), ("two", "succeeded")])
    assert locate(str(run), tmp_path, "model", host).path == str(run / "stages" / "two" / "model")


def test_what_is_no_model_is_passed_over(tmp_path):
    run = tmp_path / "whole"
    run.mkdir()
    made = [("tune", "model", "model"), ("verdict", "report", "report")]
    stages = [{"name": name, "state": "succeeded", "kind": kind, "artifact": where} for name, kind, where in made]
    (run / "run.json").write_text(json.dumps({"name": "whole", "state": "succeeded", "stages": stages}))
    (run / "model").mkdir()
    assert locating.run_artifact(run, "", "model") == run / "model"


def test_an_unfinished_or_forged_run_is_refused(host, tmp_path):
    run = write_run(tmp_path / "r1", "r", state="failed", stages=[("one", "succeeded"), ("two", "failed")])
    with pytest.raises(TutelageError, match=r"has made no model yet \(it is failed\); tutelage resume"):
        locate(str(run), tmp_path, "model", host)
    (run / "run.json").write_text(
        json.dumps({"name": "r", "stages": [{"name": "one", "state": "succeeded", "artifact": "../outside"}]})
    )
    with pytest.raises(TutelageError, match="names an artifact outside itself"):
        locate(str(run), tmp_path, "model", host)


def test_locating_imports_no_torch():
    code = "import sys, tutelage.models.locating; print(sorted({'torch', 'transformers', 'peft'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_cache_and_the_runs_folder_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TUTELAGE_RUNS", str(tmp_path / "runs"))
    assert locating.cache_folder() == tmp_path / "cache"
    assert locating.runs_folder() == tmp_path / "runs"
    monkeypatch.delenv("TUTELAGE_RUNS")
    monkeypatch.chdir(tmp_path)
    assert locating.runs_folder() == tmp_path / "runs"
