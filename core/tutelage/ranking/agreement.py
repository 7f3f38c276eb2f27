"""How far people agree who ranked the same answers: plain functions of lists of ranks.

Ranks are numbers, one for each answer: less is better, equal ranks are ties.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, permutations
from random import Random

Ranks = Sequence[float]
Interval = tuple[float, float]

RESAMPLES = 1000
_WORK = 2_000_000
"Additions that a bootstrap may cost; a large set of data, which varies less, gets fewer resamples."


def mid_ranks(ranks: Ranks) -> list[float]:
    """Ranks 1 … k in which answers that are tied share the mean of the places that they take (Kendall, 1945)."""
    return [sum(other < rank for other in ranks) + (sum(other == rank for other in ranks) + 1) / 2 for rank in ranks]


def signs(ranks: Ranks) -> list[int]:
    """For every pair of answers (0, 1), (0, 2) … (k-2, k-1): 1 if the first is better, -1 if worse, 0 if tied."""
    return [(second > first) - (second < first) for first, second in combinations(ranks, 2)]


def kendall_tau(one: Ranks, other: Ranks) -> float | None:
    """Kendall's tau-b of two rankings of the same answers (Kendall, 1945): 1 same order, -1 reversed, 0 unrelated.

    tau_b = (C - D) / sqrt((P - T1)(P - T2)) with C concordant and D discordant ones of P pairs, of which T1 are tied in
    the first ranking and T2 in the second. None where one of them ties all answers.
    """
    first, second = signs(one), signs(other)
    untied = sum(map(abs, first)) * sum(map(abs, second))
    if not untied:
        return None
    return sum(a * b for a, b in zip(first, second, strict=True)) / math.sqrt(untied)


def pairs_alike(one: Ranks, other: Ranks) -> float | None:
    """The share of pairs of answers, of those that both people ordered, which they ordered alike; None without any."""
    ordered = [(a, b) for a, b in zip(signs(one), signs(other), strict=True) if a and b]
    return sum(a == b for a, b in ordered) / len(ordered) if ordered else None


def right_pairs(given: Ranks, known: Ranks) -> float | None:
    """The share of pairs that are ordered in `known` which `given` orders likewise; a tie counts half."""
    ordered = [(a, b) for a, b in zip(signs(given), signs(known), strict=True) if b]
    return sum((1 + a * b) / 2 for a, b in ordered) / len(ordered) if ordered else None


Coincidences = dict[tuple[float, float], float]


def coincidences(units: Iterable[Sequence[float]]) -> Coincidences:
    """How often two values were given to the same unit (Krippendorff, 2011, step 2).

    Each unit is the list of values that people gave to it. A unit with m values counts each of its ordered pairs of
    values 1/(m-1) times; one with fewer than two values does not count.
    """
    found: Coincidences = {}
    for values in units:
        if len(values) > 1:
            for at, one in enumerate(values):
                for other in (*values[:at], *values[at + 1 :]):
                    found[one, other] = found.get((one, other), 0.0) + 1 / (len(values) - 1)
    return found


def ordinal_alpha(counts: Coincidences) -> float | None:
    """Krippendorff's alpha for ordinal values (Krippendorff, 2011, "Computing Krippendorff's Alpha-Reliability").

    alpha = 1 - (n-1) sum_{c<k} o_ck d_ck^2 / sum_{c<k} n_c n_k d_ck^2, where o_ck are the coincidences, n_c their sums,
    n the sum of these, and d_ck = (n_c + n_k)/2 + the sum of n_g of all values g between c and k. 1 is perfect
    agreement, 0 what chance would give. None where all values are the same, so that nothing could disagree.
    """
    sums: dict[float, float] = {}
    for (value, _), count in counts.items():
        sums[value] = sums.get(value, 0.0) + count
    values = sorted(sums)
    total = sum(sums.values())
    place, below = {}, 0.0
    for value in values:  # the middle of the places that a value takes: d_ck is the distance of two middles
        place[value] = below + sums[value] / 2
        below += sums[value]
    expected = sum(sums[c] * sums[k] * (place[k] - place[c]) ** 2 for c, k in combinations(values, 2))
    observed = sum(count * (place[k] - place[c]) ** 2 for (c, k), count in counts.items()) / 2
    return 1 - (total - 1) * observed / expected if expected else None


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """`ordinal_alpha` of the values that people gave to each unit."""
    return ordinal_alpha(coincidences(units))


def alpha_of_rankings(tasks: Sequence[Sequence[Ranks]]) -> tuple[float | None, Interval | None]:
    """Krippendorff's ordinal alpha of rankings, and its 95% interval.

    Args:
        tasks: for each question, the rankings that people gave. A unit is one answer of one question, its value the
            place it was given, (mid-rank - 1)/(k - 1), so that questions with different numbers of answers compare.
    Returns:
        alpha, and percentiles of a bootstrap over questions (Efron and Tibshirani, 1993, chapter 13).
    """
    counted = [found for rankings in tasks if (found := coincidences(_places(rankings)))]
    resamples = max(200, min(RESAMPLES, _WORK // max(1, sum(map(len, counted)))))

    def again(random: Random) -> float | None:
        found: Coincidences = {}
        for index, times in Counter(random.choices(range(len(counted)), k=len(counted))).items():
            for pair, count in counted[index].items():
                found[pair] = found.get(pair, 0.0) + times * count
        return ordinal_alpha(found)

    all_of_them: Coincidences = {}
    for part in counted:
        for pair, count in part.items():
            all_of_them[pair] = all_of_them.get(pair, 0.0) + count
    return ordinal_alpha(all_of_them), _interval(again, resamples) if len(counted) > 1 else None


def _places(rankings: Sequence[Ranks]) -> Iterable[list[float]]:
    placed = [[(rank - 1) / (len(ranks) - 1) for rank in mid_ranks(ranks)] for ranks in rankings]
    return map(list, zip(*placed, strict=True))


def mean_with_interval(values: Sequence[float]) -> tuple[float | None, Interval | None]:
    """The mean of one figure a question, and percentiles (95%) of a bootstrap over questions."""
    if not values:
        return None, None
    count = len(values)
    resamples = max(200, min(RESAMPLES, _WORK // count))
    interval = _interval(lambda random: sum(random.choices(values, k=count)) / count, resamples) if count > 1 else None
    return sum(values) / count, interval


def _interval(draw: Callable[[Random], float | None], resamples: int) -> Interval | None:
    random = Random(0)
    drawn = sorted(value for value in (draw(random) for _ in range(resamples)) if value is not None)
    if not drawn:
        return None
    low, high = round(0.025 * (len(drawn) - 1)), round(0.975 * (len(drawn) - 1))
    return drawn[low], drawn[high]


def reorderings(ranks: Ranks, random: Random, most: int = 120) -> list[tuple[float, ...]]:
    """The ranks given to the answers in every order (of up to 5 answers), or in `most` orders drawn at random."""
    if len(ranks) <= 5:
        return list(permutations(ranks))
    return [tuple(random.sample(list(ranks), k=len(ranks))) for _ in range(most)]
