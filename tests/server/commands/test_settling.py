"""Adapters that were fetched name base models that are here."""

from __future__ import annotations

import json

import pytest

from tutelage_server.cli.settling import settle


def adapter(run, base, stage="tune"):
    folder = run / "stages" / stage / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    return folder / "adapter_config.json"


def named(file):
    settings = json.loads(file.read_text())
    assert settings.pop("peft_type") == "LORA"
    return settings["base_model_name_or_path"]


RECIPE = {"model": "file:file-1", "stages": [{"name": "tune"}]}


def test_what_an_earlier_stage_made_is_in_the_run(tmp_path):
    run, final = tmp_path / "unfinished", tmp_path / "runs" / "mine"
    (run / "stages" / "read" / "model").mkdir(parents=True)
    file = adapter(run, "/srv/jobs/job-1/run/stages/read/model")
    settle(run, final, RECIPE)
    assert named(file) == str(final / "stages/read/model")


def test_what_is_here_stays_as_it_is(tmp_path):
    there = tmp_path / "cache"
    there.mkdir()
    file, hub = adapter(tmp_path / "run", str(there)), adapter(tmp_path / "run", "owner/name", "other")
    settle(tmp_path / "run", tmp_path / "final", RECIPE)
    assert (named(file), named(hub)) == (str(there), "owner/name")


@pytest.mark.parametrize("base", ["/srv/gone", "/srv/run/stages/../../../etc", "/srv/run/etc"])
def test_what_is_not_here_is_told_and_left_alone(tmp_path, capsys, base):
    (tmp_path / "etc").mkdir()
    file = adapter(tmp_path / "run", base)
    settle(tmp_path / "run", tmp_path / "final", RECIPE)
    assert named(file) == base
    assert "stages/tune/adapter/adapter_config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stage", [{"name": "tune"}, {"name": "tune", "model": "stage:x"}, {"name": "tune", "model": "starter:a"}]
)
def test_a_starter_model_is_brought_here(tmp_path, monkeypatch, stage):
    from tutelage.models import locating

    asked = []

    def fetch(located, place="model"):
        asked.append(located.path)
        return locating.Located("model", "/here/it/is")

    monkeypatch.setattr(locating, "fetch", fetch)
    file = adapter(tmp_path / "run", "/root/of/another/machine")
    settle(tmp_path / "run", tmp_path / "final", {"model": "starter:a", "stages": [stage]})
    assert (named(file), asked) == ("/here/it/is", ["a"])


def test_what_is_no_adapter_is_passed_over(tmp_path):
    file = adapter(tmp_path / "run", "x")
    for text in ("{", "[]", "{}"):
        file.write_text(text)
        settle(tmp_path / "run", tmp_path / "final", RECIPE)
        assert file.read_text() == text
