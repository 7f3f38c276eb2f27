"""What holds of any advice, whatever the situation."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from situations import FIELDS, TODAY, situations

from tutelage_advisor import Situation, advise, rules
from tutelage_advisor.advising import advise_in
from tutelage_advisor.assumed import completed, completed_traffic
from tutelage_advisor.decide import Decision, decide, outcome
from tutelage_advisor.explain import reasons_for
from tutelage_advisor.facts import facts_with
from tutelage_advisor.world import World

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
ORDER = {"never": 0, "pays-little": 1, "pays": 2}


@cache
def world() -> World:
    return World(today=TODAY)


def verdict(situation: Situation) -> Decision:
    case, _ = completed(situation, world().access(situation.model))
    return decide(case, world())


@quick
@given(situations(traffic=FIELDS["traffic"]), st.floats(1, 300))
def test_more_traffic_never_makes_tuning_less_economical(situation: Situation, more: float) -> None:
    assert situation.traffic is not None
    calls = int((situation.traffic.requests_per_month or 0) * more)
    busier = msgspec.structs.replace(
        situation, traffic=msgspec.structs.replace(situation.traffic, requests_per_month=calls)
    )
    before, after = verdict(situation), verdict(busier)
    assert after.tune >= before.tune
    if before.facts["volume"] != "not-tunable":
        assert ORDER[after.facts["volume"]] >= ORDER[before.facts["volume"]]
    if before.approach == "fine-tune":
        assert after.approach == "fine-tune"


@quick
@given(situations(examples=FIELDS["examples"]), st.integers(0, 10**6))
def test_more_good_data_never_turns_tuning_into_collecting(situation: Situation, more: int) -> None:
    assume(situation.example_quality in (None, "clean", "reviewed"))
    assume(situation.budget_usd is None)  # more data takes longer to train on, which a budget may not allow
    before = verdict(situation)
    after = verdict(msgspec.structs.replace(situation, examples=(situation.examples or 0) + more))
    if before.approach == "fine-tune":
        assert after.approach != "collect-data"
    if before.approach == "collect-data":
        assert after.approach in ("collect-data", "fine-tune", "prompt")


@quick
@given(situations(), st.floats(0.05, 4), st.floats(0.01, 1))
def test_cheaper_hardware_never_raises_cost(situation: Situation, price: float, share: float) -> None:
    def fine_tuning(usd: float) -> list[float]:
        from tutelage_advisor.situation import Prices

        prices = msgspec.structs.replace(situation.prices or Prices(), gpu_per_hour=usd)
        case, _ = completed(msgspec.structs.replace(situation, prices=prices), world().access(situation.model))
        method = decide(case, world()).considered if case.budget_usd is None else "lora"
        return [option.total_usd for option in world().costs(case, method, False, draws=0, seed=0).options]

    assert all(cheap <= dear for cheap, dear in zip(fine_tuning(price * share), fine_tuning(price), strict=True))


@quick
@given(situations(), st.text(min_size=1, max_size=200))
def test_the_words_of_the_task_never_change_advice(situation: Situation, words: str) -> None:
    before, after = verdict(situation), verdict(msgspec.structs.replace(situation, task=words))
    assert (before.approach, before.method, before.tune) == (after.approach, after.method, after.tune)


@quick
@given(situations(needs_domain_knowledge=st.just("none")), FIELDS["knowledge_changes"])
def test_how_often_knowledge_changes_is_irrelevant_where_none_is_needed(situation: Situation, changes: str) -> None:
    before, after = verdict(situation), verdict(msgspec.structs.replace(situation, knowledge_changes=changes))
    assert (before.approach, before.method, before.tune, before.held) == (
        after.approach,
        after.method,
        after.tune,
        after.held,
    )


@quick
@given(
    situations(weights_access=st.just("api-only")),
    st.sampled_from(["hardware", "variants", "budget_usd", "forgetting_sensitive"]),
    st.data(),
)
def test_what_only_tuning_asks_is_irrelevant_where_nothing_can_be_tuned(
    situation: Situation, field: str, data: Any
) -> None:
    other = msgspec.structs.replace(situation, **{field: data.draw(FIELDS[field])})
    before, after = verdict(situation), verdict(other)
    assert before.approach in ("prompt", "retrieve")
    assert (before.approach, before.method, before.combine_with) == (after.approach, after.method, after.combine_with)


@quick
@given(situations())
def test_a_silent_field_is_as_good_as_its_assumption(situation: Situation) -> None:
    case, _ = completed(situation, world().access(situation.model))
    before, after = decide(case, world()), verdict(case)
    assert (before.approach, before.method, before.tune) == (after.approach, after.method, after.tune)


@quick
@given(situations(), st.sampled_from(sorted(FIELDS)), st.data())
def test_what_is_found_sooner_is_what_is_found_from_scratch(situation: Situation, field: str, data: Any) -> None:
    case, _ = completed(situation, world().access(situation.model))
    value = data.draw(FIELDS[field])
    other = msgspec.structs.replace(case, **{field: completed_traffic(value) if field == "traffic" else value})
    facts, expected = facts_with(decide(case, world()).facts, other, field, world()), decide(other, world())
    assert outcome(other, world(), {**facts}) == (expected.approach, expected.method)
    assert decide(other, world(), facts) == expected
    for file in ("approach", "method"):
        holding = [rule for rule in rules.load(file) if rule.holds(expected.facts)]
        assert rules.holding(file, expected.facts).rules == holding


@settings(deadline=None, max_examples=15)
@given(situations())
def test_the_same_situation_gets_the_same_advice(situation: Situation) -> None:
    once, again = advise(situation, today=TODAY, draws=50), advise(situation, today=TODAY, draws=50)
    among_many = advise_in(world(), situation, draws=50)
    assert msgspec.json.encode(once) == msgspec.json.encode(again) == msgspec.json.encode(among_many)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(situations(), st.sampled_from(sorted(FIELDS)), st.data())
def test_a_flip_comes_with_the_reason_that_flipped_it(situation: Situation, field: str, data: Any) -> None:
    other = msgspec.structs.replace(situation, **{field: data.draw(FIELDS[field])})
    before, after = verdict(situation), verdict(other)
    if (before.approach, before.method) == (after.approach, after.method):
        return
    was = {reason.rule for reason in reasons_for(before)}
    new = [reason for reason in reasons_for(after) if field in reason.fields]
    assert any(reason.rule not in was for reason in new), (
        field,
        before.approach,
        before.method,
        after.approach,
        after.method,
    )


@quick
@given(situations(weights_access=st.sampled_from(["api-only", "api-tunable"]), data_may_leave=st.just(False)))
def test_what_cannot_be_tuned_is_not_tuned(situation: Situation) -> None:
    decision = verdict(situation)
    assert decision.approach in ("prompt", "retrieve")
    assert any(reason.decisive for reason in reasons_for(decision))


@pytest.mark.parametrize(("clear", "close"), [(30_000, 505), (20, 480)])
def test_advice_near_a_threshold_says_so_with_lower_confidence(clear: int, close: int) -> None:
    base = {"task": "x", "explainable_in_prompt": False, "base_capability": "weak", "needs_strict_format": True}
    far, near = (advise({**base, "examples": number}, today=TODAY, draws=0).confidence for number in (clear, close))
    assert near.near_threshold
    assert not far.near_threshold
    assert near.value < far.value
    assert any("500" in sentence for sentence in near.near)


def test_hosted_tuning_is_gated_on_the_day() -> None:
    import datetime

    asked = {
        "task": "x",
        "explainable_in_prompt": False,
        "examples": 3_000,
        "needs_strict_format": True,
        "weights_access": "api-tunable",
        "model": "gpt-4.1-mini",
    }
    assert advise(asked, today=datetime.date(2026, 11, 24), draws=0).approach == "fine-tune"
    closed = advise(asked, today=datetime.date(2027, 2, 1), draws=0)
    assert closed.approach == "prompt"
    assert closed.reasons[0].rule == "hosted-tuning-closed"
