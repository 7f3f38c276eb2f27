"""AI feedback: labels are what the model's own probabilities say, whatever the order in which answers are shown."""

from __future__ import annotations

import math
import signal
from itertools import combinations
from pathlib import Path

import constitutions as made
import pytest
import torch
from tiny_models import write_model
from training import events, in_child, train_or_resume
from transformers import AutoModelForCausalLM, AutoTokenizer

import tutelage
from tutelage.constitution import load
from tutelage.formats import Prompted, Ranking
from tutelage_plugins.constitutions import asking
from tutelage_plugins.constitutions.asking import Question
from tutelage_plugins.constitutions.judging import Judge, _parted
from tutelage_plugins.constitutions.preferring import Feedback, Pair, cases_of, pairs_of
from tutelage_plugins.constitutions.writing import Writer
from tutelage_plugins.phases._held_out import wilson
from tutelage_plugins.phases.ai_feedback import AIFeedback, AIFeedbackConfig


@pytest.fixture(scope="module")
def model(tiny_model):
    folder = tiny_model("llama-tied")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def template(tmp_path):
    return asking.load(made.write_asking(tmp_path / "t.yaml"))


@pytest.fixture
def constitution(tmp_path):
    return load(made.write_constitution(tmp_path / "c.yaml"))


def judge_of(model, template, *, reasoning: int = 0, clamp: float = 1.0, batch_size: int = 3) -> Judge:
    writer = Writer(*model, temperature=1.0, top_p=1.0, batch_size=batch_size)
    return Judge(writer, template, reasoning=reasoning, clamp=clamp, batch_size=batch_size)


