"""Critique and revision: what is asked, what is taken as an answer, and that it is the same however it was made."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import constitutions as made
import pytest
from training import events, in_child, train_or_resume

import tutelage
from tutelage.constitution import load
from tutelage.formats import Conversation, Prompted
from tutelage_plugins.constitutions import revising
from tutelage_plugins.constitutions.mending import Item, Mender, asked_of
from tutelage_plugins.phases.critique_revision import CritiqueRevision


class Scripted:
    """A writer that answers each dialogue by a rule, for what becomes of what a model writes."""

    def __init__(self, rule, room: int = 10_000) -> None:
        self.rule = rule
        self.room = room
        self.asked: list[str] = []
        self.window = self

    def ids(self, dialogue):
        return dialogue

    def fitted(self, dialogue, parts, new):
        fit = [
            skip for skip in range(parts + 1) if sum(len(turn["content"]) for turn in dialogue(skip)) + new <= self.room
        ]
        return dialogue(fit[0]) if fit else None

    def draw(self, dialogues, seeds, new):
        self.asked += [dialogue[-1]["content"] for dialogue in dialogues]
        return [SimpleNamespace(said=self.rule(dialogue[-1]["content"]), finished=True) for dialogue in dialogues]

    def text(self, drawn):
        if drawn.said.endswith("…"):
            drawn.finished = False
        return drawn.said


@pytest.fixture
def parts(tmp_path):
    return load(made.write_constitution(tmp_path / "c.yaml")), revising.load(made.write_revising(tmp_path / "t.yaml"))


def mended(parts, rule, *, prompt="why", room=10_000, **config):
    constitution, template = parts
    writer = Scripted(rule, room)
    settings = CritiqueRevision.Config(**{"max_new_tokens": 10, "critique_tokens": 10, **config})
    messages = [{"role": "user", "content": prompt}]
    item = Item(0, messages, "given", constitution.draw(settings.rounds, 0, 0), "")
    ((row,),) = Mender(writer, template, settings, 0).work([item])
    return row, writer


def by_kind(first: str, critique: str, revision: str):
    """What is written for a prompt, a critique (two bars in it) and a revision (three)."""
    return lambda asked: {0: first, 2: critique, 3: revision}[asked.count("|")]


def test_each_round_criticises_and_revises_the_answer_of_the_one_before(parts):
    counts = {"revisions": 0}

    def rule(asked):
        if asked.count("|") == 3:
            counts["revisions"] += 1
            return f"answer {counts['revisions']}"
        return "critique" if "|" in asked else "answer 0"

    row, writer = mended(parts, rule, rounds=3)
    drawn = parts[0].draw(3, 0, 0)
    assert sorted(step["principle"] for step in row["steps"]) == ["p0", "p1", "p2"]
    expected = ["why"]
    for number, principle in enumerate(drawn):
        expected.append(f"why|answer {number}|{principle.critique}")
        expected.append(f"why|answer {number}|critique|{principle.revision}")
    assert writer.asked == expected
    assert row["first"] == "answer 0"
    assert row["messages"] == [{"role": "user", "content": "why"}, {"role": "assistant", "content": "answer 3"}]
    assert [step["revision"] for step in row["steps"]] == ["answer 1", "answer 2", "answer 3"]


@pytest.mark.parametrize(
    ("revision", "outcome"),
    [
        ("better", "revised"),
        ("First.", "unchanged"),
        ("", "empty"),
        ("on and on…", "cut"),
        ("a mat", "copied"),  # an example's
        ("{request}", "copied"),
        ("too harsh", "copied"),  # the critique
        ("Why", "copied"),  # the question
    ],
)
def test_a_revision_that_is_none_leaves_the_former_answer(parts, revision, outcome):
    request = parts[0].draw(1, 0, 0)[0].revision
    row, _ = mended(parts, by_kind("first", "too harsh", revision.replace("{request}", request)))
    assert row["steps"][0]["outcome"] == outcome
    assert row["messages"][-1]["content"] == ("better" if outcome == "revised" else "first")


def test_critiques_that_give_back_an_example_are_marked(parts):
    for critique, copied in (("on", True), ("it is on", False)):
        row, _ = mended(parts, by_kind("first", critique, "second"))
        assert row["steps"][0]["critique_copied"] is copied


def test_cut_answers_count_as_such_only_where_they_are_not_allowed(parts):
    rule = by_kind("first…", "critique", "second…")
    row, _ = mended(parts, rule)
    assert (row["finished"], row["steps"][0]["outcome"]) == (False, "cut")
    row, _ = mended(parts, rule, allow_cut=True)
    assert row["messages"][-1]["content"] == "second…"


def test_examples_are_left_out_first_and_what_still_does_not_fit_is_not_asked(parts):
    rule = by_kind("first", "critique", "second")
    bare = len("why|first|critique|") + max(len(each.revision) for each in parts[0].principles) + 10
    row, writer = mended(parts, rule, room=bare)
    assert row["steps"][0]["outcome"] == "revised"
    row, writer = mended(parts, rule, prompt="why" * 10, room=bare)
    assert (row["steps"][0]["outcome"], row["messages"][-1]["content"]) == ("too_long", "first")
    assert writer.asked == ["why" * 10]


def test_answers_in_the_data_are_revised_where_that_is_asked_for(parts):
    row, writer = mended(parts, by_kind("first", "critique", "second"), first="given")
    assert row["first"] == "given"
    assert "why" not in writer.asked
    told = asked_of(
        [("row 1", Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]))], given=True
    )
    assert (told[0].messages, told[0].given) == ([{"role": "user", "content": "a"}], "b")
    with pytest.raises(tutelage.TutelageError, match="row 2: has no answer to revise"):
        asked_of([("row 2", Prompted("a"))], given=True)


@pytest.fixture(scope="module")
def recipe(tiny_model, tmp_path_factory):
    """Two rounds of critique and revision by a model that writes noise, then sft on what it made."""
    folder = tmp_path_factory.mktemp("recipe")
    prompts = [{"prompt": f"the cat sat on {number}"} for number in range(7)]
    prompts[3] = {
        "prompt": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
    }
    phase = {
        "kind": "critique_revision",
        "constitution": str(made.write_constitution(folder / "c.yaml")),
        "template": str(made.write_revising(folder / "t.yaml")),
        "rounds": 2,
        "max_new_tokens": 12,
        "critique_tokens": 6,
        "temperature": 1.0,
        "batch_size": 2,
        "allow_cut": True,
    }
    stage = made.stage("revise", phase, made.write_rows(folder / "prompts.jsonl", prompts))
    learn = {
        "name": "learn",
        "phase": "sft",
        "data": "stage:revise",
        "trainer": {
            "max_steps": 4,
            "precision": "fp32",
            "devices": 1,
            "max_length": 200,
            "tokens_per_step": 512,
            "learning_rate": 0.01,
        },
    }
    return {"name": "tiny", "model": str(tiny_model("llama-tied")), "stages": [stage, learn]}


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> Path:
    return tutelage.train(recipe, out=tmp_path_factory.mktemp("whole") / "run").folder


def dataset(run: Path, name: str = "data.jsonl") -> Path:
    return run / "stages" / "revise" / "dataset" / name


def test_what_was_made_trains_sft(run):
    rows = made.read_rows(dataset(run))
    assert 1 <= len(rows) <= 7
    assert all(len(row["steps"]) == 2 for row in rows)
    assert len(made.read_rows(dataset(run, "all.jsonl"))) == 7
    assert load(dataset(run, "constitution.yaml")).name == "tiny"
    curve = [event["loss"] for event in events(run, "step") if event["stage"] == "learn"]
    assert curve[-1] < curve[0]
    (told,) = events(run, "conclusion")
    assert told["rows"] == len(rows)
    outcomes = [step["outcome"] for row in made.read_rows(dataset(run, "all.jsonl")) for step in row["steps"]]
    assert told["steps_revised"] == pytest.approx(outcomes.count("revised") / len(outcomes))


def die_after_two_batches(recipe, run: str) -> None:
    """What a child process does."""
    import os

    from tutelage.engine import making

    original = making._Parts.append

    def append(parts, batch, rows):
        original(parts, batch, rows)
        if batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    making._Parts.append = append
    tutelage.train(recipe, out=Path(run))


def test_killed_and_resumed_it_makes_the_same(recipe, run, tmp_path):
    recipe = {**recipe, "stages": recipe["stages"][:1]}
    child = in_child(die_after_two_batches, recipe, str(tmp_path / "run"))
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child = in_child(train_or_resume, recipe, str(tmp_path / "run"))
    child.join()
    assert child.exitcode == 0
    assert dataset(tmp_path / "run").read_bytes() == dataset(run).read_bytes()
    assert events(tmp_path / "run", "stage_started")[1]["resumed_from"] == 2


def test_two_processes_make_the_same(recipe, run, tmp_path):
    (stage, _) = recipe["stages"]
    both = {**recipe, "stages": [{**stage, "trainer": {**stage["trainer"], "devices": 2}}]}
    folder = tutelage.train(both, out=tmp_path / "run").folder
    assert dataset(folder).read_bytes() == dataset(run).read_bytes()


def test_what_can_not_work_is_told(recipe, tmp_path):
    (stage, _) = recipe["stages"]

    def problems(folder, **changes):
        changed = {**stage, **{key: value for key, value in changes.items() if key == "data"}}
        changed["phase"] = {**stage["phase"], **{key: value for key, value in changes.items() if key != "data"}}
        with pytest.raises(tutelage.TutelageError) as caught:
            tutelage.train({**recipe, "stages": [changed]}, out=tmp_path / folder)
        return str(caught.value)

    empty = tmp_path / "empty.yaml"
    empty.write_text("name: none\nprinciples: []\n")
    assert "principles: there are none" in problems("a", constitution=str(empty))
    long = made.write_rows(tmp_path / "long.jsonl", [{"prompt": "the cat " * 200}])
    assert "are more than the model's window of 256" in problems("b", data=str(long))
    assert "no prompt got an answer that ended by itself" in problems("c", allow_cut=False, max_new_tokens=1)


def test_check_reads_prompts_against_the_window(recipe, tmp_path):
    (stage, _) = recipe["stages"]
    long = made.write_rows(tmp_path / "long.jsonl", [{"prompt": "the cat " * 200}])
    report = tutelage.check({**recipe, "stages": [{**stage, "data": str(long)}]})
    assert any("model's window of 256" in problem.wrong for problem in report.problems)
