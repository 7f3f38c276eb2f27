"""What all plugin classes share: a name, one line of description, a config."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar

from tutelage.config import Config


class Plugin(ABC):
    """Base of everything pluggable: subclasses set `name`, may define a `Config`, and say in one line what they are."""

    name: ClassVar[str]
    Config: ClassVar[type[Any]] = Config

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring, which `tutelage plugins` prints."""
        return (cls.__doc__ or "").strip().partition("\n")[0]
