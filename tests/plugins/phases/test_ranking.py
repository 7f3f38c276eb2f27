"""The ranking phase in whole runs: it waits for people, goes on with what they said, and says when nobody was asked."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from training import events, recipe

import tutelage
from tutelage.errors import RunWaiting, TutelageError
from tutelage.plugins import host
from tutelage.ranking.desk import Desk, desk_folder
from tutelage.ranking.tasks import Task
from tutelage_plugins.formats.ranking import Rankings
from tutelage_plugins.phases.ranking import Ranking

MAKERS = [{"model": "secret-a"}, {"model": "secret-b"}, {"model": "secret-c"}]


def write_comparisons(path: Path, rows: int = 12) -> Path:
    """Three answers of 1, 2 and 3 words, in any order."""
    generator = random.Random(0)
    with path.open("w") as file:
        for number in range(rows):
            answers = ["cat", "the cat", "the cat sat"]
            generator.shuffle(answers)
            row = {"prompt": f"question {number}", "answers": answers, "made_by": MAKERS}
            file.write(json.dumps(row) + "\n")
    return path


def write_gold(path: Path, **changes: Any) -> Path:
    rows = [{"prompt": f"known {number}", "answers": ["yes", "no"], "ranks": [1, 2], **changes} for number in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def start(tiny_model: Any, tmp_path: Path) -> Any:
    """Call as `start(people=2)`: a run with a ranking stage; or `start(check=True, …)`: only look it through."""
    data = write_comparisons(tmp_path / "comparisons.jsonl")

    def run(check: bool = False, data: Path = data, **settings: Any) -> Any:
        made = recipe(tiny_model("qwen2"), data)
        made["stages"][0].update(name="rank", phase={"kind": "ranking", **settings})
        return tutelage.check(made) if check else tutelage.train(made, out=tmp_path / "run")

    return run


def words(task: Task) -> list[float]:
    """Shorter is better."""
    return [float(len(answer.split())) for answer in task.answers]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]


def test_the_run_waits_for_people_and_goes_on_with_what_they_said(start: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunWaiting, match=r"0 of 24 judgements are in; tutelage rank .*run .*tutelage resume") as raised:
        start(people=["ann", "bob", "cat"], overlap=2, gold=str(write_gold(tmp_path / "gold.jsonl")))
    assert raised.value.exit_code == 3
    record = json.loads((run / "run.json").read_text())
    assert (record["state"], record["stages"][0]["state"]) == ("waiting", "waiting")
    desk = Desk.open(desk_folder(run, "rank"))
    for person in ("ann", "bob"):
        for task in desk.pending(person):
            desk.judge(person, task, "ranking", task.gold or words(task))
    with pytest.raises(RunWaiting, match="16 of 24 judgements are in"):
        tutelage.resume(run)
    first, *others = [task for task in desk.pending("cat") if task.gold is None]
    desk.judge("cat", first, "ranking", [2, 2, 1])
    for task in [*others, *(task for task in desk.pending("cat") if task.gold)]:
        desk.judge("cat", task, "skip")
    result = tutelage.resume(run)
    assert result.state == "succeeded"
    assert result.stages[0].kind == "dataset"
    rows = rows_of(result.artifact)
    assert [row["prompt"] for row in rows] == [f"question {number}" for number in range(12)]
    assert all(row["by"] == "people" for row in rows)
    assert all(row["made_by"] == MAKERS for row in rows)
    assert {row["people"] for row in rows} == {1, 2}
    for row in rows:
        if row["prompt"] != first.prompt:
            assert row["ranks"] == [len(answer.split()) for answer in row["answers"]]
            assert row["agreement"] == (1 if row["people"] == 2 else None)
        Rankings().convert(row)
    (told,) = events(run, "ranking")
    assert (told["rows"], told["judgements"], told["simulated"], told["by"]) == (12, 24, 0, "people")
    assert result.stages[0].metrics["simulated"] == 0
    report = json.loads((result.artifact / "agreement.json").read_text())
    assert [person["name"] for person in report["people"]] == ["ann", "bob", "cat"]
    assert report["people"][0]["gold_right"] == 1


def test_a_random_clicker_is_told_and_can_be_left_out(start: Any, tmp_path: Path) -> None:
    run, generator = tmp_path / "run", random.Random(1)
    data = write_comparisons(tmp_path / "many.jsonl", 40)
    with pytest.raises(RunWaiting):
        start(people=["ann", "bob", "eve"], overlap=3, doubtful="wait", data=data)
    desk = Desk.open(desk_folder(run, "rank"))
    for person in ("ann", "bob", "eve"):
        for task in desk.pending(person):
            ranks = [float(rank) for rank in generator.sample(range(1, 4), 3)]
            desk.judge(person, task, "ranking", ranks if person == "eve" else words(task))
    with pytest.raises(RunWaiting, match=r"eve can't be told from .* --set 'stages.rank.phase.exclude=\[eve\]'"):
        tutelage.resume(run)
    result = tutelage.resume(run, overrides=["stages.rank.phase.exclude=[eve]"])
    rows = rows_of(result.artifact)
    assert [row["ranks"] for row in rows] == [[len(answer.split()) for answer in row["answers"]] for row in rows]
    assert all(row["people"] == 2 for row in rows)
    assert result.stages[0].metrics["alpha"] == pytest.approx(1)
    assert result.stages[0].metrics["people"] == 2


@pytest.mark.parametrize("doubtful", ["tell", "exclude"])
def test_what_becomes_of_a_random_clicker_otherwise(start: Any, tmp_path: Path, doubtful: str) -> None:
    run, generator = tmp_path / "run", random.Random(1)
    with pytest.raises(RunWaiting):
        start(
            people=["ann", "bob", "eve"], overlap=3, doubtful=doubtful, data=write_comparisons(tmp_path / "m.jsonl", 40)
        )
    desk = Desk.open(desk_folder(run, "rank"))
    for person in ("ann", "bob", "eve"):
        for task in desk.pending(person):
            ranks = [float(rank) for rank in generator.sample(range(1, 4), 3)]
            desk.judge(person, task, "ranking", ranks if person == "eve" else words(task))
    result = tutelage.resume(run)
    told = " ".join(event["text"] for event in events(run, "notice"))
    assert "eve can't be told from somebody who orders at random" in told
    assert "ann" not in told
    assert {row["people"] for row in rows_of(result.artifact)} == ({2} if doubtful == "exclude" else {3})
    assert result.stages[0].metrics["doubtful"] == (0 if doubtful == "exclude" else 1)


def test_people_who_hardly_agree_are_told(start: Any, tmp_path: Path) -> None:
    with pytest.raises(RunWaiting):
        start(people=2, overlap=2)
    desk = Desk.open(desk_folder(tmp_path / "run", "rank"))
    desk.join("ann")
    desk.join("bob")
    for number, task in enumerate(desk.plan.tasks):
        desk.judge("ann", task, "ranking", words(task))
        desk.judge("bob", task, "ranking", [-rank if number % 3 else rank for rank in words(task)])
    result = tutelage.resume(tmp_path / "run")
    told = [event["text"] for event in events(tmp_path / "run", "notice")]
    assert any("people hardly agree: Kendall's tau is -0.33" in text for text in told)
    assert any("no row is made of 8 prompts (8 all tied)" in text for text in told)
    assert len(rows_of(result.artifact)) == 4
    assert result.stages[0].metrics["left_out"] == 8


def test_nothing_to_learn_from_is_told_and_nothing_is_lost(start: Any, tmp_path: Path) -> None:
    with pytest.raises(RunWaiting):
        start()
    desk = Desk.open(desk_folder(tmp_path / "run", "rank"))
    for task in desk.plan.tasks:
        desk.judge("ann", task, "bad")
    with pytest.raises(TutelageError, match="no prompt has answers of which one is preferred"):
        tutelage.resume(tmp_path / "run")
    assert len(desk.said()) == 12


def test_enough_is_enough(start: Any, tmp_path: Path) -> None:
    with pytest.raises(RunWaiting, match="0 of 6 judgements"):
        start(enough=0.5)
    desk = Desk.open(desk_folder(tmp_path / "run", "rank"))
    for task in desk.plan.tasks[:6]:
        desk.judge("ann", task, "ranking", words(task))
    assert len(rows_of(tutelage.resume(tmp_path / "run").artifact)) == 6


LONG = {"kind": "length", "target": 10}


def test_a_simulation_ranks_at_once_and_says_so_everywhere(start: Any, tmp_path: Path) -> None:
    result = start(people=3, overlap=2, simulated={**LONG, "noise": 0.1, "tie_margin": 0.01})
    rows = rows_of(result.artifact)
    assert len(rows) == 12
    assert all(row["by"] == "simulated" for row in rows)
    right = [row["ranks"] == [4 - len(answer.split()) for answer in row["answers"]] for row in rows]
    assert sum(right) >= 10
    assert result.stages[0].metrics["simulated"] == 1
    assert events(tmp_path / "run", "ranking")[0]["by"] == "simulated"
    told = [event["text"] for event in events(tmp_path / "run", "notice")]
    assert "rank: nobody is asked: answers are ranked by the reward length (simulated)" in told
    judged = desk_folder(tmp_path / "run", "rank") / "judgements.jsonl"
    assert all(json.loads(line)["by"] == "simulated" for line in judged.read_text().splitlines())


def test_a_simulated_stage_can_be_given_to_people_after_all(start: Any, tmp_path: Path) -> None:
    start(simulated=LONG)
    with pytest.raises(RunWaiting, match="0 of 12 judgements"):
        tutelage.resume(tmp_path / "run", overrides=["stages.rank.phase.simulated=null"])
    desk = Desk.open(desk_folder(tmp_path / "run", "rank"))
    for task in desk.plan.tasks:
        desk.judge("ann", task, "ranking", words(task))
    rows = rows_of(tutelage.resume(tmp_path / "run").artifact)
    assert all(row["by"] == "people" for row in rows)
    assert all(row["ranks"] == [len(answer.split()) for answer in row["answers"]] for row in rows)


def test_the_same_seed_simulates_the_same_rankings(start: Any, tmp_path: Path) -> None:
    settings = {"people": 2, "overlap": 2, "simulated": {**LONG, "noise": 2.0}}
    first = rows_of(start(**settings).artifact)
    (tmp_path / "run").rename(tmp_path / "before")
    assert rows_of(start(**settings).artifact) == first
    (tmp_path / "run").rename(tmp_path / "once-more")
    assert rows_of(start(**{**settings, "simulated": LONG}).artifact) != first


def test_a_ranking_can_be_asked_anew(start: Any, tmp_path: Path) -> None:
    """Rows that are rankings already: people see the answers, not the ranks."""
    data = tmp_path / "ranked.jsonl"
    data.write_text(json.dumps({"prompt": "p", "answers": ["x", "y"], "ranks": [1, 2]}) + "\n")
    with pytest.raises(RunWaiting):
        start(data=data)
    desk = Desk.open(desk_folder(tmp_path / "run", "rank"))
    assert [(task.answers, task.gold) for task in desk.plan.tasks] == [(["x", "y"], None)]


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"people": []}, "people names nobody"),
        ({"people": 0}, "people must be names, or a number"),
        ({"people": ["ann", "Ann"]}, "people names 'ann' twice"),
        ({"people": ["a/b"]}, "'a/b' can't be a person's name"),
        ({"people": 2, "overlap": 3}, "overlap is 3, more than the people who rank (2)"),
        ({"people": ["ann"], "exclude": ["bob"]}, "exclude names 'bob', who is not among people"),
        ({"simulated": {"kind": "lenght"}}, "no reward is called 'lenght'"),
        ({"simulated": {"noise": 1}}, "simulated.kind: missing"),
        ({"simulated": {**LONG, "noise": -1}}, "simulated.noise is -1, not a number from 0"),
        ({"simulated": {**LONG, "tie_margin": "much"}}, "simulated.tie_margin is 'much'"),
        ({"simulated": {**LONG, "traget": 1}}, "simulated.traget: unknown field"),
    ],
)
def test_settings_that_can_not_be_are_told_before_the_run(start: Any, settings: dict[str, Any], wrong: str) -> None:
    report = start(check=True, **settings)
    assert not report.ok
    assert wrong in " ".join(map(str, report.problems))


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"prompt": "p"}, "line 1: has no list of answers to rank"),
        ({"prompt": "p", "answers": ["x", ""]}, "line 1: answer 2 is empty"),
        ({"prompt": "p", "answers": ["x", "x"]}, "holds nothing to rank"),
    ],
)
def test_data_that_can_not_be_ranked_is_told(start: Any, tmp_path: Path, row: dict[str, Any], wrong: str) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text(json.dumps(row) + "\n")
    assert wrong in " ".join(map(str, start(check=True, data=data).problems))
    with pytest.raises(TutelageError, match=wrong) as raised:
        start(data=data)
    assert raised.value.exit_code == 2


def test_gold_without_ranks_is_told(start: Any, tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"prompt": "p", "answers": ["x", "y"]}\n')
    with pytest.raises(TutelageError, match=r"gold\.jsonl line 1"):
        start(gold=str(gold))


def test_the_phase_is_found_by_its_name_and_its_settings_have_a_schema() -> None:
    from tutelage.schema import recipe_schema

    assert host().classes("phase")["ranking"] is Ranking
    assert "overlap" in recipe_schema(host())["$defs"]["phase.ranking"]["properties"]


def test_a_simulation_that_is_changed_is_made_anew(start: Any, tmp_path: Path) -> None:
    first = rows_of(start(simulated=LONG).artifact)
    changed = tutelage.resume(tmp_path / "run", overrides=["stages.rank.phase.simulated.noise=2.0"])
    assert rows_of(changed.artifact) != first
