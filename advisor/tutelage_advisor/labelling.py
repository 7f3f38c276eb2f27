"""What comparisons cost, by people and by a judge, for as much as they teach."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from tutelage_advisor.advice import LabelCost

if TYPE_CHECKING:
    from tutelage_advisor.situation import Preferences, Situation
    from tutelage_advisor.world import World

GOAL = "helpfulness"
"What is taken to make an answer better, where it is not said."

AGREEMENT = 0.73
"How often two people prefer the same answer, where it was not measured: 73% in InstructGPT (from memory)."

JUDGED = {"style": 0.75, "helpfulness": 0.70, "harmlessness": 0.70, "correctness": 0.65, "expertise": 0.58}
"""How often a judge prefers what a person does, where it was not measured. Lee et al. (arXiv 2309.00267) found 78% on
summaries and 69 to 70% in dialogue (from memory); the last two are judgement."""

PERSON_USD = 0.67
"Dollars for a person's label of a pair of summaries, as Lee et al. (2023) estimated it (from memory)."
MINUTES_A_PAIR = 1.0
"Minutes in which one of your people compares a pair, where `prices.people_per_hour` is given. Judgement."
JUDGE = "together-llama-3.3-70b"
"The hosted open model that would judge, where none is named."
QUESTIONS = 8
"Questions that the phase ai_feedback asks of a pair: by four principles, in both orders."
QUESTION_TOKENS = 150
"Tokens of a question beside the prompt and the two answers."


def worth(agree: float, judged: float) -> tuple[float, float]:
    """What a person's and a judge's label are worth, as shares of a label that is surely right.

    Of labels that are right with probability p, errors being independent, two agree with 2a - 1 = (2p - 1)^2, and with
    those of a judge who is right with probability q with 2j - 1 = (2p - 1)(2q - 1). A label's worth is (2p - 1)^2, the
    Fisher information of a coin that is read wrongly with probability 1 - p, near even odds.

    Args:
        agree: how often two people prefer the same answer.
        judged: how often the judge prefers what a person does.
    """
    person = max(1e-6, 2 * agree - 1)
    return person, min(1.0, max(0.0, 2 * judged - 1) ** 2 / person)


def label_costs(case: Situation, given: Preferences, pairs: int, world: World) -> tuple[LabelCost, LabelCost]:
    """What comparisons by people and by a judge cost; the judge's are as many more as its labels are worth less."""
    agree, judged = given.annotators_agree or AGREEMENT, given.judge_agrees or JUDGED[given.goal or GOAL]
    person, judge = worth(agree, judged)
    hourly = case.prices.people_per_hour if case.prices else None
    usd = given.annotators_usd_per_label
    if usd is None:
        usd = PERSON_USD if hourly is None else hourly * MINUTES_A_PAIR / 60
    asked = _judge_usd(case, given, world)
    more = pairs if judge <= 0 else math.ceil(pairs * max(1.0, person / judge) - 1e-6)
    return (
        _cost("people", usd, agree, person, pairs),
        _cost("ai-feedback", asked, judged, judge, more),
    )


def _cost(
    source: Literal["people", "ai-feedback"], usd: float, agreement: float, value: float, labels: int
) -> LabelCost:
    useful = usd / value if value > 0 else 1e9
    return LabelCost(
        source=source,
        usd_per_label=usd,
        agreement=agreement,
        usd_per_useful_label=useful,
        labels=labels,
        usd=usd * labels,
    )


def _judge_usd(case: Situation, given: Preferences, world: World) -> float:
    """Dollars for a pair that a hosted judge compares."""
    price = world.hosted(given.judge) or world.catalog.api_price(JUDGE)
    traffic = case.traffic
    prompt, answer = (traffic.prompt_tokens or 0, traffic.output_tokens or 0) if traffic else (0, 0)
    read = QUESTIONS * (prompt + 2 * answer + QUESTION_TOKENS)
    return (read * (price.input or 0.0) + QUESTIONS * (price.output or 0.0)) / 1e6
