"""What trackers of other services share."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from tutelage.errors import TutelageError

if TYPE_CHECKING:
    from pathlib import Path


def missing_package(module: str, extra: str) -> str:
    """Why a tracker can't be used, with how to get its package; '' when it is there. Nothing is imported."""
    return "" if find_spec(module) else f"the package {module} is not installed: pip install 'tutelage[{extra}]'"


def remembered(file: Path) -> str:
    """An identity that an earlier process of this run wrote down, or ''."""
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def unreachable(name: str, error: Exception) -> TutelageError:
    """What a person is told when a tracker's service can't be had."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return TutelageError.at(f"trackers.{name}", f"can't start: {said}", f"mend it, or take {name} out of trackers")
