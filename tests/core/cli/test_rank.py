"""`tutelage rank`: what a person sees and types, how it goes, and files for other tools."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage.ranking.desk import Desk, desk_folder
from tutelage.ranking.tasks import Plan, Task, task_id
from tutelage.runs.folder import RunFolder

Run = Callable[..., Any]
STAGES = [
    {"name": "draw", "phase": {"kind": "comparisons"}},
    {"name": "rank", "phase": {"kind": "ranking"}},
    {"name": "again", "phase": {"kind": "ranking"}},
]
ANSWERS = ["first answer", "second answer", "third \x1b[2J answer"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose second stage waits for people."""
    monkeypatch.setenv("TUTELAGE_RUNS", str(tmp_path))
    made = RunFolder.create(tmp_path / "mine", "mine", {"name": "mine", "model": "m", "stages": STAGES})
    made.update_stage("draw", state="succeeded")
    made.update_stage("rank", state="waiting")
    return made


def task(number: int, **fields: Any) -> Task:
    prompt = f"prompt {number}"
    return Task(id=task_id(prompt, ANSWERS), prompt=prompt, answers=ANSWERS, made_by=["model-x"] * 3, **fields)


def open_desk(run: RunFolder, count: int = 3, stage: str = "rank", **settings: Any) -> Desk:
    plan = Plan(tasks=[task(number) for number in range(count)], **settings)
    return Desk.set_up(desk_folder(run.path, stage), plan)


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call as `types("a b c", "quit")`: lines that the person types next."""

    def put(*lines: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    return put


def test_a_session(tutelage: Run, run: RunFolder, types: Callable[..., None]) -> None:
    desk = open_desk(run)
    types("a b=c", "? odd question", "bad", "d a b", "skip")
    outcome = tutelage("rank", "mine", "--person", "ann")
    assert outcome.code == 0
    assert "order the answers best to worst" in outcome.err
    assert "1 of 3" in outcome.out
    assert "3 of 3" in outcome.out
    assert "'d' is no answer" in outcome.out
    assert "all of yours are done: thank you; 3 of 3 judgements are in; go on with: tutelage resume mine" in outcome.out
    entries = desk.entries()
    assert [entry.kind for entry in entries] == ["joined", "ranking", "comment", "bad", "skip"]
    assert entries[2].comment == "odd question"
    first = entries[1]
    assert [first.ranks[at] for at in first.shown] == [1, 2, 2]


def test_what_is_shown_tells_neither_models_nor_terminals_anything(
    tutelage: Run, run: RunFolder, types: Callable[..., None]
) -> None:
    open_desk(run)
    for flags in ([], ["--json"]):
        types("quit")
        outcome = tutelage("rank", "mine", "--person", "ann", *flags)
        assert "model-x" not in outcome.out + outcome.err
        assert "\x1b" not in outcome.out
        assert "\\u001b" not in outcome.out
        assert "third �[2J answer" in outcome.out


def test_a_program_leads_a_session(tutelage: Run, run: RunFolder, types: Callable[..., None]) -> None:
    open_desk(run, 2)
    types("c b a", "undo", "a b c", "bad", "undo", "undo", "undo", "what", "?")
    lines = tutelage("rank", "mine", "--person", "ann", "--json").lines
    assert [next(iter(line)) for line in lines] == [
        *("question", "saved", "question", "undone", "question", "saved", "question", "saved", "done"),
        *("undone", "question", "undone", "question", "problem", "problem", "help", "end"),
    ]
    assert lines[0]["question"].keys() == {"number", "of", "prompt", "answers"}
    assert lines[0] == lines[4]
    assert lines[-1]["end"] == "2 of yours are left; 0 of 2 judgements are in"


def test_a_session_goes_on_where_it_was_left(tutelage: Run, run: RunFolder, types: Callable[..., None]) -> None:
    desk = open_desk(run)
    for _ in range(3):
        types("a b c", "quit")
        assert tutelage("rank", "mine", "--person", "ann").code == 0
    assert desk.pending("ann") == []
    types("undo", "c b a")
    assert "the last answer is taken back" in tutelage("rank", "mine", "--person", "ann").out
    assert len(desk.said()) == 3


def test_ctrl_c_keeps_what_was_said(tutelage: Run, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = open_desk(run)
    lines = iter(["a b c"])

    def read(prompt: str = "") -> str:
        try:
            return next(lines)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("builtins.input", read)
    outcome = tutelage("rank", "mine", "--person", "ann")
    assert outcome.code == 130
    assert "2 of yours are left; 1 of 3 judgements are in" in outcome.out
    assert len(desk.said()) == 1


def test_a_terminal_that_is_gone_ends_it_quietly(
    tutelage: Run, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_desk(run)

    def gone(prompt: str = "") -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.input", gone)
    outcome = tutelage("rank", "mine", "--person", "ann")
    assert (outcome.code, "error" in outcome.err) == (0, False)


def test_panels_on_a_terminal(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.cli import rank_views

    monkeypatch.setattr(rank_views, "is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "60")
    rank_views.Lines().question(1, 2, "which [bold]one[/bold]?", {"a": "this", "b": "that"})
    shown = capsys.readouterr().out
    assert "which [bold]one[/bold]?" in shown
    assert "─ a ─" in shown
    assert "│ that" in shown


def test_others_work_is_taken_over_with_more(tutelage: Run, run: RunFolder, types: Callable[..., None]) -> None:
    desk = open_desk(run, 4, people=["ann", "bob"], seats=2)
    types(*["a b c"] * 6)
    tutelage("rank", "mine", "--person", "ann")
    assert desk.given() == 2
    types(*["a b c"] * 6)
    tutelage("rank", "mine", "--person", "ann", "--more")
    assert desk.given() == 4


def test_status(tutelage: Run, run: RunFolder) -> None:
    desk = open_desk(run, 40, people=["ann", "bob", "cat"], seats=3, overlap=3)
    assert "not known before two people" in tutelage("rank", "mine", "--status").out
    orders = [[1, 2, 3], [2, 1, 3], [3, 2, 1], [1, 3, 2], [3, 1, 2], [2, 3, 1]]
    for number, each in enumerate(desk.plan.tasks):
        for person in ("ann", "bob"):
            desk.judge(person, each, "ranking", [1, 2, 3], 3.0)
        desk.judge("cat", each, "ranking", orders[number % 6], 3.0)
    out = tutelage("rank", "mine", "--status").out
    assert "120 of 120 judgements are in; go on with: tutelage resume mine (of 40 prompts)" in out
    assert "Krippendorff's alpha (ordinal): 0." in out
    assert "ann\t40/40\t0\t0\t3\t0." in out
    assert "note: cat can't be told from somebody who orders at random (agreement" in out
    assert "note: ann" not in out
    assert "note: bob" not in out
    (told,) = tutelage("rank", "mine", "--status", "--json").lines
    assert told["done"] is True
    assert [person["look"]["verdict"] for person in told["people"]] == ["careful", "careful", "random"]
    assert told["alpha_interval"][0] < told["alpha"] < told["alpha_interval"][1]


def test_export_and_import(tutelage: Run, run: RunFolder, tmp_path: Path) -> None:
    desk = open_desk(run)
    file = tmp_path / "tasks.json"
    assert "<Ranker name=" in tutelage("rank", "mine", "--export", str(file), "--as", "label-studio").out
    assert (
        "values ['answer-1', 'answer-2', 'answer-3']"
        in tutelage("rank", "mine", "--export", str(file), "--as", "argilla").out
    )
    (told,) = tutelage("rank", "mine", "--export", str(tmp_path / "p.jsonl"), "--json").lines
    assert told == {"file": str(tmp_path / "p.jsonl"), "as": "jsonl", "rows": 3}
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    rows[0]["ranks"] = [1, 2, 3]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = tutelage("rank", "mine", "--import", str(tmp_path / "p.jsonl"), "--person", "ann")
    assert "1 judgements taken, 0 known before, 2 rows not judged\n1 of 3 judgements are in" in outcome.out
    (told,) = tutelage("rank", "mine", "--import", str(tmp_path / "p.jsonl"), "--person", "ann", "--json").lines
    assert (told["judgements"], told["known"], told["open"]) == (0, 1, 2)
    rows[1]["ranks"] = [1, None, 3]
    rows[0]["ranks"] = [3, 2, 1]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = tutelage("rank", "mine", "--import", str(tmp_path / "p.jsonl"), "--person", "ann")
    assert outcome.code == 2
    assert "p.jsonl line 2: answer 2 has no rank; every answer needs one" in outcome.err
    assert "nothing of it was taken" in outcome.err
    assert len(desk.said()) == 1


def test_what_can_not_be_done_is_told_with_exit_code_2(tutelage: Run, run: RunFolder) -> None:
    def refused(*arguments: str) -> str:
        outcome = tutelage("rank", *arguments)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err
        return str(outcome.err)

    assert "the stage rank has not asked anything yet" in refused("mine")
    open_desk(run, people=["ann", "bob"], seats=2)
    assert "'eve' is not asked to rank here" in refused("mine", "--person", "eve")
    assert "the run has no stage 'rnak'; did you mean rank" in refused("mine", "--stage", "rnak")
    assert "the stage again has not asked anything yet" in refused("mine", "--stage", "again")
    assert "no such run" in refused("mien")
    assert "give one of" in refused("mine", "--status", "--export", "x")
    open_desk(run, simulated="length", people=["ann"])
    assert "nobody is asked here: the reward length stands in for people" in refused("mine", "--person", "ann")
    assert "simulated: the reward length ranks, no person does" in tutelage("rank", "mine", "--status").out
    run.update_stage("rank", state="succeeded")
    open_desk(run)
    assert "its rankings were made into data already" in refused("mine", "--person", "ann")
    assert "0 judgements of 3 prompts were made into data" in tutelage("rank", "mine", "--status").out


def test_of_several_stages_the_one_that_is_open_is_meant(
    tutelage: Run, run: RunFolder, types: Callable[..., None]
) -> None:
    open_desk(run, 1)
    run.update_stage("rank", state="succeeded")
    run.update_stage("again", state="waiting")
    later = open_desk(run, 2, stage="again")
    types("a b c", "a b c")
    tutelage("rank", "mine", "--person", "ann")
    assert len(later.said()) == 2
