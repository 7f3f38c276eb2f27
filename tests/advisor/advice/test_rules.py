"""Every rule by itself, and the set of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from situations import TODAY

from tutelage.errors import TutelageError
from tutelage_advisor import rules
from tutelage_advisor.assumed import completed
from tutelage_advisor.decide import decide, verdict
from tutelage_advisor.situation import Situation, situation_from
from tutelage_advisor.world import World

ALL = [*rules.load("approach"), *rules.load("method"), *rules.load("preferences")]
FIELDS = {field.name for field in msgspec.structs.fields(Situation)}


def satisfied(rule: rules.Rule) -> dict[str, Any]:
    return {name: wanted[0] if isinstance(wanted, list) else wanted for name, wanted in rule.when.items()}


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.name)
def test_a_rule_holds_when_all_its_conditions_do_and_not_when_one_fails(rule: rules.Rule) -> None:
    facts = satisfied(rule)
    assert rule.holds(facts)
    for name in facts:
        assert not rule.holds({**facts, name: "something else"})


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.name)
def test_a_rule_says_what_it_rests_on(rule: rules.Rule) -> None:
    assert set(rule.fields) <= FIELDS
    assert rule.fields or not rule.when
    assert {name for name in rule.when if name in FIELDS} <= set(rule.fields)
    assert rule.says.endswith(".")
    assert len(rule.why) > 30
    assert rule.source
    assert rule.weight < 0 or not rule.blocks


def test_names_are_unique_and_conditions_are_facts() -> None:
    assert len({rule.name for rule in ALL}) == len(ALL)
    case, _ = completed(situation_from({"task": "x"}))
    facts = decide(case, World(today=TODAY)).facts
    assert {name for rule in ALL[: -len(rules.load("preferences"))] for name in rule.when} <= set(facts)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("explainable_in_prompt", [True, False]),
        ("base_capability", ["weak", "partial", "strong"]),
        ("iteration_speed", ["hours", "days", "weeks"]),
        ("needs_strict_format", [True, False]),
        ("quality_critical", [True, False]),
        ("data_state", ["few", "noisy", "enough", "plenty"]),
        ("tuning_route", ["open", "vendor", "vendor-closed", "api-only", "data-stays"]),
        ("volume", ["pays", "pays-little", "never"]),
    ],
)
def test_every_value_of_a_deciding_fact_is_spoken_for_once(field: str, values: list[Any]) -> None:
    for value in values:
        holding = [
            rule.name for rule in rules.load("approach") if rule.when.keys() == {field} and rule.holds({field: value})
        ]
        assert len(holding) == 1, (value, holding)


@pytest.mark.parametrize("knowledge", ["none", "some", "deep"])
@pytest.mark.parametrize("changes", ["never", "monthly", "weekly", "daily"])
def test_every_kind_of_knowledge_is_spoken_for(knowledge: str, changes: str) -> None:
    facts = {"needs_domain_knowledge": knowledge, "knowledge_changes": changes}
    holding = [rule for rule in rules.load("approach") if rule.when.keys() <= facts.keys() and rule.holds(facts)]
    assert holding


@pytest.mark.parametrize(
    ("tune", "retrieve", "blocked", "ready", "expected"),
    [
        (-1, 0, False, True, ("prompt", [])),
        (0, 0, False, True, ("prompt", [])),
        (-1, 2, False, True, ("retrieve", [])),
        (5, 0, True, True, ("prompt", [])),
        (5, 3, True, True, ("retrieve", [])),
        (1, 0, False, True, ("fine-tune", [])),
        (1, 2, False, True, ("fine-tune", ["retrieve"])),
        (1, 0, False, False, ("collect-data", ["prompt"])),
        (1, 2, False, False, ("retrieve", ["collect-data"])),
        (4, 2, False, False, ("collect-data", ["retrieve"])),
    ],
)
def test_the_order_of_reading(tune: float, retrieve: float, blocked: bool, ready: bool, expected: Any) -> None:
    assert verdict(tune, retrieve, blocked, ready) == expected


def test_an_unknown_rule_is_answered_with_the_nearest() -> None:
    with pytest.raises(TutelageError, match="did you mean strict-format"):
        rules.find("strict-fromat")


def test_the_documentation_names_every_rule_with_its_points_and_source() -> None:
    page = Path(__file__).parents[3] / "docs" / "advice.md"
    rows = {
        line.split("|")[1].strip(): line for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    }
    for rule in ALL:
        points = "rules it out" if rule.blocks else f"{rule.weight:+g} {rule.option}"
        assert points in rows[rule.name], rule.name
        assert rule.source in rows[rule.name], rule.name
