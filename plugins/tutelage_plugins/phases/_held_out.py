"""How well a reward model orders answers that it did not learn from, and by what: worth, or mere length."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from itertools import combinations
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tutelage.data.batches import Examples
    from tutelage.engine.learner import Learner

    Floats = NDArray[np.float64]

LENGTH_ALONE = 0.9
"The share of pairs in which a model must side with the longer answer (or the shorter) to be said to know length alone."
_BINS = 10


class Answers(msgspec.Struct, eq=False):
    """A held-out ranking, and what a model gave its answers; arrays are (answers,)."""

    prompt: str
    "A digest of the prompt."
    names: list[str]
    "A digest of each answer with its prompt."
    ranks: Floats
    lengths: Floats
    "Of the answers alone, in tokens."
    scores: Floats
    probability: float = 1.0
    "Of a pair: that the better-ranked one is better."


class Pair(msgspec.Struct, frozen=True):
    """A better and a worse answer: their scores and lengths."""

    prompt: str
    ranking: int
    better: float
    worse: float
    longer: float
    "By how many tokens the better one is longer."
    probability: float

    @property
    def difference(self) -> float:
        """Between their scores."""
        return self.better - self.worse

    @property
    def right(self) -> float:
        """Whether the model orders them as people did: 1, 0, or 0.5 where it scores both the same."""
        return _side(self.difference)


def judged(learner: Learner, held_out: Examples) -> list[Answers]:
    """Score held-out rankings with the model as it is now; all processes take part, and each has all scores."""
    import torch
    import torch.distributed as dist

    from tutelage.engine.forward import sequence_scores

    examples = [held_out[index] for index in range(len(held_out))]
    starts = np.cumsum([0, *(len(tokens.lengths) for tokens in examples)])
    scores = torch.zeros(int(starts[-1]), dtype=torch.float64)
    learner.model.eval()
    for share in learner.cut(np.arange(len(held_out), dtype=np.int64), held_out):
        batch = learner.collate(share, held_out)
        with torch.no_grad(), learner.trainer.precision_plugin.forward_context():
            found = sequence_scores(learner.model, batch)
        if len(share):
            scores[np.concatenate([np.arange(starts[index], starts[index + 1]) for index in share])] = (
                found.double().cpu()
            )
    learner.model.train()
    if learner.trainer.world_size > 1:
        scores = scores.to(learner.device if learner.device.type == "cuda" else "cpu")
        dist.all_reduce(scores)
    each = np.split(scores.cpu().numpy(), starts[1:-1])
    return [_answers(tokens, given) for tokens, given in zip(examples, each, strict=True)]


def _answers(tokens: Any, scores: Floats) -> Answers:
    from tutelage_plugins.phases.reward_model import PROBABILITY, RANK

    parts = tokens.sequences()
    asked = parts[0].ids[: int(np.argmax(parts[0].learn))]
    return Answers(
        prompt=_digest(asked),
        names=[_digest(part.ids) for part in parts],
        ranks=tokens.values[:, RANK].astype(np.float64),
        lengths=np.array([part.learn.sum() for part in parts], dtype=np.float64),
        scores=scores,
        probability=float(tokens.values[0, PROBABILITY]),
    )


def _digest(ids: Any) -> str:
    return hashlib.blake2b(ids.tobytes(), digest_size=12).hexdigest()


def report_on(answers: list[Answers]) -> dict[str, Any]:
    """What there is to tell of a model's scores of held-out rankings.

    Accuracy is a mean over rankings of the share of their pairs that the model orders as people did. Its interval is
    Wilson's at 95% (1927) with the number of different prompts as the sample's size: judgements of one prompt are not
    independent, and a mean of shares varies no more than a single trial does.
    """
    pairs = list(_pairs(answers))
    if not pairs:
        return {"held_out_rankings": len(answers), "verdict": ["no two held-out answers differ in rank"]}
    accuracy, low, high = accuracy_of(pairs)
    told: dict[str, Any] = {
        "held_out_rankings": len(answers),
        "held_out_pairs": len(pairs),
        "held_out_prompts": len({pair.prompt for pair in pairs}),
        "held_out_accuracy": accuracy,
        "held_out_accuracy_low": low,
        "held_out_accuracy_high": high,
        "calibration": calibration(pairs),
        "scores": {
            "better": _distribution([pair.better for pair in pairs]),
            "worse": _distribution([pair.worse for pair in pairs]),
        },
        "length": length(pairs, answers),
    }
    told["calibration_error"] = told["calibration"]["error"]
    told["length_correlation"] = told["length"]["correlation"]
    if agreement := annotators(answers):
        told["annotators"] = agreement
    told["verdict"] = _verdict(told)
    return told


def _pairs(answers: list[Answers]) -> Iterable[Pair]:
    for ranking, each in enumerate(answers):
        for first, second in combinations(range(len(each.ranks)), 2):
            if each.ranks[first] == each.ranks[second]:
                continue
            better, worse = (first, second) if each.ranks[first] < each.ranks[second] else (second, first)
            yield Pair(
                each.prompt,
                ranking,
                float(each.scores[better]),
                float(each.scores[worse]),
                float(each.lengths[better] - each.lengths[worse]),
                each.probability,
            )


def accuracy_of(pairs: list[Pair]) -> tuple[float, float, float]:
    """Accuracy with its interval's ends."""
    shares: dict[int, list[float]] = {}
    for pair in pairs:
        shares.setdefault(pair.ranking, []).append(pair.right)
    mean = float(np.mean([np.mean(share) for share in shares.values()]))
    return mean, *wilson(mean, len({pair.prompt for pair in pairs}))


