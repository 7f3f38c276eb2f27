"""Advice on learning from preferences: cards, laws, the arithmetic of labels, and recipes that hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from situations import TODAY, situations
from tiny_models import tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import tutelage
from tutelage.config import read_file
from tutelage.errors import TutelageError
from tutelage_advisor import Preferences, advise
from tutelage_advisor.advice import PreferenceAdvice
from tutelage_advisor.labelling import worth
from tutelage_advisor.preferring import MINIMUM, ROBUST

CARDS: dict[str, dict[str, Any]] = {
    card["card"]: card for card in read_file(Path(__file__).with_name("preference_cards.yaml"))
}
quick = settings(deadline=None, max_examples=30)


def answer(situation: dict[str, Any]) -> PreferenceAdvice:
    found = advise(situation, today=TODAY, draws=0).preferences
    assert found is not None
    return found


@pytest.mark.parametrize("name", CARDS)
def test_card(name: str) -> None:
    card = CARDS[name]
    advice = answer(card["situation"])
    assert advice.method in card["method"], card["why"]
    assert advice.feedback in card["feedback"], card["why"]
    assert advice.state == card.get("state", advice.state)
    assert len(card["why"]) > 40
    assert advice.reasons
    assert all(reason.says and reason.source for reason in advice.reasons)
    assert (advice.recipe is None) == (advice.method is None)


def test_no_preferences_no_advice_on_them() -> None:
    assert advise({"task": "x"}, today=TODAY, draws=0).preferences is None


@quick
@given(situations(), st.builds(Preferences, goal=st.sampled_from(["style", "expertise"]), pairs=st.integers(0, 10**5)))
def test_preferences_never_change_the_rest_of_the_advice(situation: Any, preferences: Preferences) -> None:
    plain = advise(situation, today=TODAY, draws=0)
    asked = advise(msgspec.structs.replace(situation, preferences=preferences), today=TODAY, draws=0)
    assert msgspec.structs.replace(asked, preferences=None) == plain


@quick
@given(st.floats(0, 20), st.floats(0, 20), st.sampled_from(["style", "helpfulness", "harmlessness", "correctness"]))
def test_dearer_people_never_turn_advice_from_a_judge_to_people(usd: float, more: float, goal: str) -> None:
    cheap, dear = (
        answer({"task": "x", "preferences": {"goal": goal, "annotators_usd_per_label": each}}).feedback
        for each in (usd, usd + more)
    )
    assert (cheap, dear) != ("ai-feedback", "people")


@quick
@given(st.sampled_from(["narrow", "medium", "broad"]), st.integers(0, 60_000), st.integers(0, 60_000))
def test_more_pairs_never_ask_for_more(breadth: str, pairs: int, more: int) -> None:
    few, many = (
        answer({"task": "x", "task_breadth": breadth, "preferences": {"pairs": n}}) for n in (pairs, pairs + more)
    )
    assert many.collect <= few.collect == max(0, MINIMUM[breadth] - pairs)
    assert [each.labels for each in many.labels] <= [each.labels for each in few.labels]
    assert few.robust == ROBUST[breadth]


def test_what_a_label_is_worth_by_simulation() -> None:
    """Two people who are right with probability 0.8, and a judge who is with 0.7, agree as the formula reads them."""
    person, judge = 0.8, 0.7
    agree = person**2 + (1 - person) ** 2
    judged = person * judge + (1 - person) * (1 - judge)
    assert worth(agree, judged) == pytest.approx(((2 * person - 1) ** 2, (2 * judge - 1) ** 2))
    near_even = (
        0.5 + 1e-4
    )  # Fisher information of a coin's bias p, read rightly with probability q, over that of reading it surely
    seen = near_even * judge + (1 - near_even) * (1 - judge)
    information = (2 * judge - 1) ** 2 / (seen * (1 - seen)) * near_even * (1 - near_even)
    assert information == pytest.approx((2 * judge - 1) ** 2, rel=1e-6)


def test_costs_of_labels_by_hand() -> None:
    advice = answer(
        {
            "task": "x",
            "task_breadth": "narrow",
            "preferences": {
                "goal": "helpfulness",
                "pairs": 1000,
                "annotators_usd_per_label": 0.5,
                "annotators_agree": 0.8,
                "judge_agrees": 0.74,
                "judge": "gpt-4.1-mini",
            },
            "traffic": {"prompt_tokens": 600, "output_tokens": 100},
        }
    )
    people, judge = advice.labels
    assert (people.usd_per_label, people.labels, people.usd) == (0.5, 4000, 2000)
    assert people.usd_per_useful_label == pytest.approx(0.5 / 0.6)
    questions = 8 * (600 + 2 * 100 + 150)
    assert judge.usd_per_label == pytest.approx((questions * 0.40 + 8 * 1.60) / 1e6)
    value = 0.48**2 / 0.6
    assert judge.usd_per_useful_label == pytest.approx(judge.usd_per_label / value)
    assert judge.labels == 4000 * 0.6 / value == 6250


def test_phases_are_estimated_on_the_hardware_of_tuning() -> None:
    card = CARDS["last-points-many-prompts"]
    costs = {cost.phase: cost for cost in answer(card["situation"]).phases}
    assert set(costs) == {"dpo", "reward_model", "ppo", "grpo"}
    assert {cost.hardware for cost in costs.values()} == {"8 x H100-SXM"}
    assert costs["dpo"].examples == 12_000
    assert costs["ppo"].examples == 100_000
    assert costs["ppo"].hours > costs["dpo"].hours > 0
    small = answer({**card["situation"], "model": "llama-3.1-8b", "hardware": {"gpu": "rtx-3060", "count": 1}})
    fits = {cost.phase: cost.fits for cost in small.phases}
    assert small.method != "ppo" or fits["ppo"]


@pytest.mark.parametrize(
    ("preferences", "said"),
    [
        ({"goal": "taste"}, "style"),
        ({"pairs": -1}, "preferences.pairs"),
        ({"judge_agrees": 70}, "0.7 is 70%"),
        ({"annotators_agree": 0.4}, "preferences.annotators_agree"),
        ({"annotators_usd_per_label": float("nan")}, "not a finite number"),
        ({"pair": 3}, "did you mean pairs"),
        ("many", "preferences"),
    ],
)
def test_bad_preferences_get_a_sentence(preferences: Any, said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        advise({"task": "x", "preferences": preferences}, today=TODAY, draws=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, and the data that the recipes name."""
    made = tmp_path_factory.mktemp("preferences")
    shape = {"hidden_size": 192, "intermediate_size": 192, "num_attention_heads": 6, "max_position_embeddings": 4096}
    tokens = tokenizer()
    config = LlamaConfig(**shape, num_hidden_layers=1, vocab_size=len(tokens), bos_token_id=None, eos_token_id=0)
    LlamaForCausalLM(config).save_pretrained(made / "model")
    tokens.save_pretrained(made / "model")
    rows = [{"prompt": f"What is {at} and {at}?", "answer": str(2 * at)} for at in range(40)]
    (made / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": row["prompt"], "chosen": f"It is {row['answer']}.", "rejected": "No."} for row in rows]
    (made / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    chats = [{"prompt": row["prompt"], "completion": f"It is {row['answer']}."} for row in rows]
    (made / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    return made


def _kinds(name: str) -> tuple[str, ...]:
    recipe = answer(CARDS[name]["situation"]).recipe
    return () if recipe is None else tuple(json.dumps(stage["phase"]) for stage in recipe["stages"])


UNLIKE = list({_kinds(name): name for name in CARDS if _kinds(name)}.values())
"A card of each recipe that differs."


@pytest.mark.parametrize("name", UNLIKE)
def test_check_accepts_the_recipe(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    recipe = answer(CARDS[name]["situation"]).recipe
    assert recipe is not None
    report = tutelage.check({**recipe, "model": str(folder / "model")})
    assert report.ok, report.problems
