"""Scores by a Python function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from msgspec import Meta

import tutelage


class Function(tutelage.Reward):
    """Scores by a function of an installed package: `score(prompts, answers)` returns a number for each answer.

    It is given lists: of `tutelage.Prompted` (with `prompt`, the reference `answer`, and the row's other `fields`),
    and of texts. What a model wrote is handed over as text and never run.
    """

    name = "function"

    class Config(tutelage.Config):
        """Where the function is."""

        function: Annotated[
            str,
            Meta(
                pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
                description="`package.module:name`, as Python imports it (from installed packages and PYTHONPATH).",
            ),
        ]

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._function: Callable[..., Any] | None = None

    def missing(self) -> str:
        try:
            self._imported()
        except (Exception, SystemExit) as error:  # an import may fail in any way
            fix = "install its package, or name its folder in PYTHONPATH"
            return f"{self.config.function} can't be imported: {type(error).__name__}: {error}; {fix}"
        return ""

    def score(self, prompts: Sequence[tutelage.Prompted], answers: Sequence[str]) -> list[float]:
        return list(self._imported()(list(prompts), list(answers)))

    def _imported(self) -> Callable[..., Any]:
        if self._function is None:
            module, _, name = self.config.function.partition(":")
            found = getattr(importlib.import_module(module), name)
            if not callable(found):
                raise TypeError(f"{name} is {type(found).__name__}, not a function")
            self._function = found
        return self._function
