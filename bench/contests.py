"""Contests: a work that Tutelage and a peer both do, in turns, and the figures that come of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import processes, recipes
from bench.figures import Figure
from bench.intervals import interval
from bench.processes import Ended, Failed
from bench.rows import first_tokens, write
from bench.scale import Setup

UNCOUNTED = 2
"Steps at the beginning that are left out of steady speed."
ROWS = 1000
"Of the whole process in the report."
Settings = dict[str, Any]
Targets = tuple[float, float, float]


class Turn(msgspec.Struct, kw_only=True):
    """One training by one contender."""

    work: str
    who: str
    repeat: int
    speed: float
    "Tokens (or answers) a second, over the steps after the first two."
    first_step: float
    "Seconds from the command to the end of the first step."
    seconds: float
    "Of the whole process."
    peak_gib: float
    steps: int
    amount: int
    "Tokens (or answers) in all."
    artifact: str
    learnt: int = 0
    "Of the tokens, those that are learnt, where that is told."
    computed: int = 0
    "Of the tokens, those that went through the model, where that is told."
    reward: float | None = None
    "Mean of the last iteration, where rewards are learnt from."

    def seconds_for(self, amount: float) -> float:
        """Of a whole process that does another amount, with what does not depend on it as it was measured."""
        return self.seconds + (amount - self.amount) / self.speed


@dataclass
class Contest:
    """A work, and how it is done."""

    name: str
    title: str
    kind: str
    "What TRL is asked for: `sft`, `dpo` or `grpo`; and how final losses are measured."
    unit: str
    data: Callable[[Setup], list[dict[str, Any]]]
    "The rows to learn from."
    stage: Callable[[Setup], dict[str, Any]]
    "The recipe's stage: phase, adapter, trainer, and what is to be said of its data."
    settings: list[Settings]
    "The peer's settings to try, the one taken untried first."
    targets: Targets
    "For speed, the whole process and peak memory."
    per_row: Callable[[Setup], float]
    "Tokens (or answers) that a row becomes."
    peer: str = ""
    "The work that TRL is given, where it is not called as this one."

    @property
    def asked(self) -> str:
        """The work that TRL is given."""
        return self.peer or self.name

    def file(self, setup: Setup) -> tuple[Path, int]:
        """The rows as a file, and how many they are."""
        rows = self.data(setup)
        return write(setup.work / "data" / f"{self.name}.jsonl", rows), len(rows)


def ours(contest: Contest, setup: Setup, repeat: int) -> Turn:
    """Train with `tutelage train`."""
    folder = setup.work / f"tutelage-{contest.name}-{repeat}"
    file, _ = contest.file(setup)
    variables = setup.variables("tutelage")
    shutil.rmtree(Path(variables["TUTELAGE_CACHE"]) / "tokens", ignore_errors=True)
    command = recipes.train(setup, folder, file, **contest.stage(setup))
    ended = processes.run(command, folder, variables=variables)
    per_step = _answers(contest)
    steps = [(per_step or int(event["tokens"]), at) for event, at in ended.events("step")]
    outcome = ended.lines[-1][0]["stages"][0]
    rewards = [event["reward"] for event, _ in ended.events("step") if "reward" in event]
    turn = turn_of(contest.name, "tutelage", repeat, steps, ended, outcome["artifact"], rewards)
    turn.learnt, turn.computed = (
        sum(event.get(name, 0) for event, _ in ended.events("step")) for name in ("learnt_tokens", "computed_tokens")
    )
    return turn


def theirs(contest: Contest, setup: Setup, repeat: int, settings: Settings, steps: int | None = None) -> Turn:
    """Train with TRL, in as many steps as ours took where that is known."""
    folder = setup.work / f"trl-{contest.asked}-{repeat}"
    asked = _request(contest, setup, folder, steps, settings=settings)
    ended = processes.ask("bench.peer", asked, folder, **_caches(setup))
    taken = [(int(line["amount"]), at) for line, at in ended.lines if "amount" in line]
    rewards = [line["reward"] for line, _ in ended.lines if "reward" in line]
    return turn_of(contest.asked, "trl", repeat, taken, ended, str(folder / "out"), rewards)


def try_settings(contest: Contest, setup: Setup) -> list[dict[str, Any]]:
    """What the peer's settings reach, the fastest first; those that failed last, with the reason.

    Raises:
        Failed: when none works.
    """
    fitting = [each for each in contest.settings if _tokens_at_once(each) <= setup.scale.tokens_per_step]
    candidates = (fitting or contest.settings)[: setup.scale.trials]
    if len(candidates) == 1:
        return [{"settings": candidates[0], "speed": None}]
    folder = setup.work / f"trials-{contest.name}"
    ended = processes.ask("bench.peer", _request(contest, setup, folder, trials=candidates), folder, **_caches(setup))
    told = sorted((line for line, _ in ended.lines if "settings" in line), key=lambda line: -line.get("speed", 0.0))
    if not told or "speed" not in told[0]:
        raise Failed(f"none of TRL's settings works: {[line.get('error') for line in told]}")
    return told


def hold(
    contests: list[Contest],
    chosen: dict[str, Settings],
    setup: Setup,
    say: Callable[[str], None],
    failures: dict[str, str],
) -> list[Turn]:
    """All repeats of all contests in turns, the contender that begins changing each time.

    Args:
        chosen: the peer's settings, by what it is asked; what is not in there has no peer.
        failures: is told of contenders that failed; they have no further turn.
    """
    turns: list[Turn] = []
    for repeat in range(setup.scale.repeats):
        for contest in contests:
            for who in ("tutelage", "trl")[:: 1 if repeat % 2 == 0 else -1]:
                name = contest.name if who == "tutelage" else contest.asked
                asked_already = any((turn.work, turn.who, turn.repeat) == (name, who, repeat) for turn in turns)
                if asked_already or f"{name}, {who}" in failures or (who == "trl" and name not in chosen):
                    continue
                mine = next((turn.steps for turn in _of(turns, contest.name, "tutelage")), None)
                try:
                    turn = ours(contest, setup, repeat) if who == "tutelage" else theirs(
                        contest, setup, repeat, chosen[name], mine
                    )  # fmt: skip
                except (Failed, LookupError, ValueError) as error:
                    failures[f"{name}, {who}"] = str(error)
                    say(f"  {name}, {who}: {error}")
                    continue
                turns.append(turn)
                told = f"{turn.speed:.4g} {contest.unit}, {turn.seconds:.0f} s, {turn.peak_gib:.2f} GiB"
                say(f"  {name}, {who}, {repeat + 1} of {setup.scale.repeats}: {told}")
    return turns


def figures(contests: list[Contest], turns: list[Turn], setup: Setup) -> list[Figure]:
    """The contests' figures: speed, the whole process, memory. Without a peer's, where it failed in a repeat."""
    made = []
    for contest in contests:
        mine, other = _of(turns, contest.name, "tutelage"), _of(turns, contest.asked, "trl")
        if not mine:
            continue
        if len(other) != len(mine):
            other = []
        amount = ROWS * contest.per_row(setup)
        named: dict[str, Any] = {"section": "works", "name": contest.title}
        speed, whole, memory = contest.targets
        made += [
            Figure(
                **named, measure="speed, steady", unit=contest.unit, better="higher", target=speed,
                ours=[turn.speed for turn in mine], peer=[turn.speed for turn in other], note=_rewards(mine, other),
            ),
            Figure(
                **named, measure=f"whole process, {ROWS:,} rows", unit="s", better="lower", target=whole,
                over="peer/ours", note=_projection(mine[0], contest),
                ours=[turn.seconds_for(amount) for turn in mine], peer=[turn.seconds_for(amount) for turn in other],
            ),
            Figure(
                **named, measure="whole process, as run", unit="s", better="lower", over="peer/ours",
                note=f"{mine[0].steps} steps", ours=[turn.seconds for turn in mine],
                peer=[turn.seconds for turn in other],
            ),
            Figure(
                **named, measure="peak memory", unit="GiB", better="lower", target=memory,
                ours=[turn.peak_gib for turn in mine], peer=[turn.peak_gib for turn in other],
            ),
        ]  # fmt: skip
    return made


def losses(contests: list[Contest], turns: list[Turn], setup: Setup) -> list[Figure]:
    """Final losses of the first repeat on held-out rows; rewards are drawn, and so not compared."""
    from bench.rows import preferences

    kinds = {contest.name: contest.kind for contest in contests}
    sides = ("tutelage", "trl")  # what LitGPT saves is no model of transformers
    kept = [turn for turn in turns if turn.repeat == 0 and turn.who in sides and kinds.get(turn.work) in ("sft", "dpo")]
    if not kept:
        return []
    artifacts = [
        {"name": f"{turn.work} {turn.who}", "folder": turn.artifact, "kind": kinds[turn.work]} for turn in kept
    ]
    asked = {
        "model": setup.model, "rows": setup.held_out, "pairs": preferences(setup.held_out), "artifacts": artifacts,
    }  # fmt: skip
    ended = processes.ask("bench.scoring", asked, setup.work / "scoring")
    found = {line["name"]: line["loss"] for line, _ in ended.lines if "loss" in line}
    made = []
    for contest in contests:
        mine, other = found.get(f"{contest.name} tutelage"), found.get(f"{contest.name} trl")
        if mine:
            made.append(
                Figure(
                    section="works", name=contest.title, measure="final loss, held out", unit="nats", better="lower",
                    ours=[mine], peer=[other] if other else [], target=1.01 if other else None,
                    note=f"{len(setup.held_out)} rows, float32",
                )
            )  # fmt: skip
    return made


def _of(turns: Iterable[Turn], work: str, who: str) -> list[Turn]:
    return [turn for turn in turns if (turn.work, turn.who) == (work, who)]


def _tokens_at_once(settings: Settings) -> int:
    """In a packed micro-batch, which can't be larger than a step."""
    return int(settings["batch"] * settings["length"]) if settings.get("packing") else 0


