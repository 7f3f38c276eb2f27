"""The order that a person types, such as `b a=c d`."""

from __future__ import annotations

import re
from string import ascii_lowercase

MOST_ANSWERS = len(ascii_lowercase)


def parse_order(text: str, count: int) -> list[int]:
    """The rank of each of `count` answers, lettered a, b, c …, from an order best to worst; `=` stands between ties.

    Letters are parted by spaces, commas or `>`. Ranks are 1, 2 …; after a tie the next rank follows without a gap.

    Raises:
        ValueError: with a sentence, when a letter is unknown, missing or there twice.
    """
    letters = ascii_lowercase[:count]
    shape = re.sub(r"\s*=\s*", "=", text.strip().lower())
    groups = [group.split("=") for group in re.split(r"[\s,>]+", shape) if group]
    named = [letter for group in groups for letter in group]
    for letter in named:
        if letter not in letters or len(letter) != 1:
            known = f"the answers are {', '.join(letters)}; part them with spaces"
            raise ValueError(f"{letter!r} is no answer: {known}" if letter else f"an = stands alone: {known}")
        if named.count(letter) > 1:
            raise ValueError(f"{letter} is there twice; name each answer once")
    missing = [letter for letter in letters if letter not in named]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{', '.join(missing)} {verb} missing; name every answer")
    return [next(rank for rank, group in enumerate(groups, 1) if letter in group) for letter in letters]


def tidied(ranks: list[float]) -> list[int]:
    """The same order in ranks 1, 2 … without gaps."""
    places = sorted(set(ranks))
    return [places.index(rank) + 1 for rank in ranks]
