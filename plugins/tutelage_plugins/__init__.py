"""The built-in plugins, registered through the hooks that any plugin uses; each hook imports its own when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tutelage

if TYPE_CHECKING:
    from collections.abc import Callable


@tutelage.hookimpl
def register_phases(register: Callable[[type[tutelage.Phase]], None]) -> None:
    """What is learned or made."""
    from tutelage_plugins.phases import PHASES

    for phase in PHASES:
        register(phase)


@tutelage.hookimpl
def register_adapters(register: Callable[[type[tutelage.Adapter]], None]) -> None:
    """Which parameters learn."""
    from tutelage_plugins.adapters import ADAPTERS

    for adapter in ADAPTERS:
        register(adapter)


@tutelage.hookimpl
def register_formats(register: Callable[[type[tutelage.DataFormat]], None]) -> None:
    """What a row of a dataset means."""
    from tutelage_plugins.formats import FORMATS

    for data_format in FORMATS:
        register(data_format)


@tutelage.hookimpl
def register_model_sources(register: Callable[[type[tutelage.ModelSource]], None]) -> None:
    """Where models are found."""
    from tutelage_plugins.sources import SOURCES

    for source in SOURCES:
        register(source)


@tutelage.hookimpl
def register_rewards(register: Callable[[type[tutelage.Reward]], None]) -> None:
    """What scores answers."""
    from tutelage_plugins.rewards import REWARDS

    for reward in REWARDS:
        register(reward)


@tutelage.hookimpl
def register_trackers(register: Callable[[type[tutelage.Tracker]], None]) -> None:
    """Where metrics go."""
    from tutelage_plugins.trackers import TRACKERS

    for tracker in TRACKERS:
        register(tracker)


@tutelage.hookimpl
def register_launchers(register: Callable[[type[tutelage.Launcher]], None]) -> None:
    """Where a job's run executes."""
    from tutelage_plugins.launchers import LAUNCHERS

    for launcher in LAUNCHERS:
        register(launcher)


@tutelage.hookimpl
def register_commands(register: Callable[[tutelage.Command], None]) -> None:
    """Commands that need what ships with the plugins."""
    register(
        tutelage.Command(
            "constitution",
            "tutelage_plugins.constitutions.command:constitution",
            "Show and check the principles by which a model judges its own answers.",
        )
    )
