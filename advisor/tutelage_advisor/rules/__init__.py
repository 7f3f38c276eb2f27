"""The rules that advice rests on: data with names, sources and weights, in the TOML files beside this module.

A rule looks at facts (fields of the situation, and what `tutelage_advisor.facts` derives from them) and argues for or
against an option. `blocks = true` rules the option out. Weights are points; their scale is explained in docs/advice.md.
"""

from __future__ import annotations

import tomllib
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from tutelage.config import did_you_mean
from tutelage.errors import TutelageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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


class Held:
    """Rules of one file that hold together. There is one object for each such set, so that what follows from it can be
    kept for the next question."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules


def holding(name: RuleFile, facts: Mapping[str, Any]) -> Held:
    """The rules of one file that hold, in its order; what `Rule.holds` says of each, for many facts a second."""
    return _held(name, _passing(name, facts))


def holding_by(name: RuleFile, facts: Mapping[str, Any], fact: str, values: Iterable[Any]) -> dict[Any, Held]:
    """The rules that hold with each of the values that one more fact may have."""
    passing, others = _tests(name)[fact]
    left = _passing(name, {**facts, fact: _ANY})
    return {value: _held(name, left & passing.get(value, others)) for value in values}


_ANY = object()
"A value of a fact with which every rule passes."


def _passing(name: RuleFile, facts: Mapping[str, Any]) -> int:
    left = -1
    for fact, (passing, others) in _tests(name).items():
        left &= passing.get(facts[fact], others)
    return left


@cache
def _tests(name: RuleFile) -> dict[str, tuple[dict[Any, int], int]]:
    """For every fact that a rule names: the rules that pass with each of its values, and with any other value.

    Sets of rules are the bits of a number: 2^i is the rule at place i.
    """
    rules, tests = load(name), {}
    for fact in dict.fromkeys(fact for rule in rules for fact in rule.when):
        wanted = [_wanted(rule, fact) for rule in rules]
        others = sum(2**place for place, values in enumerate(wanted) if values is None)
        passing: dict[Any, int] = {_ANY: -1}
        for value in {value for values in wanted for value in values or ()}:
            passing[value] = others + sum(2**place for place, values in enumerate(wanted) if value in (values or ()))
        tests[fact] = (passing, others)
    return tests


def _wanted(rule: Rule, fact: str) -> list[Any] | None:
    """The values of a fact with which a rule holds; None where it doesn't look at it."""
    wanted = rule.when.get(fact)
    return wanted if wanted is None or isinstance(wanted, list) else [wanted]


@lru_cache(maxsize=10_000)
def _held(name: RuleFile, places: int) -> Held:
    return Held([rule for place, rule in enumerate(load(name)) if places >> place & 1])


def find(name: str) -> Rule:
    """A rule by its name.

    Raises:
        TutelageError: when there is none, with the nearest.
    """
    rules = {rule.name: rule for file in get_args(RuleFile) for rule in load(file)}
    if name not in rules:
        raise TutelageError.at(f"--why {name}", "no rule is called so", did_you_mean(name, list(rules)))
    return rules[name]
