"""The plugin base class of rewards: what scores answers, in reinforcement learning, evaluation and simulation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.config import convert_into, did_you_mean, join
from tutelage.errors import Problem, RunFailed, TutelageError
from tutelage.formats import Prompted
from tutelage.plugin import Plugin

if TYPE_CHECKING:
    from tutelage.engine.context import StageContext
    from tutelage.plugins import Host


class Reward(Plugin):
    """Plugin base: scores answers; higher is better. What a model wrote is never run as code."""

    def references(self) -> dict[str, str]:
        """What the settings name that an earlier stage may make (`stage:NAME`), by field."""
        return {}

    def missing(self) -> str:
        """Why this reward can't work here (a package that is missing, with how to get it), or ''."""
        return ""

    def load(self, context: StageContext) -> None:
        """Get ready, once a stage and process: load a model, import a function."""

    def lacks(self, prompt: Prompted) -> str:
        """What a row lacks, as a sentence, so that answers to it can't be scored; '' when it lacks nothing."""
        return ""

    @abstractmethod
    def score(self, prompts: Sequence[Prompted], answers: Sequence[str]) -> list[float]:
        """A finite number for each answer to the prompt of the same place."""


class Weighted(msgspec.Struct):
    """A reward as a recipe asks for it."""

    name: str
    weight: float
    reward: Reward


def rewards_of(settings: Sequence[Any], host: Host, place: str, problems: list[Problem]) -> list[Weighted]:
    """The rewards that `[{kind: NAME, weight: 1.0, name: …, …}, …]` asks for; what is wrong is added to `problems`.

    A kind alone may be given as text. `name` is what metrics are called by: the kind, where it is not given.
    """
    found: list[Weighted] = []
    for index, item in enumerate(settings):
        here = f"{place}.{index}"
        given = {"kind": item} if isinstance(item, str) else item
        if not isinstance(given, dict) or not isinstance(given.get("kind"), str):
            known = ", ".join(sorted(host.classes("reward")))
            problems.append(Problem(place=join(here, "kind"), wrong="missing", fix=f"name the reward: {known}"))
            continue
        made = _reward(dict(given), host, here, problems)
        if made is not None:
            found.append(made)
    names = [each.name for each in found]
    problems += [
        Problem(place=place, wrong=f"two rewards are called {name!r}", fix="give each a name of its own")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    return found


def _reward(settings: dict[str, Any], host: Host, place: str, problems: list[Problem]) -> Weighted | None:
    kind, weight = settings.pop("kind"), settings.pop("weight", 1.0)
    name = settings.pop("name", kind)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        problems.append(Problem(place=join(place, "weight"), wrong=f"{weight!r} is not a number", fix="such as 1.0"))
        return None
    known = host.classes("reward")
    if kind not in known:
        wrong = f"no reward is called {kind!r}"
        problems.append(Problem(place=join(place, "kind"), wrong=wrong, fix=did_you_mean(kind, list(known))))
        return None
    plugin: Any = known[kind]
    before = len(problems)
    config = convert_into(problems, settings, plugin.Config, place)
    if len(problems) > before:
        return None
    reward: Reward = plugin(config)
    if missing := reward.missing():
        problems.append(Problem(place=place, wrong=missing))
    return Weighted(str(name), float(weight), reward)


def unscorable(rewards: Sequence[Weighted], prompts: Sequence[tuple[str, Prompted]]) -> list[Problem]:
    """The rows, each with its place, whose answers some reward can't score."""
    from tutelage.data.problems import RowProblems

    problems = RowProblems()
    for place, prompt in prompts:
        for each in rewards:
            if wrong := each.reward.lacks(prompt):
                problems.add(place, wrong, f"mend the row, or leave out the reward {each.name}")
    return problems.listed("data")


def total(
    rewards: Sequence[Weighted], prompts: Sequence[Prompted], answers: Sequence[str]
) -> tuple[list[float], dict[str, list[float]]]:
    """The weighted sum of all rewards for each answer, and what each of them gave.

    Raises:
        RunFailed: when a reward fails, or gives something other than a finite number for each answer.
    """
    given = {each.name: _scores(each, prompts, answers) for each in rewards}
    totals = [sum(each.weight * given[each.name][index] for each in rewards) for index in range(len(answers))]
    return totals, given


def _scores(weighted: Weighted, prompts: Sequence[Prompted], answers: Sequence[str]) -> list[float]:
    place = f"reward {weighted.name}"
    try:
        scores = [float(score) for score in weighted.reward.score(prompts, answers)]
    except TutelageError:
        raise
    except (Exception, SystemExit) as error:
        wrong = f"failed: {type(error).__name__}: {error}"
        raise RunFailed.at(place, wrong, "mend it, then tutelage resume") from error
    if len(scores) != len(answers):
        raise RunFailed.at(place, f"gave {len(scores)} scores for {len(answers)} answers", "it must give one for each")
    for prompt, answer, score in zip(prompts, answers, scores, strict=True):
        if not math.isfinite(score):
            wrong = f"gave {score} for the answer {answer[:80]!r} to {str(prompt.prompt)[-80:]!r}"
            raise RunFailed.at(place, wrong, "a reward must be a finite number")
    return scores
