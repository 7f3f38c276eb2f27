"""Makes preference data of pairs of answers by asking a model which is better."""

from __future__ import annotations

import random
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.constitution import Constitution, Principle
from tutelage.data.problems import RowProblems
from tutelage.engine.making import load_context_model, make_dataset
from tutelage.errors import RunFailed
from tutelage.formats import Prompt, Prompted, Ranking, Record
from tutelage.models.sampling import seed_of
from tutelage.phase import Artifact
from tutelage_plugins.constitutions.asking import Question, Template
from tutelage_plugins.constitutions.judging import Judge
from tutelage_plugins.constitutions.keeping import Row, is_first_process, sort_out, tell, tell_doubts
from tutelage_plugins.constitutions.revising import transcript
from tutelage_plugins.constitutions.writing import Writer
from tutelage_plugins.phases._held_out import wilson

if TYPE_CHECKING:
    from tutelage.engine.context import StageContext
    from tutelage_plugins.phases.ai_feedback import AIFeedbackConfig

_DIGITS = 6
"Of probabilities in rows: what is beyond is rounding, which depends on `batch_size`."


class Pair(msgspec.Struct, frozen=True):
    """Two different answers to a prompt. Principles and reasoning depend on its number and the stage's seed alone."""

    number: int
    place: str
    prompt: Prompt
    answers: tuple[str, str]
    human: bool = False
    "Whether people judged it and preferred the first answer."


class Case(msgspec.Struct, frozen=True):
    """A pair to be judged by these principles."""

    pair: Pair
    principles: list[Principle]
    words: str
    "A digest of the template's, so that what was made with other words is not taken over."


def prefer(
    context: StageContext, config: AIFeedbackConfig, clamp: float, constitution: Constitution, template: Template
) -> Artifact:
    """Make the dataset of a stage of phase ai_feedback.

    Raises:
        TutelageError: when there is nothing to judge, or it can't be.
    """
    tell_doubts(context, constitution)
    seed = context.stage.trainer.seed
    pairs = pairs_of(context.records(), config.pairs, seed)
    if config.human:
        pairs += people_pairs(context.records(config.human), len(pairs))
    model, tokenizer = load_context_model(context, config.judge)
    writer = Writer(model, tokenizer, temperature=config.temperature, top_p=config.top_p, batch_size=config.batch_size)
    reasoning = config.reasoning_tokens if config.chain_of_thought else 0
    judge = Judge(writer, template, reasoning=reasoning, clamp=clamp, batch_size=config.batch_size)
    feedback = Feedback(judge, seed)
    cases = cases_of(pairs, constitution, template, config.principles, seed)
    allowed = context.stage.data.allow_loss if context.stage.data else 0.0
    fit = writer.window.fitting([(case.pair.place, longest(case, template)) for case in cases], judge.room, allowed)
    if lost := len(cases) - len(fit):
        tell(context, f"{lost:,} of {len(cases):,} pairs are left out: they are longer than the window")
    path = make_dataset(context, [cases[number] for number in fit], feedback.work, batch=config.batch_size)
    if not is_first_process():
        return Artifact("dataset", path.parent)
    kept, left = sort_out(
        path, lambda row: "human" not in row and row["probability"] >= config.min_confidence, constitution
    )
    return Artifact("dataset", path.parent, _told(context, kept, left))


def pairs_of(records: list[tuple[str, Record]], wanted: int | str, seed: int) -> list[Pair]:
    """Pairs of each record's different answers: all, or as many as `wanted`, drawn by the seed.

    Raises:
        TutelageError: for records with fewer than two answers, or when no two answers differ.
    """
    found: list[Pair] = []
    wrong = RowProblems()
    for number, (place, record) in enumerate(records):
        answers = _answers(record)
        if answers is None:
            wrong.add(place, "has no answers: a list of two or more texts", "make them with the phase comparisons")
            continue
        different = list(combinations(dict.fromkeys(answer for answer in answers if answer.strip()), 2))
        if wanted != "all" and len(different) > int(wanted):
            different = random.Random(f"pairs/{seed}/{number}").sample(different, int(wanted))
        assert isinstance(record, Prompted | Ranking)
        found += [Pair(len(found) + count, place, record.prompt, pair) for count, pair in enumerate(different)]
    if not found:
        wrong.add("data", "holds no two different answers to a prompt", "sample with a temperature over 0")
    wrong.raise_any("data")
    return found


def _answers(record: Record) -> list[str] | None:
    given = record.answers if isinstance(record, Ranking) else getattr(record, "fields", {}).get("answers")
    if not isinstance(given, list) or len(given) < 2 or not all(isinstance(answer, str) for answer in given):
        return None
    return given


def people_pairs(records: list[tuple[str, Record]], number: int) -> list[Pair]:
    """Pairs of which people preferred one, the preferred first; `number` is that of the first.

    Raises:
        TutelageError: when a record has no preference in it.
    """
    found: list[Pair] = []
    wrong = RowProblems()
    for place, record in records:
        if not isinstance(record, Ranking):
            wrong.add(place, "was not judged by people", "phase.human needs prompt, chosen and rejected")
            continue
        for one, other in combinations(range(len(record.answers)), 2):
            if record.ranks[one] == record.ranks[other]:
                continue
            better, worse = (one, other) if record.ranks[one] < record.ranks[other] else (other, one)
            answers = (record.answers[better], record.answers[worse])
            found.append(Pair(number + len(found), place, record.prompt, answers, human=True))
    wrong.raise_any("phase.human")
    return found


