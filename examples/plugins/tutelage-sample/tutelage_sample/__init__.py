"""The hooks of this plugin: what it brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tutelage

if TYPE_CHECKING:
    from collections.abc import Callable


@tutelage.hookimpl
def register_adapters(register: Callable[[type[tutelage.Adapter]], None]) -> None:
    """Bring the adapter `norms`."""
    from tutelage_sample.norms import Norms

    register(Norms)


@tutelage.hookimpl
def register_formats(register: Callable[[type[tutelage.DataFormat]], None]) -> None:
    """Bring the data format `quiz`."""
    from tutelage_sample.quiz import Quiz

    register(Quiz)


@tutelage.hookimpl
def register_commands(register: Callable[[tutelage.Command], None]) -> None:
    """Bring the command `tutelage quiz`; its module is imported when it is called."""
    register(tutelage.Command("quiz", "tutelage_sample.command:quiz", "Print a quiz file's questions."))
