"""The host: what is sound is registered, what is broken disables only itself."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tutelage.plugins import Host, load_command


class Sound(tutelage.DataFormat):
    """A sound format."""

    name = "sound"
    columns = ("a",)

    def matches(self, row: dict[str, Any]) -> bool:
        return "a" in row

    def convert(self, row: dict[str, Any]) -> tutelage.Text:
        return tutelage.Text(row["a"])


def a_format(name: Any = "other", base: type = tutelage.DataFormat, **fields: Any) -> type:
    body = {"name": name, "columns": (), "matches": Sound.matches, "convert": Sound.convert, **fields}
    return type("Made", (base,), {key: value for key, value in body.items() if value is not None})


def module_of(*classes: Any, commands: tuple[Any, ...] = (), **hooks: Callable[..., Any]) -> Any:
    module: Any = types.ModuleType("made")
    if classes:
        module.register_formats = tutelage.hookimpl(lambda register: [register(each) for each in classes])
    if commands:
        module.register_commands = tutelage.hookimpl(lambda register: [register(each) for each in commands])
    for name, hook in hooks.items():
        setattr(module, name, hook)
    return module


def test_a_sound_plugin_is_found_by_kind_and_name() -> None:
    host = Host()
    info = host.register(
        module_of(Sound, commands=(tutelage.Command("greet", "m:f", "Say hello."),)), "sound", "d", "1.0"
    )
    assert (info.error, info.provides) == ("", {"format": ["sound"], "command": ["greet"]})
    assert host.get("format", "sound", "x") is Sound
    assert host.commands["greet"].help == "Say hello."
    assert Sound.summary() == "A sound format."


def raises(error: BaseException) -> Callable[..., None]:
    def register_formats(register: Any) -> None:
        raise error

    return register_formats


class BadConfig(tutelage.DataFormat):
    """Its settings are no Config."""

    name = "bad"
    Config = dict


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "no subclass": (lambda: module_of(int), "is not a subclass of tutelage.DataFormat"),
    "wrong base": (lambda: module_of(a_format(base=tutelage.Tracker)), "is not a subclass of tutelage.DataFormat"),
    "not a class": (lambda: module_of("text"), "is not a subclass of tutelage.DataFormat"),
    "an instance": (lambda: module_of(Sound()), "is not a subclass of tutelage.DataFormat"),
    "no name": (lambda: module_of(a_format(name=None)), "Made has no name"),
    "empty name": (lambda: module_of(a_format(name="")), "Made has no name"),
    "name that is no text": (lambda: module_of(a_format(name=3)), "Made has no name"),
    "name taken": (lambda: module_of(a_format(name="sound")), "'sound' is already brought by"),
    "one name twice": (lambda: module_of(a_format(), a_format()), "'other' is already brought by"),
    "abstract": (lambda: module_of(a_format(convert=None)), "Made lacks convert"),
    "config": (lambda: module_of(BadConfig), "BadConfig.Config is not a subclass of tutelage.Config"),
    "hook raises": (lambda: module_of(register_formats=raises(ZeroDivisionError("x"))), "ZeroDivisionError: x"),
    "hook exits": (lambda: module_of(register_formats=raises(SystemExit(3))), "SystemExit: 3"),
    "hook without argument": (lambda: module_of(register_formats=lambda: None), "TypeError"),
    "unknown hook": (lambda: module_of(register_frmats=tutelage.hookimpl(lambda register: None)), "register_frmats"),
    "core's command": (
        lambda: module_of(commands=(tutelage.Command("train", "m:f", "x"),)),
        "a command 'train' already",
    ),
    "command taken": (
        lambda: module_of(commands=(tutelage.Command("greet", "m:f", "x"),)),
        "a command 'greet' already",
    ),
    "command of a group taken": (
        lambda: module_of(commands=(tutelage.Command("data show", "m:f", "x"),)),
        "a command 'data show' already",
    ),
    "command of no group": (
        lambda: module_of(commands=(tutelage.Command("train hard", "m:f", "x"),)),
        "the command 'train hard' joins no group of data",
    ),
    "no command": (lambda: module_of(commands=("greet",)), "is not a tutelage.Command"),
    "command of numbers": (lambda: module_of(commands=(tutelage.Command("x", 3, "y"),)), "is not a tutelage.Command"),  # type: ignore[arg-type]
    "sound and broken": (lambda: module_of(a_format(name="half"), int), "is not a subclass"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_plugin_is_told_and_leaves_nothing_behind(case: str) -> None:
    make, reason = CASES[case]
    host = Host()
    host.register(module_of(Sound, commands=(tutelage.Command("greet", "m:f", "Say hello."),)), "sound")
    info = host.register(make(), "broken")
    assert reason in info.error
    assert "Traceback" in info.trace
    assert info.provides == {}
    assert (list(host.classes("format")), list(host.commands)) == (["sound"], ["greet"])
    assert host.register(module_of(a_format(name="later")), "later").error == ""
    assert sorted(host.classes("format")) == ["later", "sound"]


def test_an_unknown_name_is_answered_with_the_nearest_and_what_is_switched_off() -> None:
    host = Host()
    host.register(module_of(Sound), "fine")
    host.register(module_of(int), "wreck")
    with pytest.raises(tutelage.TutelageError) as caught:
        host.get("format", "sond", "data.format")
    (problem,) = caught.value.problems
    assert str(problem) == (
        "data.format: no format is called 'sond'; did you mean sound? (switched off: wreck; see tutelage plugins)"
    )


def test_a_command_that_exits_while_it_is_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rude_command.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(tutelage.TutelageError, match="tutelage rude: can't be loaded: SystemExit"):
        load_command(tutelage.Command("rude", "rude_command:main", "Exit."))


BROKEN_IMPORTS = {
    "imports": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "exits": ("import sys; sys.exit('goodbye')", "SystemExit: goodbye"),
    "syntax": ("def f(:", "SyntaxError"),
    "missing": (None, "ModuleNotFoundError"),
}


SOUND = """
import tutelage

@tutelage.hookimpl
def register_commands(register):
    register(tutelage.Command("hi", "m:f", "Hello there."))
"""


def install(folder: Path, name: str, code: str | None) -> None:
    """Put a distribution with one entry point into a folder, as an installer does."""
    if code is not None:
        (folder / f"plugin_{name}.py").write_text(code)
    info = folder / f"plugin_{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[tutelage]\n{name} = plugin_{name}\n")


def test_installed_plugins_that_can_not_be_imported_disable_only_themselves(tmp_path: Path) -> None:
    for name, (code, _) in BROKEN_IMPORTS.items():
        install(tmp_path, name, code)
    install(tmp_path, "zz_sound", SOUND)
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from tutelage.cli.main import main; main(sys.argv[1:])"

    def tutelage_with(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout

    listed = tutelage_with("plugins")
    for name, (_, reason) in BROKEN_IMPORTS.items():
        assert f"{name} (plugin-{name} 1.5)\n  switched off: {reason}" in listed
    assert "adapter lora: " in listed
    assert "command hi: Hello there." in listed
    assert "hi Hello there." in " ".join(tutelage_with("--help").split())
    assert "adapter.lora" in tutelage_with("schema")
