"""Judgements are on the disk when they are acknowledged: kills, people at once, full disks."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import TutelageError
from tutelage.ranking.desk import Desk, desk_folder
from tutelage.ranking.judgements import Judgement, JudgementLog
from tutelage.ranking.tasks import Plan, Task, task_id
from tutelage.runs.folder import RunFolder

ANSWERS = ["1 best", "2 good", "3 poor"]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that waits for people."""
    stage = {"name": "rank", "phase": {"kind": "ranking"}}
    made = RunFolder.create(tmp_path / "run", "first", {"name": "first", "model": "m", "stages": [stage]})
    made.update_stage("rank", state="waiting")
    return made


def open_desk(run: RunFolder, count: int, **settings: Any) -> Desk:
    prompts = [f"prompt {number}" for number in range(count)]
    tasks = [Task(id=task_id(prompt, ANSWERS), prompt=prompt, answers=ANSWERS) for prompt in prompts]
    return Desk.set_up(desk_folder(run.path, "rank"), Plan(tasks=tasks, **settings))


def start(run: RunFolder, person: str) -> subprocess.Popen[str]:
    """`tutelage rank` in a process of its own, led by a program."""
    code = "from tutelage.cli.main import main; main()"
    command = [sys.executable, "-c", code, "rank", str(run.path), "--person", person, "--json"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def best_to_worst(answers: dict[str, str]) -> str:
    return " ".join(sorted(answers, key=answers.__getitem__))


def test_twenty_kills_lose_no_judgement(run: RunFolder) -> None:
    desk = open_desk(run, 200)
    generator = random.Random(0)
    acknowledged: set[str] = set()
    asked_for = 0
    for _ in range(20):
        process = start(run, "ann")
        assert process.stdin is not None
        assert process.stdout is not None
        dies_after, in_flight = generator.randint(0, 5), generator.random() < 0.5
        answered = 0
        prompt = ""
        while answered <= dies_after:
            told = json.loads(process.stdout.readline())
            if "question" in told:
                prompt = told["question"]["prompt"]
                if answered == dies_after and not in_flight:
                    break
                process.stdin.write(best_to_worst(told["question"]["answers"]) + "\n")
                if answered == dies_after:
                    asked_for += 1
                    break
            else:
                assert told == {"saved": "saved"}
                acknowledged.add(prompt)
                answered += 1
        process.kill()
        process.communicate()
    said = desk.said()
    kept = {str(desk.tasks[task].prompt) for task in said}
    assert acknowledged <= kept
    assert len(kept) <= len(acknowledged) + asked_for
    assert len(acknowledged) > 20
    assert all(given["ann"].ranks == [1, 2, 3] for given in said.values())
    assert len([entry for entry in desk.entries() if entry.kind == "ranking"]) == len(kept)


def test_two_people_at_once(run: RunFolder) -> None:
    desk = open_desk(run, 40, people=["ann", "bob"], seats=2, overlap=2)
    processes = {person: start(run, person) for person in desk.plan.people}
    open_ones = dict(processes)
    while open_ones:
        for person, process in list(open_ones.items()):
            assert process.stdin is not None
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            if "question" in told:
                process.stdin.write(best_to_worst(told["question"]["answers"]) + "\n")
            elif "done" in told:
                process.stdin.write("\n")
            elif "end" in told:
                del open_ones[person]
    assert [process.wait() for process in processes.values()] == [0, 0]
    for process in processes.values():
        process.communicate()
    said = desk.said()
    assert len(said) == 40
    assert all(entry.ranks == [1, 2, 3] for given in said.values() for entry in given.values())
    assert all(set(given) == {"ann", "bob"} for given in said.values())


def entry(number: int) -> Judgement:
    return Judgement(kind="bad", person="ann", at="", task=str(number))


def test_what_cannot_be_written_is_told_and_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = JudgementLog(tmp_path / "log.jsonl")
    log.append(lambda _: [entry(1)])
    before = log.path.read_bytes()
    write = os.write
    monkeypatch.setattr("tutelage.ranking.judgements.os.write", lambda file, data: write(file, data[:10]))
    with pytest.raises(TutelageError, match="No space left on device; the last answer was not saved"):
        log.append(lambda _: [entry(2)])
    monkeypatch.undo()
    assert log.path.read_bytes() == before
    log.append(lambda _: [entry(3), entry(4)])
    assert [each.task for each in log.read()] == ["1", "3", "4"]


def test_nothing_is_added_where_one_of_many_is_refused(tmp_path: Path) -> None:
    log = JudgementLog(tmp_path / "log.jsonl")
    log.append(lambda _: [entry(1)])

    def refuse(entries: list[Judgement]) -> list[Judgement]:
        raise TutelageError.at("here", f"{len(entries)} are there")

    with pytest.raises(TutelageError, match="1 are there"):
        log.append(refuse)
    assert [each.task for each in log.read()] == ["1"]
