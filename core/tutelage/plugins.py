"""Hook specifications, and the host that finds plugins, registers what they bring and isolates what is broken.

A plugin is a module named by an entry point in the group `tutelage`. It implements any of the hooks below;
each is handed `register`, which it calls once per class (or command). The host never imports a plugin by name.

Plugin modules are imported by the command line too, so they import torch inside functions, not at the top.
"""

from __future__ import annotations

import importlib
import traceback
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import pluggy

from tutelage.adapter import Adapter
from tutelage.catalog import CatalogEntries
from tutelage.cli.commands import COMMANDS, GROUPS
from tutelage.config import Config, did_you_mean
from tutelage.datacheck import DataCheck
from tutelage.errors import Problem, TutelageError
from tutelage.formats import DataFormat
from tutelage.governance import Governance
from tutelage.launcher import Launcher
from tutelage.phase import Phase
from tutelage.plugin import Plugin
from tutelage.reward import Reward
from tutelage.source import ModelSource
from tutelage.tracker import Tracker

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

hookspec = pluggy.HookspecMarker("tutelage")
hookimpl = pluggy.HookimplMarker("tutelage")

P = TypeVar("P", bound=Plugin)


class Hooks:
    """Every hook a plugin may implement."""

    @hookspec
    def register_phases(self, register: Callable[[type[Phase]], None]) -> None:
        """Register phases: what is learned or made."""

    @hookspec
    def register_adapters(self, register: Callable[[type[Adapter]], None]) -> None:
        """Register adapters: which parameters learn."""

    @hookspec
    def register_formats(self, register: Callable[[type[DataFormat]], None]) -> None:
        """Register data formats: what a row of a dataset means."""

    @hookspec
    def register_model_sources(self, register: Callable[[type[ModelSource]], None]) -> None:
        """Register model sources: where the `prefix` of `model: prefix:name` is found."""

    @hookspec
    def register_rewards(self, register: Callable[[type[Reward]], None]) -> None:
        """Register rewards: what scores answers."""

    @hookspec
    def register_trackers(self, register: Callable[[type[Tracker]], None]) -> None:
        """Register trackers: where metrics are sent while a run goes on."""

    @hookspec
    def register_checks(self, register: Callable[[type[DataCheck]], None]) -> None:
        """Register data checks: what `tutelage audit` looks for in a dataset."""

    @hookspec
    def register_governance(self, register: Callable[[type[Governance]], None]) -> None:
        """Register governance: what must be true of data before a model may learn from it."""

    @hookspec
    def register_commands(self, register: Callable[[Command], None]) -> None:
        """Register commands: `Command(name, "package.module:click_command", "one line of help")`.

        A name of two words, such as `data fix`, joins one of core's groups.
        """

    @hookspec
    def register_launchers(self, register: Callable[[type[Launcher]], None]) -> None:
        """Register launchers: where a job's run executes."""

    @hookspec
    def register_catalogs(self, register: Callable[[type[CatalogEntries]], None]) -> None:
        """Register catalog entries: GPUs, models and prices that `estimate` and `advise` know."""


class Command(msgspec.Struct, frozen=True):
    """A command or command group that joins `tutelage`; `target` is imported only when it is called."""

    name: str
    target: str
    help: str


class PluginInfo(msgspec.Struct):
    """What the host knows of one entry point: what it brought, or why it is switched off."""

    name: str
    distribution: str
    version: str
    provides: dict[str, list[str]] = msgspec.field(default_factory=dict)
    error: str = ""
    trace: str = ""


KINDS: dict[str, tuple[str, type[Plugin]]] = {
    "phase": ("register_phases", Phase),
    "adapter": ("register_adapters", Adapter),
    "format": ("register_formats", DataFormat),
    "model source": ("register_model_sources", ModelSource),
    "reward": ("register_rewards", Reward),
    "tracker": ("register_trackers", Tracker),
    "check": ("register_checks", DataCheck),
    "governance": ("register_governance", Governance),
    "catalog": ("register_catalogs", CatalogEntries),
    "launcher": ("register_launchers", Launcher),
}


OWN = ("builtin", "advisor", "server")
"The project's own entry points, which come first: a stranger's plugin can't take their names."


