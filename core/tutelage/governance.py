"""The plugin base class of governance: what must be true of data before a model may learn from it."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from tutelage.errors import Problem
from tutelage.plugin import Plugin


class Governance(Plugin):
    """Plugin base: refuses data that people have not signed for, or whatever else a recipe's `governance` asks."""

    @abstractmethod
    def check(self, data: Path, place: str) -> list[Problem]:
        """What stands against learning from a file or a folder; nothing when all is well."""
