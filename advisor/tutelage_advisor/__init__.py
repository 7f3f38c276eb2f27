"""The advisor: whether a model should be tuned at all, how, on what data, and what it will cost.

`advise(situation)` answers with an `Advice`; `costs.compare` does the money, `estimates.estimate` memory and time,
`audit.readiness` the data. Nothing here imports torch, and nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tutelage.plugins import Command, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from tutelage.datacheck import DataCheck
    from tutelage.governance import Governance
    from tutelage_advisor.advice import Advice
    from tutelage_advisor.advising import advise
    from tutelage_advisor.situation import Hardware, Preferences, Prices, Situation, Traffic

__all__ = [
    "Advice",
    "Hardware",
    "Preferences",
    "Prices",
    "Situation",
    "Traffic",
    "advise",
    "register_checks",
    "register_commands",
    "register_governance",
]

_HOMES = {
    "Advice": "advice",
    "Hardware": "situation",
    "Preferences": "situation",
    "Prices": "situation",
    "Situation": "situation",
    "Traffic": "situation",
    "advise": "advising",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tutelage_advisor.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tutelage_advisor' has no attribute {name!r}")


@hookimpl
def register_commands(register: Callable[[Command], None]) -> None:
    """Bring the advisor's commands to `tutelage`."""
    for name, target, text in (
        (
            "advise",
            "advise:advise",
            "Say whether to prompt, retrieve, collect data or fine-tune; how, and at what cost.",
        ),
        ("estimate", "estimate:estimate", "Predict memory, time and money of a recipe or a model on given hardware."),
        ("catalog", "estimate:catalog", "Show the GPUs, models and prices that estimates rest on."),
        ("audit", "audit:audit", "Find what is wrong with a dataset, row by row."),
        ("data fix", "audit:fix", "Write what an audit finds safe to keep into a new file."),
        ("review", "review:review", "Let people sign that data is accurate, unbiased and appropriate."),
    ):
        register(Command(name, f"tutelage_advisor.cli.{target}", text))


@hookimpl
def register_checks(register: Callable[[type[DataCheck]], None]) -> None:
    """Bring the built-in data checks."""
    from tutelage_advisor.audit.checks import CHECKS

    for check in CHECKS:
        register(check)


@hookimpl
def register_governance(register: Callable[[type[Governance]], None]) -> None:
    """Bring `governance: reviewed`."""
    from tutelage_advisor.review.governing import Reviewed

    register(Reviewed)