def _projection(turn: Turn, contest: Contest) -> str:
    speed = interval([turn.speed]).middle
    return f"from {turn.amount:,} {contest.unit.split('/')[0]} that were trained on, at {speed:.4g} {contest.unit}"


def _rewards(mine: list[Turn], other: list[Turn]) -> str:
    if mine[0].reward is None:
        return ""
    theirs = f", TRL's {other[0].reward:.3f}" if other and other[0].reward is not None else ""
    return f"mean reward of the last iteration {mine[0].reward:.3f}{theirs}: drawn, so they differ"


def _answers(contest: Contest) -> int:
    from bench.scale import PROMPTS, SAMPLES

    return PROMPTS * SAMPLES if contest.kind == "grpo" else 0


def _request(contest: Contest, setup: Setup, folder: Path, steps: int | None = None, **more: Any) -> dict[str, Any]:
    file, count = contest.file(setup)
    counts = first_tokens(setup.counts, setup.counts, setup.tokens) if contest.kind == "sft" else []
    if steps is None or contest.kind != "dpo":  # whose tokens are known to who tokenises them
        steps = max(1, round(sum(counts) / setup.scale.tokens_per_step)) if counts else setup.scale.steps
    return {
        "work": contest.asked,
        "model": setup.model,
        "data": str(file),
        "out": str(folder / "out"),
        "tokens_per_step": setup.scale.tokens_per_step,
        "rows_per_step": max(1, round(count / steps)),
        "steps": steps,
        "lengths": counts,
        **more,
    }