class Host:
    """The plugins that are installed here; of each, the classes of `kinds`, and the commands."""

    def __init__(self, kinds: Collection[str] = tuple(KINDS)) -> None:
        self.manager = pluggy.PluginManager("tutelage")
        self.manager.add_hookspecs(Hooks)
        self.infos: list[PluginInfo] = []
        self.commands: dict[str, Command] = {}
        self._classes: dict[str, dict[str, type[Plugin]]] = {kind: {} for kind in kinds}

    def discover(self) -> None:
        """Load every entry point of the group `tutelage`; one that fails is noted and left out."""
        found = sorted(
            entry_points(group="tutelage"),
            key=lambda point: (OWN.index(point.name) if point.name in OWN else len(OWN), point.name),
        )
        for point in found:
            self._load(point)

    def register(self, module: Any, name: str, distribution: str = "", version: str = "") -> PluginInfo:
        """Register a plugin module that is already imported (tests and notebooks do)."""
        info = PluginInfo(name, distribution, version)
        self.infos.append(info)
        try:
            self.manager.register(module, name=name)
            self.manager.check_pending()
            self._collect(module, info)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a hook may even call sys.exit
            self._disable(module, info, error)
        return info

    def classes(self, kind: str) -> dict[str, type[Plugin]]:
        """All classes of a kind by name."""
        return self._classes[kind]

    def get(self, kind: str, name: str, place: str) -> type[Any]:
        """The class of a kind by its name.

        Raises:
            TutelageError: when no plugin brings it; a plugin that is broken is mentioned.
        """
        known = self._classes[kind]
        if name in known:
            return known[name]
        broken = [info.name for info in self.infos if info.error]
        also = f" (switched off: {', '.join(broken)}; see tutelage plugins)" if broken else ""
        raise TutelageError.at(place, f"no {kind} is called {name!r}", did_you_mean(name, list(known)) + also)

    def _load(self, point: EntryPoint) -> None:
        distribution = version = ""
        if len(self._classes) == len(KINDS) and point.dist:  # slow to read, and `tutelage --help` does without
            distribution, version = point.dist.name, point.dist.version
        try:
            module = point.load()
        except BaseException as error:  # a plugin's import may even call sys.exit; the others go on
            if isinstance(error, KeyboardInterrupt):
                raise
            self.infos.append(_failure(PluginInfo(point.name, distribution, version), error))
            return
        self.register(module, point.name, distribution, version)

    def _collect(self, module: Any, info: PluginInfo) -> None:
        """Ask one plugin for all it has before taking any of it, so that a broken one leaves nothing behind."""
        brought: list[tuple[str, type[Plugin]]] = []
        commands: list[Command] = []
        for kind in self._classes:
            hook, base = KINDS[kind]
            implementation = getattr(module, hook, None)
            if implementation is not None:
                classes: list[type[Any]] = []
                implementation(register=classes.append)
                known = dict(self._classes[kind])
                for plugin in classes:
                    known[plugin.name] = _checked(plugin, base, known)
                    brought.append((kind, plugin))
        if hasattr(module, "register_commands"):
            module.register_commands(register=commands.append)
            _check_commands(commands, self.commands)
        for kind, plugin in brought:
            self._classes[kind][plugin.name] = plugin
            info.provides.setdefault(kind, []).append(plugin.name)
        for command in commands:
            self.commands[command.name] = command
            info.provides.setdefault("command", []).append(command.name)

    def _disable(self, module: Any, info: PluginInfo, error: BaseException) -> None:
        if self.manager.is_registered(module):
            self.manager.unregister(module)
        _failure(info, error)


def _checked(plugin: Any, base: type[P], known: dict[str, type[Plugin]]) -> type[P]:
    """Raises TypeError with a sentence when a class breaks the contract."""
    if not isinstance(plugin, type) or not issubclass(plugin, base):
        raise TypeError(f"{plugin!r} is not a subclass of tutelage.{base.__name__}")
    name = getattr(plugin, "name", None)
    if not isinstance(name, str) or not name:
        raise TypeError(f"{plugin.__name__} has no name")
    if name in known:
        raise TypeError(f"{name!r} is already brought by {known[name].__module__}")
    if not (isinstance(plugin.Config, type) and issubclass(plugin.Config, Config)):
        raise TypeError(f"{plugin.__name__}.Config is not a subclass of tutelage.Config")
    missing = sorted(getattr(plugin, "__abstractmethods__", ()))
    if missing:
        raise TypeError(f"{plugin.__name__} lacks {', '.join(missing)}")
    return plugin


def _check_commands(commands: list[Any], known: Collection[str]) -> None:
    """Raises TypeError with a sentence when a command breaks the contract."""
    taken = {*COMMANDS, *(f"{group} {name}" for group, names in GROUPS.items() for name in names), *known}
    for command in commands:
        if not isinstance(command, Command) or not all(
            isinstance(text, str) for text in msgspec.structs.astuple(command)
        ):
            raise TypeError(f"{command!r} is not a tutelage.Command of three strings")
        if command.name in taken:
            raise TypeError(f"there is a command {command.name!r} already")
        group, _, rest = command.name.rpartition(" ")
        if group and (group not in GROUPS or not rest):
            raise TypeError(f"the command {command.name!r} joins no group of {', '.join(GROUPS)}")
        taken.add(command.name)


def _failure(info: PluginInfo, error: BaseException) -> PluginInfo:
    info.error = f"{type(error).__name__}: {error}"
    info.trace = "".join(traceback.format_exception(error))
    return info


@cache
def host() -> Host:
    """The host of this process, with everything installed discovered once."""
    made = Host()
    made.discover()
    return made


@cache
def quick_host() -> Host:
    """The host of what must be instant: commands and catalog entries. No other classes are asked for."""
    made = Host(kinds=("catalog",))
    made.discover()
    return made


def plugin_commands() -> dict[str, Command]:
    """The commands that plugins bring, by name."""
    return quick_host().commands


def load_command(command: Command) -> Any:
    """Import what a command's target names.

    Raises:
        TutelageError: when it can't be imported, with the reason.
    """
    module, _, attribute = command.target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise TutelageError(
            Problem(place=f"tutelage {command.name}", wrong=f"can't be loaded: {type(error).__name__}: {error}")
        ) from error