def by_hand(model, text: str) -> float:
    """P(A) / (P(A) + P(B)) after the user's turn and the beginning of the assistant's."""
    network, tokenizer = model
    begun = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\nIt is ("
    logits = network(torch.tensor([tokenizer(begun)["input_ids"]])).logits[0, -1].detach().double()
    a, b = (tokenizer.convert_tokens_to_ids(letter) for letter in "AB")
    return float(1 / (1 + torch.exp(logits[b] - logits[a])))


PAIRS = [
    Pair(number, "row", prompt, answers)
    for number, (prompt, answers) in enumerate(
        [("the cat", ("sat on", "saw two birds")), ("two", ("3", "5, they say, and again")), ("why", ("no", "yes"))]
    )
]


def test_probabilities_are_those_of_a_computation_by_hand(model, template, constitution):
    cases = cases_of(PAIRS, constitution, template, 2, seed=3)
    rows = Feedback(judge_of(model, template), seed=3).work(cases)
    for case, (row,) in zip(cases, rows, strict=True):
        one, other = case.pair.answers
        labels = []
        for principle, told in zip(case.principles, row["principles"], strict=True):
            straight = by_hand(model, f"{case.pair.prompt} (A) {one} (B) {other} {principle.preference}")
            swapped = by_hand(model, f"{case.pair.prompt} (A) {other} (B) {one} {principle.preference}")
            labels.append((straight + 1 - swapped) / 2)
            shown = (straight, 1 - swapped) if row["chosen"] == one else (swapped, 1 - straight)
            assert (told["shown_first"], told["shown_second"]) == pytest.approx(shown, abs=2e-6)
        label = sum(labels) / 2
        assert row["probability"] == pytest.approx(max(label, 1 - label), abs=2e-6)
        assert (row["chosen"], row["rejected"]) == ((one, other) if label >= 0.5 else (other, one))
    assert len({row["probability"] for (row,) in rows}) == 3  # it is not all the same


@pytest.mark.parametrize("reasoning", [0, 5])
def test_exchanging_answers_mirrors_the_label_exactly(model, template, constitution, reasoning):
    judge = judge_of(model, template, reasoning=reasoning)
    swapped = [Pair(pair.number, pair.place, pair.prompt, pair.answers[::-1]) for pair in PAIRS]
    results = [Feedback(judge, 1).work(cases_of(pairs, constitution, template, 3, 1)) for pairs in (PAIRS, swapped)]
    for (row,), (mirrored,) in zip(*results, strict=True):
        for field in ("chosen", "rejected", "probability"):
            assert row[field] == mirrored[field]
        assert all(
            (one["shown_first"], one["shown_second"]) == (other["shown_first"], other["shown_second"])
            for one, other in zip(row["principles"], mirrored["principles"], strict=True)
        )


def position_biased(folder: Path) -> Path:
    """A model that says (A) three times as often as (B), whatever it reads."""
    write_model(folder, "llama-untied")
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        network.get_input_embeddings().weight.fill_(1.0)  # after the last norm, every position is all ones
        network.lm_head.weight[tokenizer.convert_tokens_to_ids("A")] = math.log(3) / 32
    network.save_pretrained(folder)
    return folder


def test_a_judge_that_only_looks_at_the_position_prefers_nothing(template, constitution, tmp_path):
    folder = position_biased(tmp_path / "biased")
    model = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for (row,) in Feedback(judge_of(model, template), 0).work(cases_of(PAIRS, constitution, template, 3, 0)):
        assert row["probability"] == pytest.approx(0.5, abs=1e-6)
        for told in row["principles"]:
            assert (told["shown_first"], told["shown_second"]) == pytest.approx((0.75, 0.25), abs=1e-5)


def test_after_a_chain_of_thought_verdicts_are_kept_cautious(model, template, monkeypatch):
    assert [AIFeedback(AIFeedbackConfig(**settings)).clamp for settings in CLAMPS] == [1.0, 0.6, 0.9, 0.9]
    questions = [Question("the cat", "sat", "saw", f"{number} better?", seed=number) for number in range(4)]
    judge = judge_of(model, template, reasoning=4, clamp=0.6)
    verdicts = judge.verdicts(questions)
    assert len({verdict.reasoning for verdict in verdicts}) == 4
    monkeypatch.setattr(judge, "_chances", lambda asked: [0.0, 0.45, 0.6, 0.99])
    assert [verdict.first for verdict in judge.verdicts(questions)] == [0.4, 0.45, 0.6, 0.6]


CLAMPS = ({}, {"chain_of_thought": True}, {"clamp": 0.9}, {"chain_of_thought": True, "clamp": 0.9})


def test_a_verdict_reads_the_reasoning_before_it(model, template):
    network, tokenizer = model
    judge = judge_of(model, template, reasoning=4)
    (verdict,) = judge.verdicts([Question("the cat", "sat", "saw", "better?", seed=5)])
    text = template.asked(Question("the cat", "sat", "saw", "better?", 5))
    begun = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\nSo "
    reasoned = judge._writer.draw([tokenizer(begun)["input_ids"]], [5], 4)[0]
    assert not reasoned.finished
    ids = tokenizer(begun)["input_ids"] + reasoned.ids + tokenizer("\n\nIt is (")["input_ids"]
    logits = network(torch.tensor([ids])).logits[0, -1].detach().double()
    a, b = (tokenizer.convert_tokens_to_ids(letter) for letter in "AB")
    assert verdict.first == pytest.approx(float(1 / (1 + torch.exp(logits[b] - logits[a]))), abs=1e-6)


def test_options_of_several_tokens_are_scored_whole(model, template):
    network, _ = model
    judge = judge_of(model, template)
    options = [[9, 10, 11], [9, 12]]
    judge._options = ([7], options)
    asked = [[5, 6], [8, 8, 8, 8]]
    for ids, chance in zip(asked, judge._chances(asked), strict=True):
        scores = []
        for option in options:
            whole = torch.tensor([[*ids, 7, *option]])
            log_probs = network(whole).logits[0].detach().double().log_softmax(-1)
            start = len(ids)
            scores.append(sum(float(log_probs[start + place, token]) for place, token in enumerate(option)))
        assert chance == pytest.approx(1 / (1 + math.exp(scores[1] - scores[0])), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "parted"),
    [
        ([[1, 2, 3, 4], [1, 2, 5, 4]], ([1, 2], [[3], [5]])),
        ([[1, 3, 4, 6], [1, 5, 6]], ([1], [[3, 4], [5]])),
        ([[3], [5]], ([], [[3], [5]])),
        ([[3, 3, 4], [5, 3, 4]], ([], [[3], [5]])),
    ],
)
def test_what_options_share_is_not_scored(options, parted):
    assert _parted(options) == parted


