"""What the command line tells a person to type next can be typed."""

from __future__ import annotations

import re
import shlex

import pytest
from training import recipe, write_chats

from tutelage.cli.main import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_a_hint_with_spaces_is_quoted(tmp_path, capsys):
    folder = tmp_path / "my first task"
    assert run("init", folder) == 0
    (hint,) = re.findall(r"go on with: tutelage (.+)", capsys.readouterr().out)
    assert shlex.split(hint) == ["check", str(folder / "recipe.yaml")]


def test_check_repeats_what_was_overridden(tiny_model, tmp_path, capsys):
    import json

    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe(tiny_model("qwen2"), write_chats(tmp_path / "chats.jsonl", rows=10))))
    assert run("check", file, "--set", "stages.tune.trainer.seed=3") == 0
    (hint,) = re.findall(r"go on with: tutelage (.+)", capsys.readouterr().out)
    assert shlex.split(hint) == ["train", str(file), "--set=stages.tune.trainer.seed=3"]


def test_chat_without_a_template_is_refused_at_once(tiny_model, tmp_path, capsys):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_model("qwen2"), model)
    (model / "chat_template.jinja").unlink()
    assert run("chat", model) == 2
    assert "use tutelage generate" in capsys.readouterr().err


def test_a_finished_run_says_that_nothing_is_left(tiny_model, tmp_path, capsys):
    import json

    file = tmp_path / "recipe.json"
    made = recipe(tiny_model("qwen2"), write_chats(tmp_path / "chats.jsonl", rows=10), max_steps=1)
    file.write_text(json.dumps(made))
    assert run("train", file, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    assert run("resume", tmp_path / "run") == 0
    assert "nothing left to do" in capsys.readouterr().err
