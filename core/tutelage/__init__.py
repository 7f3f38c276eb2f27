"""Tutelage: decide how a language model should learn, then teach it.

This is what a plugin author and a Python user import. A name is imported when it is first used, so that
`tutelage --help` is instant; nothing here imports torch until something is trained.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.adapter import Adapter
    from tutelage.api import check, resume, train
    from tutelage.catalog import CatalogEntries
    from tutelage.config import Config
    from tutelage.datacheck import DataCheck
    from tutelage.errors import Problem, RunFailed, RunStopped, RunWaiting, TutelageError
    from tutelage.formats import (
        Continuation,
        Conversation,
        DataFormat,
        Prompt,
        Prompted,
        Ranking,
        Record,
        Text,
    )
    from tutelage.governance import Governance
    from tutelage.launcher import Capacity, Launch, Launcher, LauncherUnreachable, Resources, Status
    from tutelage.phase import Artifact, Phase, TrainingPhase
    from tutelage.plugins import Command, hookimpl
    from tutelage.recipe import Data, Recipe, Stage, Trainer
    from tutelage.reward import Reward
    from tutelage.source import ModelSource
    from tutelage.tracker import Tracker

    __version__: str

__all__ = [
    "Adapter",
    "Artifact",
    "Capacity",
    "CatalogEntries",
    "Command",
    "Config",
    "Continuation",
    "Conversation",
    "Data",
    "DataCheck",
    "DataFormat",
    "Governance",
    "Launch",
    "Launcher",
    "LauncherUnreachable",
    "ModelSource",
    "Phase",
    "Problem",
    "Prompt",
    "Prompted",
    "Ranking",
    "Recipe",
    "Record",
    "Resources",
    "Reward",
    "RunFailed",
    "RunStopped",
    "RunWaiting",
    "Stage",
    "Status",
    "Text",
    "Tracker",
    "Trainer",
    "TrainingPhase",
    "TutelageError",
    "check",
    "hookimpl",
    "resume",
    "train",
]

_MODULES = {
    "adapter": ["Adapter"],
    "api": ["check", "resume", "train"],
    "catalog": ["CatalogEntries"],
    "config": ["Config"],
    "datacheck": ["DataCheck"],
    "errors": ["Problem", "RunFailed", "RunStopped", "RunWaiting", "TutelageError"],
    "formats": [
        "Continuation",
        "Conversation",
        "DataFormat",
        "Prompt",
        "Prompted",
        "Ranking",
        "Record",
        "Text",
    ],
    "governance": ["Governance"],
    "launcher": ["Capacity", "Launch", "Launcher", "LauncherUnreachable", "Resources", "Status"],
    "phase": ["Artifact", "Phase", "TrainingPhase"],
    "plugins": ["Command", "hookimpl"],
    "recipe": ["Data", "Recipe", "Stage", "Trainer"],
    "reward": ["Reward"],
    "source": ["ModelSource"],
    "tracker": ["Tracker"],
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("tutelage")
        except PackageNotFoundError:  # imported from a source tree that is not installed
            return "0"
    if name not in _HOMES:
        raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"tutelage.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