def test_pairs_are_all_or_drawn_and_never_of_equal_or_empty_answers():
    record = Prompted("why", fields={"answers": ["a", "b", "a", "c", " "]})
    assert [pair.answers for pair in pairs_of([("row", record)], "all", 0)] == list(combinations("abc", 2))
    drawn = pairs_of([("row", record)] * 20, 1, 0)
    assert [pair.number for pair in drawn] == list(range(20))
    assert len({pair.answers for pair in drawn}) > 1
    assert drawn == pairs_of([("row", record)] * 20, 1, 0)
    ranked = pairs_of([("row", Ranking("why", ["a", "b"], [2.0, 1.0]))], "all", 0)
    assert ranked[0].answers == ("a", "b")
    with pytest.raises(tutelage.TutelageError, match="two different answers"):
        pairs_of([("row", Prompted("why", fields={"answers": ["a", "a"]}))], "all", 0)
    with pytest.raises(tutelage.TutelageError, match="row 3: has no answers"):
        pairs_of([("row 3", Prompted("why"))], "all", 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    human = [{"prompt": f"two {row}", "chosen": "trees", "rejected": f"birds {row}"} for row in range(7)]
    return {
        "constitution": str(made.write_constitution(folder / "c.yaml")),
        "template": str(made.write_asking(folder / "t.yaml")),
        "data": made.write_comparisons(folder / "comparisons.jsonl", answers=3),
        "human": str(made.write_rows(folder / "human.jsonl", human)),
    }


def recipe_of(model: Path, files, **phase):
    named = {"kind": "ai_feedback", "principles": 2, "batch_size": 4, "human": files["human"]}
    settings = {**named, "constitution": files["constitution"], "template": files["template"], **phase}
    stage = made.stage("feedback", settings, files["data"])
    return {"name": "tiny", "model": str(model), "stages": [stage]}


def dataset(run: Path, name: str = "data.jsonl") -> Path:
    return run / "stages" / "feedback" / "dataset" / name


@pytest.fixture(scope="module")
def run(tiny_model, files, tmp_path_factory) -> Path:
    made_recipe = recipe_of(tiny_model("llama-tied"), files)
    learn = {
        "name": "learn",
        "phase": "dpo",
        "data": "stage:feedback",
        "trainer": {"max_steps": 2, "precision": "fp32", "devices": 1, "max_length": 100, "tokens_per_step": 512},
    }
    made_recipe["stages"].append(learn)
    return tutelage.train(made_recipe, out=tmp_path_factory.mktemp("whole") / "run").folder


def test_the_dataset_trains_dpo_and_the_report_is_of_all_that_was_judged(run):
    rows, whole = made.read_rows(dataset(run)), made.read_rows(dataset(run, "all.jsonl"))
    assert len(rows) == 6 * 3
    assert len(whole) == len(rows) + 7
    assert all(0.5 <= row["probability"] <= 1 and len(row["principles"]) == 2 for row in rows)
    (told,) = (event for event in events(run, "conclusion") if event["stage"] == "feedback")
    both = [(each["shown_first"], each["shown_second"]) for row in rows for each in row["principles"]]
    assert told["position_bias"] == pytest.approx(
        sum((first + 1 - second) / 2 for first, second in both) / len(both) - 0.5
    )
    assert told["order_flips"] == sum((first > 0.5) != (second > 0.5) for first, second in both) / len(both)
    right = [row["chosen"] == "trees" for row in whole if "human" in row]
    assert len(right) == 7
    assert told["human_agreement"] == pytest.approx(sum(right) / 7)
    assert (told["human_agreement_low"], told["human_agreement_high"]) == wilson(sum(right) / 7, 7)
    assert len([event for event in events(run, "step") if event["stage"] == "learn"]) == 2


def test_pairs_that_the_judge_hardly_prefers_are_left_out_and_counted(tiny_model, files, run, tmp_path):
    sure = sorted(row["probability"] for row in made.read_rows(dataset(run)))
    limit = sure[9]
    folder = tutelage.train(
        recipe_of(tiny_model("llama-tied"), files, min_confidence=limit), out=tmp_path / "run"
    ).folder
    kept = [row["probability"] for row in made.read_rows(dataset(folder))]
    assert sorted(kept) == [value for value in sure if value >= limit]
    (told,) = events(folder, "conclusion")
    assert told["near_ties"] == len(sure) - len(kept) > 0
    assert any("hardly prefers" in event["text"] for event in events(folder, "notice"))


def test_another_model_can_judge(tiny_model, files, tmp_path):
    """One that only looks at the position: agreement with people is one half, and the bias is told."""
    judge = position_biased(tmp_path / "biased")
    folder = tutelage.train(recipe_of(tiny_model("llama-tied"), files, judge=str(judge)), out=tmp_path / "run").folder
    (told,) = events(folder, "conclusion")
    assert told["position_bias"] == pytest.approx(0.25, abs=1e-5)
    assert told["order_flips"] == 1
    assert told["human_agreement"] == 0.5
    assert told["confidence"] == pytest.approx(0.5, abs=1e-6)


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


def test_killed_and_resumed_it_makes_the_same(tiny_model, files, run, tmp_path):
    recipe = recipe_of(tiny_model("llama-tied"), files)
    child = in_child(die_after_two_batches, recipe, str(tmp_path / "run"))
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child = in_child(train_or_resume, recipe, str(tmp_path / "run"))
    child.join()
    assert child.exitcode == 0
    assert dataset(tmp_path / "run", "all.jsonl").read_bytes() == dataset(run, "all.jsonl").read_bytes()
    assert events(tmp_path / "run", "stage_started")[1]["resumed_from"] == 2


def test_two_processes_make_the_same(tiny_model, files, run, tmp_path):
    recipe = recipe_of(tiny_model("llama-tied"), files)
    recipe["stages"][0]["trainer"]["devices"] = 2
    folder = tutelage.train(recipe, out=tmp_path / "run").folder
    assert dataset(folder).read_bytes() == dataset(run).read_bytes()


def test_what_can_not_work_is_told(tiny_model, files, tmp_path):
    def problems(folder, data=None, **changes):
        recipe = recipe_of(tiny_model("llama-tied"), files, **changes)
        if data:
            recipe["stages"][0]["data"] = str(made.write_rows(tmp_path / f"{folder}.jsonl", data))
        with pytest.raises(tutelage.TutelageError) as caught:
            tutelage.train(recipe, out=tmp_path / folder)
        return str(caught.value)

    assert "has no answers" in problems("a", [{"prompt": "why"}])
    long = [{"prompt": "why", "answers": ["a" * 200, "b" * 200]}]
    assert "are more than the model's window of 256" in problems("b", long)
    unasked = tmp_path / "unasked.yaml"
    unasked.write_text("name: x\nprinciples:\n- {id: a, text: Be kind., critique: C, revision: R}\n")
    assert "principles.0.preference: is missing" in problems("c", constitution=str(unasked))
    assert "is a prompt alone, and the phase ai_feedback takes ranked" in problems("d", human=str(files["data"]))
    assert "stages.feedback.phase.human: there is no file" in problems("e", human="nowhere.jsonl")