def wilson(share: float, trials: int) -> tuple[float, float]:
    """The 95% score interval of a binomial share (Wilson 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def calibration(pairs: list[Pair]) -> dict[str, Any]:
    """How sure the model is of its order, beside how often it is right, in bins of equal width from 0.5 to 1.

    The error is the expected calibration error (Guo et al. 2017, equation 3). How sure it is that an answer is better
    is the sigmoid of the difference of scores (Bradley & Terry 1952).
    """
    sure = np.array([1 / (1 + math.exp(-min(abs(pair.difference), 500.0))) for pair in pairs])
    likely = np.array([pair.probability for pair in pairs])
    right = np.array([pair.right for pair in pairs])
    right = right * likely + (1 - right) * (1 - likely)
    place = np.minimum(((sure - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    bins = []
    error = 0.0
    for number in sorted(set(place.tolist())):
        here = place == number
        error += float(here.mean()) * abs(float(sure[here].mean() - right[here].mean()))
        bins.append(
            {
                "from": 0.5 + number / (2 * _BINS),
                "to": 0.5 + (number + 1) / (2 * _BINS),
                "sure": float(sure[here].mean()),
                "right": float(right[here].mean()),
                "pairs": int(here.sum()),
            }
        )
    return {"error": error, "bins": bins}


def length(pairs: list[Pair], answers: list[Answers]) -> dict[str, Any]:
    """What length alone would achieve, and how far the model goes by it.

    `correlation` is Spearman's, over all answers, between score and length, each less its mean over the ranking.
    """
    differing = [pair for pair in pairs if pair.longer]
    scores = np.concatenate([each.scores - each.scores.mean() for each in answers])
    lengths = np.concatenate([each.lengths - each.lengths.mean() for each in answers])
    told: dict[str, Any] = {"pairs_of_unlike_length": len(differing), "correlation": _spearman(scores, lengths)}
    if differing:
        told["always_longer_accuracy"] = _mean(_side(pair.longer) for pair in differing)
        told["always_shorter_accuracy"] = 1 - told["always_longer_accuracy"]
        told["prefers_longer"] = _mean(_side(pair.difference * math.copysign(1, pair.longer)) for pair in differing)
    for name, chosen in (
        ("where_shorter_is_better", [pair for pair in differing if pair.longer < 0]),
        ("where_longer_is_better", [pair for pair in differing if pair.longer > 0]),
    ):
        if chosen:
            accuracy, low, high = accuracy_of(chosen)
            told[name] = {"pairs": len(chosen), "accuracy": accuracy, "low": low, "high": high}
    return told


def annotators(answers: list[Answers]) -> dict[str, Any]:
    """How far those who judged agree with each other, where that is known: from the same answers judged several times,
    or from the probabilities that rows give.

    Of two who each are right with a chance q, the share of agreement is q^2 + (1 - q)^2. The q that gives the share
    found is what a model that is always right would score against one of them.
    """
    given: dict[tuple[str, str], list[int]] = {}
    for each in answers:
        for first, second in combinations(range(len(each.names)), 2):
            sign = int(np.sign(each.ranks[second] - each.ranks[first]))
            pair = (each.names[first], each.names[second])
            if pair[0] > pair[1]:
                pair, sign = (pair[1], pair[0]), -sign
            given.setdefault(pair, []).append(sign)
    repeated = [signs for signs in given.values() if len(signs) > 1]
    if repeated:
        alike = [_mean(float(one == other) for one, other in combinations(signs, 2)) for signs in repeated]
        agreement, known_from = _mean(alike), f"{len(repeated)} pairs that were judged more than once"
    elif soft := [each.probability for each in answers if 0 < each.probability < 1]:
        agreement, known_from = _mean(p * p + (1 - p) ** 2 for p in soft), f"the probabilities of {len(soft)} pairs"
    else:
        return {}
    most = 0.5 + 0.5 * math.sqrt(max(0.0, 2 * agreement - 1))
    return {"agreement": agreement, "known_from": known_from, "highest_accuracy": most}


def _verdict(told: dict[str, Any]) -> list[str]:
    """The findings as sentences."""
    accuracy, low, high = (told[f"held_out_accuracy{part}"] for part in ("", "_low", "_high"))
    interval = f"{accuracy:.1%} of held-out pairs (95% interval {low:.1%} to {high:.1%})"
    if low > 0.5:
        sentences = [f"orders {interval} as people did, which is better than chance"]
    elif high < 0.5:
        sentences = [f"orders {interval} as people did, which is worse than chance: are the ranks the wrong way round?"]
    else:
        sentences = [f"orders {interval} as people did, which can't be told from chance"]
    if "annotators" in told:
        found = told["annotators"]
        agree, most = found["agreement"], found["highest_accuracy"]
        sentences.append(f"people agree with each other in {agree:.1%}, so at most about {most:.1%} can be reached")
    return [*sentences, *_by_length(told["length"], accuracy)]


def _by_length(told: dict[str, Any], accuracy: float) -> list[str]:
    prefers = told.get("prefers_longer")
    if prefers is None:
        return []
    favoured, other = ("longer", "shorter") if prefers >= 0.5 else ("shorter", "longer")
    share = max(prefers, 1 - prefers)
    rule = told[f"always_{favoured}_accuracy"]
    against = told.get(f"where_{other}_is_better")
    where = f"; where the {other} one is better it is right in {against['accuracy']:.1%}" if against else ""
    if share >= LENGTH_ALONE:
        return [
            f"it has learnt length and little else: it prefers the {favoured} answer in {share:.1%} of pairs{where} "
            f"(always preferring the {favoured} would be right in {rule:.1%})"
        ]
    if rule >= accuracy:
        return [f"always preferring the {favoured} answer would do as well: it is right in {rule:.1%} of pairs"]
    if against and against["high"] < 0.5:
        return [f"it leans on length: it prefers the {favoured} answer in {share:.1%} of pairs{where}"]
    return []


def _side(number: float) -> float:
    """1 above 0, 0 below it, and 0.5 at it."""
    return 0.5 * (1 + (number > 0) - (number < 0))


def _mean(numbers: Iterable[float]) -> float:
    return float(np.mean(list(numbers)))


def _distribution(scores: list[float]) -> dict[str, float]:
    quartiles = np.quantile(scores, [0.05, 0.25, 0.5, 0.75, 0.95])
    names = ("p5", "p25", "p50", "p75", "p95")
    return {
        "mean": float(np.mean(scores)),
        "deviation": float(np.std(scores)),
        **dict(zip(names, map(float, quartiles), strict=True)),
    }


def _spearman(one: Floats, other: Floats) -> float:
    """The rank correlation, ties sharing their mean rank; 0 where either is constant."""
    first, second = _mean_ranks(one), _mean_ranks(other)
    if not first.std() or not second.std():
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _mean_ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return means
