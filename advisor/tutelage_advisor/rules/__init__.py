"""The rules that advice rests on: data with names, sources and weights, in the TOML files beside this module.

A rule looks at facts (fields of the situation, and what `tutelage_advisor.facts` derives from them) and argues for or
against an option. `blocks = true` rules the option out. Weights are points; their scale is explained in docs/advice.md.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from tutelage.config import did_you_mean
from tutelage.errors import TutelageError

if TYPE_CHECKING:
    from collections.abc import Mapping

Option = Literal[
    "prompt",
    "retrieve",
    "fine-tune",
    "full",
    "lora",
    "qlora",
    "prompt-tuning",
    "people",
    "ai-feedback",
    "dpo",
    "ppo",
    "grpo",
]
RuleFile = Literal["approach", "method", "preferences"]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One argument: when it holds, what it speaks for (weight over 0) or against (below 0), and why."""

    name: str
    option: Option
    weight: float
    when: dict[str, Any]
    fields: list[str]
    says: str
    why: str
    source: str
    blocks: bool = False

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether every fact named in `when` has the value given there, or one of those in a list."""
        for name, wanted in self.when.items():
            if not (facts[name] in wanted if isinstance(wanted, list) else facts[name] == wanted):
                return False
        return True


@cache
def load(name: RuleFile) -> tuple[Rule, ...]:
    """The rules of one file, in its order."""
    text = Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text)["rule"], tuple[Rule, ...])


def holding(name: RuleFile, facts: Mapping[str, Any]) -> list[Rule]:
    """The rules of one file that hold, in its order; what `Rule.holds` says of each, for many facts a second."""
    found = []
    for rule, tests in _tests(name):
        for fact, wanted in tests:
            if facts[fact] not in wanted:
                break
        else:
            found.append(rule)
    return found


@cache
def _tests(name: RuleFile) -> tuple[tuple[Rule, tuple[tuple[str, tuple[Any, ...]], ...]], ...]:
    """Each rule with the values of every fact that it names."""
    return tuple(
        (
            rule,
            tuple(
                (fact, tuple(wanted) if isinstance(wanted, list) else (wanted,)) for fact, wanted in rule.when.items()
            ),
        )
        for rule in load(name)
    )


def find(name: str) -> Rule:
    """A rule by its name.

    Raises:
        TutelageError: when there is none, with the nearest.
    """
    rules = {rule.name: rule for file in get_args(RuleFile) for rule in load(file)}
    if name not in rules:
        raise TutelageError.at(f"--why {name}", "no rule is called so", did_you_mean(name, list(rules)))
    return rules[name]
