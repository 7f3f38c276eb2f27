"""What an option takes before its first call: people's hours, training compute, machine work."""

from __future__ import annotations

from tutelage_advisor.costs.inputs import Item

PEOPLE_PER_HOUR = 60.0
PROMPT_HOURS = 16
TUNE_HOURS = 24
INDEX_HOURS = 40
EVALUATION_EXAMPLES = 200
MINUTES_TO_LABEL = 3
MINUTES_TO_WRITE = 5
MINUTES_TO_CLEAN = 1
MINUTES_TO_REVIEW = 1
REVIEWED_SHARE = 0.05
MACHINE_PER_EXAMPLE = 0.002
TRIES = 3
"""Judgement, each open to reading and to `prices.people_per_hour`: two days to write and test prompts, three to set up
tuning and its evaluation, five to build an index; 200 held-out examples to evaluate on; minutes for each example; a
20th of the data looked at before training; $0.002 of machine work an example (drafts, deduplication, checks); three
trainings until one is kept."""


def prompting(people_per_hour: float) -> list[Item]:
    """Prompts are written and evaluated."""
    return [_hours("write and test prompts", PROMPT_HOURS, people_per_hour), evaluation(people_per_hour)]


def retrieving(people_per_hour: float) -> list[Item]:
    """As prompting, and an index is built."""
    return [*prompting(people_per_hour), _hours("build and test the index", INDEX_HOURS, people_per_hour)]


def tuning(people_per_hour: float, write: int, clean: int, train_on: int, usd_per_training: float) -> list[Item]:
    """Data is written, cleaned and looked at, training is set up and tried, what came out is evaluated.

    Args:
        write: examples that are still to be written.
        clean: noisy examples that machines kept and people correct.
        train_on: examples that are trained on in the end.
        usd_per_training: compute of one training.
    """
    review = round(REVIEWED_SHARE * train_on)
    items = [
        _hours("set up tuning and its evaluation", TUNE_HOURS, people_per_hour),
        evaluation(people_per_hour),
        _hours("write examples", write * MINUTES_TO_WRITE / 60, people_per_hour),
        _hours("correct what is kept of noisy examples", clean * MINUTES_TO_CLEAN / 60, people_per_hour),
        _hours("look through a sample of the data", review * MINUTES_TO_REVIEW / 60, people_per_hour),
        Item(
            what="prepare data by machine",
            kind="machine",
            quantity=train_on,
            unit="example",
            usd_each=MACHINE_PER_EXAMPLE,
        ),
        Item(
            what="train, failed tries included",
            kind="training",
            quantity=TRIES,
            unit="training",
            usd_each=usd_per_training,
        ),
    ]
    return [item for item in items if item.quantity]


def tuning_again(people_per_hour: float, usd_per_training: float) -> list[Item]:
    """On a new base or changed data: a third of the set-up, the evaluation's examples stay, one training."""
    return [
        _hours("tune again and evaluate", TUNE_HOURS / 3, people_per_hour),
        Item(what="train again", kind="training", quantity=1, unit="training", usd_each=usd_per_training),
    ]


def evaluation(people_per_hour: float) -> Item:
    """Every option is evaluated on the same held-out examples."""
    hours = EVALUATION_EXAMPLES * MINUTES_TO_LABEL / 60
    return _hours(f"label {EVALUATION_EXAMPLES} examples to evaluate on", hours, people_per_hour)


def _hours(what: str, hours: float, people_per_hour: float) -> Item:
    return Item(what=what, kind="people", quantity=round(hours, 2), unit="hour", usd_each=people_per_hour)