def cases_of(pairs: list[Pair], constitution: Constitution, template: Template, count: int, seed: int) -> list[Case]:
    """Draw the principles that each pair is judged by: `count`, or all that there are."""
    count = min(count, sum(principle.weight > 0 for principle in constitution.principles))
    return [Case(pair, constitution.draw(count, seed, pair.number), template.digest()) for pair in pairs]


def longest(case: Case, template: Template) -> str:
    """The longest question about a case."""
    request = max((principle.preference for principle in case.principles), key=len)
    return template.asked(Question(_text(case.pair.prompt), *case.pair.answers, request, 0))


class Feedback:
    """Judges pairs by principles."""

    def __init__(self, judge: Judge, seed: int) -> None:
        self._judge = judge
        self._seed = seed

    def work(self, cases: list[Case]) -> list[list[Row]]:
        """A row for each case.

        Each principle is asked about with the answers in both orders, whose mean is its label: what the model gives to
        an answer for where it stands falls out. The mean over principles is the pair's.
        """
        verdicts = iter(self._judge.verdicts([question for case in cases for question in self._questions(case)]))
        rows = []
        for case in cases:
            told = []
            for principle in case.principles:
                straight, swapped = next(verdicts), next(verdicts)
                each = {"id": principle.id, "shown_first": straight.first, "shown_second": 1 - swapped.first}
                if straight.reasoning or swapped.reasoning:
                    each["reasoning"] = [straight.reasoning, swapped.reasoning]
                told.append(each)
            rows.append([_row(case.pair, told)])
        return rows

    def _questions(self, case: Case) -> list[Question]:
        """Both orders of each principle have the same seed, so that exchanging the answers exchanges the verdicts."""
        pair = case.pair
        return [
            Question(_text(pair.prompt), *answers, principle.preference, seed_of(self._seed, pair.number, place))
            for place, principle in enumerate(case.principles)
            for answers in (pair.answers, pair.answers[::-1])
        ]


def _row(pair: Pair, told: list[dict[str, Any]]) -> Row:
    """What the dataset says of a pair.

    Args:
        told: for each principle, the probability that the pair's first answer is better, as `shown_first` and as
            `shown_second`.
    """
    first = fmean((each["shown_first"] + each["shown_second"]) / 2 for each in told)
    chosen, rejected = pair.answers
    if first < 0.5:
        chosen, rejected = rejected, chosen
        told = [
            each | {"shown_first": 1 - each["shown_second"], "shown_second": 1 - each["shown_first"]} for each in told
        ]
    for each in told:
        each |= {name: round(each[name], _DIGITS) for name in ("shown_first", "shown_second")}
    probability = round(max(first, 1 - first), _DIGITS)
    row = {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected, "probability": probability}
    row["principles"] = told
    if pair.human:
        row["human"] = 0.5 if probability == 0.5 else float(first > 0.5)
    return row


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else transcript(prompt)


def _told(context: StageContext, kept: list[Row], left: list[Row]) -> dict[str, float]:
    """Tell how it went in words and events, and give the numbers.

    Raises:
        RunFailed: when no pair was kept.
    """
    human = [row for row in left if "human" in row]
    near = [row for row in left if "human" not in row]
    if near:
        text = f"{len(near):,} of {len(kept) + len(near):,} pairs are left out: the judge hardly prefers either answer"
        context.emit("notice", text=text)
    if not kept:
        wrong = "the judge is sure of no pair"
        raise RunFailed.at(f"stages.{context.stage.name}", wrong, "lower phase.min_confidence, or take another judge")
    numbers = {
        "rows": float(len(kept)),
        "near_ties": float(len(near)),
        "confidence": fmean(row["probability"] for row in kept),
        **_of_positions([*kept, *near]),
        **(_agreement(human) if human else {}),
    }
    context.emit("conclusion", **numbers)
    return numbers


def _of_positions(rows: list[Row]) -> dict[str, float]:
    """What answers got for where they stood, before the orders were averaged.

    `position_bias` is how much more than 0.5 the answer shown first gets, on average over both orders; `order_flips`
    the share of questions to which the verdict changed with the order.
    """
    both = [(each["shown_first"], each["shown_second"]) for row in rows for each in row["principles"]]
    return {
        "position_bias": fmean((first - second) / 2 for first, second in both),
        "order_flips": fmean(float((first - 0.5) * (second - 0.5) < 0) for first, second in both),
    }


def _agreement(rows: list[Row]) -> dict[str, float]:
    """How often the judge sides with people; where it prefers neither, half. The interval is Wilson's, at 95%."""
    share = fmean(row["human"] for row in rows)
    low, high = wilson(share, len(rows))
    return {
        "human_pairs": len(rows),
        "human_agreement": share,
        "human_agreement_low": low,
        "human_agreement_high": high,
    }
