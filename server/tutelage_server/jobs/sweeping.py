"""Sweeps: a job for every combination of some fields' values."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec

from tutelage.config import override
from tutelage.errors import Problem, TutelageError

MOST_IN_A_SWEEP = 200


def expand(recipe: dict[str, Any], sweep: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The recipe with every combination of a sweep's values; the last field changes fastest.

    Raises:
        TutelageError: when a field leads nowhere, has no values, or there are too many combinations.
    """
    problems = []
    count = 1
    for field, values in sweep.items():
        count *= len(values)
        if not values:
            problems.append(Problem(place=f"sweep.{field}", wrong="has no values", fix="give some, or leave it out"))
    if count > MOST_IN_A_SWEEP:
        wrong = f"makes {count} jobs, and a sweep may make {MOST_IN_A_SWEEP}"
        problems.append(Problem(place="sweep", wrong=wrong, fix="give fewer values"))
    if problems:
        raise TutelageError(problems)
    recipes = []
    for combination in itertools.product(*sweep.values()):
        made = msgspec.json.decode(msgspec.json.encode(recipe))
        for field, value in zip(sweep, combination, strict=True):
            try:
                override(made, f"{field}={json.dumps(value)}")
            except TutelageError as error:
                fixed = [Problem(place=f"sweep.{field}", wrong=each.wrong, fix=each.fix) for each in error.problems]
                raise TutelageError(fixed) from None
        recipes.append(made)
    return recipes


def covering(sweep: dict[str, list[Any]]) -> list[int]:
    """Numbers of combinations among which every value of every field is, as few as that takes."""
    sizes = [len(values) for values in sweep.values()]
    found = []
    for round_ in range(max(sizes, default=1)):
        number = 0
        for size in sizes:
            number = number * size + round_ % size
        found.append(number)
    return list(dict.fromkeys(found))
