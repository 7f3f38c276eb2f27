"""The constitution that ships, the command that shows and checks one, and how a model is asked to go by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutelage.constitution import Constitution, Request
    from tutelage.errors import Problem

DEFAULT = Path(__file__).with_name("default.yaml")
"The principles that are used where a recipe names no constitution."


def constitution_of(named: str, base: Path, needs: Iterable[Request]) -> Constitution:
    """The constitution that a recipe names, or the one that ships.

    Args:
        base: the folder that a relative path starts from.
        needs: the requests that every principle must have.
    Raises:
        TutelageError: with every problem in it.
    """
    from tutelage.constitution import load

    return load(named_or(named, DEFAULT, base), needs)


def named_or(named: str, default: Path, base: Path) -> Path:
    """The file that a recipe names, relative to `base`, or the default where it names none."""
    return base / Path(named).expanduser() if named else default


def problems_of(load: Callable[[Path], object], base: Path) -> list[Problem]:
    """What is wrong with a file that a recipe names."""
    from tutelage.errors import TutelageError

    try:
        load(base)
    except TutelageError as error:
        return error.problems
    return []
