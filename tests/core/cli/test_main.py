"""The front of the command line: lazy, and every error a sentence with the right exit code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage import Command, RunFailed, RunStopped, TutelageError
from tutelage.cli import main as front
from tutelage.cli.commands import COMMANDS
from tutelage.errors import Problem

Run = Callable[..., Any]
HELP = [
    [],
    *([name] for name in COMMANDS),
    *(["runs", name] for name in ("list", "show", "compare", "prune")),
    ["data", "show"],
]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


WATCHED = """
import sys
from tutelage.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("IMPORTED", *sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("command", HELP, ids=lambda command: " ".join(command) or "itself")
def test_help_imports_nothing_heavy_and_no_plugin_but_for_the_list_of_commands(command: list[str]) -> None:
    done = python(WATCHED, *command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: {' '.join(['tutelage', *command])}")
    imported = set(done.stderr.partition("IMPORTED")[2].split())
    assert not imported & {
        "torch",
        "transformers",
        "peft",
        "lightning",
        "datasets",
        "rich",
        "numpy",
        "yaml",
        "filelock",
    }
    assert not [name for name in imported if name.startswith("tutelage_plugins.")]
    if command and command != ["data"]:  # a group that plugins add to lists their commands too
        assert not imported & {"msgspec", "pluggy", "importlib.metadata", "tutelage_plugins", "tutelage.plugins"}


def test_every_command_is_in_the_help_with_its_line(tutelage: Run) -> None:
    out = " ".join(tutelage("--help").out.split())
    for name, (_, text) in COMMANDS.items():
        assert f"{name} {text}" in out


def test_the_list_and_the_command_itself_say_the_same(tutelage: Run) -> None:
    for name, (target, _) in COMMANDS.items():
        module, _, attribute = target.partition(":")
        assert getattr(__import__(module, fromlist=[attribute]), attribute).name == name


def test_commands_of_plugins_join(tutelage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "greet": Command("greet", "tutelage.cli.completion:completion", "Say hello."),
        "broken": Command("broken", "no_such_module:x", "Can't be loaded."),
    }
    monkeypatch.setattr(front, "_plugin_commands", lambda: found)
    out = tutelage("--help").out
    assert "Commands of plugins:\n  broken  Can't be loaded.\n  greet   Say hello.\n" in out
    assert "Usage: tutelage greet" in tutelage("greet", "--help").out
    broken = tutelage("broken")
    assert (broken.code, broken.err) == (
        2,
        "error: tutelage broken: can't be loaded: ModuleNotFoundError: No module named 'no_such_module'\n",
    )


def test_an_unknown_command_names_the_nearest(tutelage: Run) -> None:
    outcome = tutelage("trian")
    assert outcome.code == 2
    assert "No such command 'trian'; did you mean train?" in outcome.err


def test_usage_errors_are_json_too(tutelage: Run) -> None:
    outcome = tutelage("train", "--json")
    assert outcome.code == 2
    assert outcome.lines == [{"error": {"problems": [{"place": "", "wrong": "Missing argument 'RECIPE'.", "fix": ""}]}}]
    assert "Usage:" in outcome.err


PROBLEMS = [Problem(place="a.b", wrong="is odd", fix="make it even"), Problem(place="", wrong="no room")]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TutelageError(PROBLEMS), 2, "error: a.b: is odd; make it even\nerror: no room\n"),
        (RunFailed.at("step 3", "the loss is NaN"), 1, "error: step 3: the loss is NaN\n"),
        (RunStopped.at("run", "stopped"), 130, "error: run: stopped\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("as_json", [False, True])
def test_errors_become_sentences_and_exit_codes(
    tutelage: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str, as_json: bool
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("tutelage.runs.listing.all_runs", fail)
    outcome = tutelage("runs", "list", *(["--json"] if as_json else []))
    assert (outcome.code, outcome.err.lstrip("\n")) == (code, said)
    if as_json and isinstance(error, TutelageError):
        problems = [{"place": each.place, "wrong": each.wrong, "fix": each.fix} for each in error.problems]
        assert outcome.lines == [{"error": {"problems": problems}}]
    else:
        assert outcome.out == ""


def test_what_should_not_be_leaves_its_trace_in_a_file(tutelage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("tutelage.runs.listing.all_runs", fail)
    outcome = tutelage("runs", "list", "--json")
    (problem,) = outcome.lines[0]["error"]["problems"]
    assert outcome.code == 1
    assert problem["wrong"] == "an error that should not be: ZeroDivisionError: by zero"
    assert outcome.err.count("\n") == 1
    trace = Path(problem["fix"].split()[4].rstrip(";"))
    assert "ZeroDivisionError" in trace.read_text()
    trace.unlink()


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = "from tutelage.cli.main import main; main(['schema'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()


def test_output_that_can_not_be_encoded_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = python("import sys; from tutelage.cli.main import main; main(['plugins'])")
    assert done.returncode == 0
    assert "builtin" in done.stdout


def test_the_version_is_the_distribution_s(tutelage: Run) -> None:
    import tutelage as package

    assert tutelage("--version").out == f"tutelage {package.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(tutelage: Run, shell: str) -> None:
    assert f"_TUTELAGE_COMPLETE={shell}_complete" in tutelage("completion", shell).out


def test_completion_knows_commands_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TUTELAGE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "tutelage runs co")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert python("from tutelage.cli.main import main; main()").stdout == "plain,compare\n"