def _caches(setup: Setup) -> dict[str, Any]:
    """TRL reads and tokenises its rows anew in each turn, as Tutelage does."""
    datasets = setup.work / "caches" / f"datasets-{time.monotonic_ns()}"
    return {"variables": {**setup.variables("trl"), "HF_DATASETS_CACHE": str(datasets)}}


def turn_of(
    work: str, who: str, repeat: int, steps: list[tuple[int, float]], ended: Ended, artifact: str, rewards: list[float]
) -> Turn:
    """Steady speed by the time at which steps were told to have ended, whatever else was done meanwhile.

    Raises:
        Failed: when there were not enough steps.
    """
    if len(steps) <= UNCOUNTED:
        raise Failed(f"{who} took {len(steps)} steps, of which the first {UNCOUNTED} don't count: give more rows")
    steady = sum(amount for amount, _ in steps[UNCOUNTED:]) / (steps[-1][1] - steps[UNCOUNTED - 1][1])
    return Turn(
        work=work,
        who=who,
        repeat=repeat,
        speed=steady,
        first_step=steps[0][1],
        seconds=ended.seconds,
        peak_gib=ended.peak_gib,
        steps=len(steps),
        amount=sum(amount for amount, _ in steps),
        artifact=artifact,
        reward=rewards[-1] if rewards else None,
    )
