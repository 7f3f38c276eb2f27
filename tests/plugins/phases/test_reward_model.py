"""Reward models: the loss by hand, whatever the layout; runs that end alike; and reports that name what was learnt."""

from __future__ import annotations

import itertools
import json
import math
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models as tiny
import torch
from rankings import reward_recipe, write_pairs, write_rankings
from training import events, in_child, learnt, losses, same, train_or_resume
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tutelage
from tutelage.data.batches import collate
from tutelage.data.rendering import Renderer, Tokens, together
from tutelage.engine.attention import choose_packed_attention, shares_exactly
from tutelage.engine.forward import sequence_scores
from tutelage.formats import Ranking
from tutelage.models.heads import choose_pad, load_scorer, load_scorer_for_use
from tutelage.models.locating import Located
from tutelage.plugins import host
from tutelage_plugins.phases import _held_out
from tutelage_plugins.phases._held_out import Answers, report_on

NAMES = ("accuracy", "score_difference", "score")


def phase_of(**settings):
    kind = host().get("phase", "reward_model", "")
    return kind(kind.Config(**settings))


@pytest.fixture(scope="module")
def parts(tiny_model):
    """A model with a drawn head, its tokenizer, and a renderer."""
    located = Located("model", str(tiny_model("llama-tied")))
    tokenizer = AutoTokenizer.from_pretrained(located.path)
    pad = choose_pad(tokenizer, frozenset({2}))
    model = load_scorer(located, dtype=torch.float32, seed=0, pad=pad)
    with torch.no_grad():
        model.score.weight.mul_(5)
    return SimpleNamespace(model=model.eval(), tokenizer=tokenizer, renderer=Renderer(tokenizer, "last"), pad=pad)


class Store(list):
    """Examples in memory."""

    def __init__(self, examples):
        super().__init__(examples)
        self.lengths = np.array([len(each) for each in examples])
        self.weights = np.ones(len(examples), dtype=int)

    def place(self, index):
        return f"data line {index + 1}"


def rankings_of(seed: int = 0, count: int = 5) -> list[Ranking]:
    """Of two to four answers, some with ties."""
    generator = random.Random(seed)
    made = []
    for row in range(count):
        answers = [f"{word} {row} " * generator.randint(1, 5) for word in ("a", "bird", "saw", "two")]
        chosen = answers[: generator.randint(2, 4)]
        ranks = [float(generator.randint(1, 3)) for _ in chosen[1:]]
        made.append(Ranking(f"question {row}", chosen, [4.0, *ranks]))
    return made


def loss_of(phase, parts, records, packed: bool):
    store = Store([phase.example(record, parts.renderer) for record in records])
    batch = collate(store, range(len(store)), packed=packed, filler=parts.pad)
    with torch.no_grad():
        return phase.loss(parts.model, batch)


def scored(parts, record: Ranking) -> dict[float, list[float]]:
    """Plain transformers' scores of each answer alone, by rank."""
    found: dict[float, list[float]] = {}
    for answer, rank in zip(record.answers, record.ranks, strict=True):
        ids = torch.tensor([parts.renderer.answered(record.prompt, answer).ids.tolist()])
        with torch.no_grad():
            found.setdefault(rank, []).append(float(parts.model(input_ids=ids).logits[0, 0]))
    return found


def by_orders(by_rank: dict[float, list[float]]) -> float:
    """-log of Plackett-Luce, drawing one after another, with Efron's shares within ties."""
    total, left = 0.0, [score for scores in by_rank.values() for score in scores]
    for rank in sorted(by_rank):
        tie = by_rank[rank]
        for drawn, score in enumerate(tie):
            share = drawn / len(tie)
            weight = sum(map(math.exp, left)) - share * sum(map(math.exp, tie))
            total += math.log(weight) - score
        for score in tie:
            left.remove(score)
    return total


def by_pairs(by_rank: dict[float, list[float]]) -> float:
    """The mean over pairs of Bradley-Terry's cross-entropy; ties are even."""
    items = [(rank, score) for rank, scores in by_rank.items() for score in scores]
    each = []
    for (rank, score), (other_rank, other) in itertools.combinations(items, 2):
        first_wins = math.log(1 + math.exp(other - score))
        second_wins = math.log(1 + math.exp(score - other))
        even = 0.5 * (first_wins + second_wins)
        each.append(even if rank == other_rank else first_wins if rank < other_rank else second_wins)
    return sum(each) / len(each)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("loss", "by_hand"), [("plackett-luce", by_orders), ("bradley-terry", by_pairs)])
def test_rankings_with_ties_by_hand(parts, packed, loss, by_hand):
    if packed:
        assert choose_packed_attention(parts.model, len(parts.tokenizer))
    records = rankings_of()
    found, measures = loss_of(phase_of(loss=loss, centring=0.03), parts, records, packed)
    parts.model.set_attn_implementation("sdpa")
    by_rank = [scored(parts, record) for record in records]
    pairs = [by_pairs(each) if sum(map(len, each.values())) == 2 else by_hand(each) for each in by_rank]
    means = [np.mean([score for scores in each.values() for score in scores]) for each in by_rank]
    assert float(found) == pytest.approx(sum(pairs) + 0.03 * sum(4 * mean * mean for mean in means), rel=1e-4)
    assert float(measures["score"]) == pytest.approx(sum(means), abs=1e-4)
    right = [
        np.mean([better > worse for a, b in itertools.combinations(sorted(each), 2) for better in each[a] for worse in each[b]])
        for each in by_rank
    ]  # fmt: skip
    assert float(measures["accuracy"]) == pytest.approx(sum(right), abs=1e-5)
    assert tuple(measures) == NAMES


@pytest.mark.parametrize(
    ("probability", "margin"), [(None, None), (0.8, None), (0.3, None), (0.5, None), (None, 0.7), (0.9, -0.2)]
)
def test_soft_labels_and_margins_by_hand(parts, probability, margin):
    record = Ranking("a question", ["a bird", "saw it then"], [1.0, 2.0], probability, margin)
    found, _ = loss_of(phase_of(), parts, [record], packed=False)
    (first,), (second,) = scored(parts, record).values()
    likely, apart = 1.0 if probability is None else probability, margin or 0.0
    wins, loses = first - second, second - first
    expected = likely * math.log(1 + math.exp(apart - wins)) + (1 - likely) * math.log(1 + math.exp(apart - loses))
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_the_order_in_a_row_does_not_matter(parts):
    """Pairs and rankings say the same whichever answer comes first."""
    one = Ranking("q", ["a bird", "saw it", "two"], [2.0, 1.0, 3.0])
    other = Ranking("q", ["two", "a bird", "saw it"], [3.0, 2.0, 1.0])
    assert (
        phase_of().example(one, parts.renderer).ids.tolist() == phase_of().example(other, parts.renderer).ids.tolist()
    )
    told = [loss_of(phase_of(), parts, [each], False) for each in (
        Ranking("q", ["a bird", "saw it"], [1.0, 2.0], 0.9), Ranking("q", ["saw it", "a bird"], [1.0, 2.0], 0.1)
    )]  # fmt: skip
    assert float(told[0][0]) == pytest.approx(float(told[1][0]), abs=1e-6)


def test_an_empty_share_has_a_loss_of_nothing_that_can_be_learnt_from(parts):
    batch = collate(Store([]), [], packed=False, filler=parts.pad)
    loss, measures = phase_of().loss(parts.model, batch)
    loss.backward()
    assert float(loss) == 0
    assert tuple(measures) == NAMES
    assert float(parts.model.score.weight.grad.abs().sum()) == 0
    parts.model.zero_grad()


# Runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    train, held = write_pairs(folder / "train.jsonl", 40), write_pairs(folder / "eval.jsonl", 16, seed=9)
    return {"train": str(train), "eval": str(held)}


@pytest.fixture(scope="module")
def run(tiny_model, data, tmp_path_factory):
    """A finished run with LoRA, packed, in one process."""
    made = reward_recipe(tiny_model("llama-tied"), data, epochs=3, eval_every=3)
    return tutelage.train(made, out=tmp_path_factory.mktemp("runs") / "run").folder


def test_a_run_learns_what_is_preferred_and_keeps_its_learning_curve(run):
    curve = [event["eval_accuracy"] for event in events(run, "eval")]
    told = events(run, "conclusion")[0]
    assert len(curve) >= 3
    assert curve[-1] == told["held_out_accuracy"] > 0.9
    assert told["held_out_accuracy_low"] > 0.5
    assert "better than chance" in told["verdict"][0]
    assert losses(run)[-1] < 0.5 * losses(run)[0]
    record = json.loads((run / "run.json").read_text())["stages"][0]
    assert record["kind"] == "reward_model"
    assert record["metrics"]["held_out_accuracy"] == told["held_out_accuracy"]


def test_the_first_loss_is_what_transformers_computes(run, tiny_model, data):
    """-log sigmoid of the difference of scores (Ouyang et al. 2022, equation 1), over the first step's pairs."""
    first = events(run, "step")[0]
    model = load_scorer(Located("model", str(tiny_model("llama-tied"))), dtype=torch.float32, seed=0).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "stages" / "reward" / "adapter")
    each = {}
    for row in map(json.loads, Path(data["train"]).read_text().splitlines()):
        lengths, scores = 0, []
        for answer in (row["chosen"], row["rejected"]):
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            lengths += ids.shape[1]
            with torch.no_grad():
                scores.append(float(model(input_ids=ids).logits[0, 0]))
        each[row["prompt"]] = (lengths, math.log(1 + math.exp(scores[1] - scores[0])))
    order = np.random.default_rng([0, 0]).permutation(len(each))
    counts = np.cumsum([list(each.values())[index][0] for index in order])
    chosen = order[: int(np.searchsorted(counts, first["tokens"])) + 1]
    assert counts[len(chosen) - 1] == first["tokens"]
    assert first["loss"] == pytest.approx(np.mean([list(each.values())[index][1] for index in chosen]), abs=1e-5)


def test_scores_are_the_same_in_a_new_process(run):
    """By plain transformers and peft, and by the scorer, which nothing of this process reaches."""
    adapter = run / "stages" / "reward" / "adapter"
    prompts, answers = ["3 cat saw"] * 3, ["birds trees", "then saw mat", "cat " * 20]
    here = load_scorer_for_use(adapter).score(prompts, answers, batch_size=2)
    code = """
import json, sys
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer
from tutelage.models.heads import load_scorer_for_use

folder, prompts, answers = json.loads(sys.argv[1])
model = AutoPeftModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
chats = [[{"role": "user", "content": p}, {"role": "assistant", "content": a}] for p, a in zip(prompts, answers)]
texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
with torch.no_grad():
    plain = model(**tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")).logits[:, 0]
print(json.dumps([load_scorer_for_use(folder).score(prompts, answers, batch_size=2), plain.tolist()]))
"""
    told = subprocess.run(
        [sys.executable, "-c", code, json.dumps([str(adapter), prompts, answers])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    scorer, plain = json.loads(told.stdout.splitlines()[-1])
    assert scorer == here
    assert plain == pytest.approx(here, abs=1e-4)
    assert here[0] > here[1]


@pytest.mark.parametrize("changed", ["padded", "two processes", "sharded"])
def test_no_layout_changes_the_losses(run, tiny_model, data, tmp_path, changed):
    """Padded rows, and two processes with whole or sharded weights: the same curve, and the same saved scores."""
    settings = {
        "padded": {"packing": False, "tokens_per_micro_batch": 300},
        "two processes": {"devices": 2},
        "sharded": {"devices": 2, "strategy": "fsdp"},
    }[changed]
    made = reward_recipe(tiny_model("llama-tied"), data, epochs=3, eval_every=3, **settings)
    other = tutelage.train(made, out=tmp_path / "run").folder
    assert losses(other) == pytest.approx(losses(run), abs=2e-4)
    expected, found = (events(folder, "conclusion")[0]["scores"] for folder in (run, other))
    assert found["better"]["mean"] == pytest.approx(expected["better"]["mean"], abs=5e-3)
    told = [load_scorer_for_use(folder / "stages" / "reward" / "adapter") for folder in (run, other)]
    scores = [scorer.score(["3 cat saw"], ["birds trees"])[0] for scorer in told]
    assert scores[1] == pytest.approx(scores[0], abs=5e-3)


def test_killed_it_goes_on_to_the_same_model(run, tiny_model, data, tmp_path):
    made = reward_recipe(tiny_model("llama-tied"), data, epochs=3, eval_every=3)
    child = in_child(train_or_resume, made, str(tmp_path / "run"), "before-rename")
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child = in_child(train_or_resume, made, str(tmp_path / "run"))
    child.join()
    assert child.exitcode == 0
    assert same(learnt(tmp_path / "run"), learnt(run))
    assert losses(tmp_path / "run") == losses(run)


@pytest.mark.parametrize(("family", "adapter"), [("gpt2", "full"), ("qwen2", "qlora")])
def test_other_models_and_adapters_are_read_back_as_they_were(tiny_model, data, tmp_path, family, adapter):
    made = reward_recipe(tiny_model(family), data, adapter=adapter, max_steps=2, learning_rate=1e-3)
    folder = tutelage.train(made, out=tmp_path / "run").folder
    saved = events(folder, "saved")[0]
    assert saved["verified"]
    assert saved["stops_by_itself"] is None
    card = (Path(saved["folder"]) / "README.md").read_text()
    assert "ForSequenceClassification" in card


def test_a_tokenizer_of_one_special_token_is_given_one_to_pad_with(data, tmp_path):
    """As GPT-2's: the base grows by a row, and plain peft loads it all."""
    model = tmp_path / "model"
    tiny.write_model(model, "gpt2")
    alone = tiny.tokenizer(template=None)
    text = json.loads(alone.backend_tokenizer.to_str())
    text["added_tokens"] = text["added_tokens"][:1]
    (model / "tokenizer.json").write_text(json.dumps(text))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings = {key: value for key, value in settings.items() if key not in ("chat_template", "added_tokens_decoder")}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    assert len(AutoTokenizer.from_pretrained(model).all_special_ids) == 1

    folder = tutelage.train(reward_recipe(model, data, max_steps=2), out=tmp_path / "run").folder
    scorer = load_scorer_for_use(folder / "stages" / "reward" / "adapter")
    assert scorer.tokenizer.pad_token == "<|pad|>"
    assert scorer.pad == len(scorer.tokenizer) - 1
    both = scorer.score(["a", "a"], ["bird", "saw " * 9])
    assert both[0] == pytest.approx(scorer.score(["a"], ["bird"])[0], abs=1e-5)


def test_a_reward_model_learns_on_from_what_an_earlier_one_learnt(run, data, tmp_path):
    made = reward_recipe(run / "stages" / "reward" / "adapter", data, adapter="full", max_steps=1, learning_rate=1e-6)
    folder = tutelage.train(made, out=tmp_path / "run").folder
    assert losses(folder)[0] < 0.5 * losses(run)[0]
    assert AutoModelForSequenceClassification.from_pretrained(folder / "stages/reward/model").config.num_labels == 1


# What can't be learnt from


def refused(model, path: Path, rows: list[dict], **settings) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = tutelage.check(reward_recipe(model, path, phase={"kind": "reward_model", **settings}))
    return [str(problem) for problem in report.problems]


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
RANKS = {"prompt": "r", "answers": ["a", "b", "c"], "ranks": [1, 2, 3]}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({**PAIR, "rejected": ""}, "rejected is empty"),
        ({**PAIR, "rejected": None}, "rejected"),
        ({**PAIR, "rejected": "a"}, "same answer"),
        ({**PAIR, "probability": 1.5}, "probability is 1.5"),
        ({**RANKS, "answers": ["a", "b"]}, "ranks has 3 and answers 2"),
        ({**RANKS, "answers": ["a", "b", ""]}, "answers[2] is empty"),
        ({**RANKS, "ranks": [1, None, 2]}, "ranks[1] is missing"),
        ({**RANKS, "ranks": [1, 1, 1]}, "same rank"),
        ({**RANKS, "answers": ["a", "b", "a"]}, "twice, with ranks"),
    ],
)
def test_a_broken_row_is_named(tiny_model, tmp_path, row, sentence):
    good = {**RANKS, "prompt": "fine"} if "answers" in row else {**PAIR, "prompt": "fine"}
    problems = refused(tiny_model("qwen2"), tmp_path / "rows.jsonl", [good, row])
    assert any("rows.jsonl line 2" in problem and sentence in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (Ranking("q", ["a", "b"], [1.0, float("nan")]), "not a finite number"),
        (Ranking("q", ["a"], [1.0]), "needs two or more"),
        (Ranking("q", ["a", "b"], [1.0]), "1 ranks for 2 answers"),
        (Ranking("q", ["a", "b"], [2.0, 2.0]), "the same rank"),
        (Ranking("q", ["a", "b", "a"], [1.0, 2.0, 3.0]), "two of its answers are the same"),
        (Ranking("q", ["a", "a"], [1.0, 2.0]), "the same"),
        (Ranking("q", ["a", "a"], [1.0, 2.0], 0.5), "nothing to prefer"),
        (Ranking("q", ["a", "b", "c"], [1.0, 2.0, 3.0], None, 0.5), "only a pair"),
        (Ranking("q", ["a", ""], [1.0, 2.0]), "empty"),
    ],
)
def test_a_ranking_that_says_nothing_is_refused_whatever_made_it(parts, record, sentence):
    with pytest.raises(ValueError, match=sentence):
        phase_of().example(record, parts.renderer)


def test_an_answer_that_is_there_twice_with_one_rank_counts_once(parts):
    once = phase_of().example(Ranking("q", ["a", "b"], [1.0, 2.0]), parts.renderer)
    twice = phase_of().example(Ranking("q", ["a", "b", "a"], [1.0, 2.0, 1.0]), parts.renderer)
    assert twice.ids.tolist() == once.ids.tolist()
    assert twice.values.tolist() == once.values.tolist()


def test_judgements_made_twice_are_named_or_kept(tiny_model, tmp_path):
    again = {"prompt": "r", "answers": ["c", "b", "x"], "ranks": [3, 2, 1]}
    other = {"prompt": "r", "answers": ["b", "a"], "ranks": [1, 2]}
    rows = [RANKS, {**RANKS, "prompt": "s"}, again, other]
    problems = refused(tiny_model("qwen2"), tmp_path / "rows.jsonl", rows)
    assert any(
        "line 3: judges the same answers as" in p and p.count("line 1") and "otherwise" not in p for p in problems
    )
    assert any("line 4: judges the same answers as" in p and "line 1, and otherwise" in p for p in problems)
    assert len(problems) == 2
    assert refused(tiny_model("qwen2"), tmp_path / "rows.jsonl", rows, repeats="keep") == []


def test_what_a_reward_model_can_not_learn_by_is_refused(tiny_model, data, tmp_path):
    model = tiny_model("qwen2")
    report = tutelage.check(reward_recipe(model, data, adapter="prompt"))
    assert any("stages.reward.adapter" in str(problem) and "padding" in str(problem) for problem in report.problems)
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    report = tutelage.check(reward_recipe(model, chats))
    assert any("ranked answers" in str(problem) for problem in report.problems)
    report = tutelage.check(reward_recipe(model, data, adapter={"kind": "lora", "targets": ["score"]}))
    assert any("score is a Linear, which can't be adapted" in str(problem) for problem in report.problems)


# What is told of a model


def held_out(count: int, scores, lengths=None, seed: int = 0, **more) -> list[Answers]:
    """Pairs, better first; `scores(length, worth)` is the model, where worth is 1 for the better answer."""
    generator = np.random.default_rng(seed)
    made = []
    for index in range(count):
        sizes = generator.integers(5, 60, 2) if lengths is None else np.array(lengths[index])
        given = [scores(sizes[0], 1, generator), scores(sizes[1], 0, generator)]
        names = [f"{index}a", f"{index}b"]
        ranks = np.array([1.0, 2.0])
        made.append(Answers(f"p{index}", names, ranks, sizes.astype(float), np.array(given, dtype=float), **more))
    return made


def test_a_model_that_learnt_only_length_is_named():
    told = report_on(held_out(200, lambda length, worth, noise: 0.1 * length + noise.normal(0, 0.1)))
    assert any("learnt length and little else" in sentence for sentence in told["verdict"])
    assert told["length"]["correlation"] > 0.95
    assert told["length"]["where_shorter_is_better"]["high"] < 0.1
    told = report_on(held_out(200, lambda length, worth, noise: -0.1 * length))
    assert any("prefers the shorter answer in 100.0%" in sentence for sentence in told["verdict"])


def test_a_model_that_learnt_worth_is_not_called_one_of_length():
    told = report_on(held_out(200, lambda length, worth, noise: worth + 0.01 * length + noise.normal(0, 0.3)))
    assert told["verdict"] == [told["verdict"][0]]
    assert "better than chance" in told["verdict"][0]
    guess = report_on(held_out(200, lambda length, worth, noise: noise.normal()))
    assert "can't be told from chance" in guess["verdict"][0]
    wrong = report_on(held_out(200, lambda length, worth, noise: -worth))
    assert "worse than chance" in wrong["verdict"][0]


def test_a_trained_model_of_length_is_named(tiny_model, tmp_path):
    """Longer answers are better in all that it learns from, and worse in half of what it is asked."""
    generator = random.Random(4)
    rows = []
    for row in range(80):
        short, long = (" ".join(generator.choices(["cat", "saw", "two"], k=k)) for k in (generator.randint(1, 3), 16))
        chosen, rejected = (long, short) if row < 60 or row % 2 else (short, long)
        rows.append({"prompt": f"row {row}", "chosen": chosen, "rejected": rejected})
    for name, part in (("train", rows[:60]), ("eval", rows[60:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    source = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")}
    folder = tutelage.train(reward_recipe(tiny_model("llama-tied"), source, epochs=2), out=tmp_path / "run").folder
    told = events(folder, "conclusion")[0]
    assert told["length"]["where_shorter_is_better"]["accuracy"] < 0.2
    assert any("learnt length and little else" in sentence for sentence in told["verdict"])


def test_wilson_and_the_rank_correlation_by_known_values():
    assert _held_out.wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert _held_out.wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    one, other = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 5])
    assert _held_out._spearman(one, other) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert _held_out._mean_ranks(np.array([3.0, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]


def test_calibration_by_hand():
    """Ten pairs at a difference of log 3, where the model says 0.75, of which it has six right: an error of 0.15."""
    apart = math.log(3)
    right = held_out(6, lambda length, worth, noise: apart * worth)
    wrong = held_out(4, lambda length, worth, noise: -apart * worth, seed=1)
    told = report_on([*right, *wrong])["calibration"]
    assert told["error"] == pytest.approx(0.15, abs=1e-6)
    assert told["bins"] == [{"from": 0.75, "to": 0.8, "sure": pytest.approx(0.75), "right": 0.6, "pairs": 10}]


def test_accuracy_counts_rankings_alike_and_prompts_once():
    """Three of three pairs and none of one: half of the two rankings, which are of one prompt."""
    three = Answers("p", ["a", "b", "c"], np.array([1.0, 2, 3]), np.ones(3), np.array([3.0, 2, 1]))
    pair = Answers("p", ["d", "e"], np.array([1.0, 2]), np.ones(2), np.array([0.0, 1]))
    told = report_on([three, pair])
    assert told["held_out_accuracy"] == 0.5
    assert told["held_out_pairs"] == 4
    assert told["held_out_prompts"] == 1
    assert (told["held_out_accuracy_low"], told["held_out_accuracy_high"]) == _held_out.wilson(0.5, 1)


def test_agreement_of_annotators_by_hand():
    """Two pairs judged twice, once alike and once not; else what probabilities say."""

    def pair(name, ranks, **more):
        return Answers(name, [f"{name}a", f"{name}b"], np.array(ranks), np.ones(2), np.array([1.0, 0]), **more)

    told = report_on([pair("x", [1.0, 2]), pair("x", [1.0, 2]), pair("y", [1.0, 2]), pair("y", [2.0, 1])])
    assert told["annotators"]["agreement"] == 0.5
    assert told["annotators"]["highest_accuracy"] == 0.5
    soft = report_on([pair(str(index), [1.0, 2], probability=0.8) for index in range(5)])
    assert soft["annotators"]["agreement"] == pytest.approx(0.68)
    assert soft["annotators"]["highest_accuracy"] == pytest.approx(0.8)
    assert any("people agree with each other in 68.0%" in sentence for sentence in soft["verdict"])
    assert "annotators" not in report_on([pair("x", [1.0, 2])])


def test_rankings_of_four_learn_with_ties(tiny_model, tmp_path):
    source = {"train": str(write_rankings(tmp_path / "train.jsonl", 30, ties=True)), "eval_split": 0.2}
    folder = tutelage.train(reward_recipe(tiny_model("llama-tied"), source, epochs=4), out=tmp_path / "run").folder
    told = events(folder, "conclusion")[0]
    assert told["held_out_pairs"] == 5 * told["held_out_rankings"]
    assert told["held_out_accuracy"] > 0.8


def test_scores_of_a_packed_row_are_those_of_padded_rows(parts):
    store = Store([phase_of().example(record, parts.renderer) for record in rankings_of(3, 4)])
    assert choose_packed_attention(parts.model, len(parts.tokenizer))
    with torch.no_grad():
        packed = sequence_scores(parts.model, collate(store, range(4), packed=True, filler=parts.pad))
        parts.model.set_attn_implementation("sdpa")
        padded = sequence_scores(parts.model, collate(store, range(4), packed=False, filler=parts.pad))
    assert packed.shape == padded.shape
    assert torch.allclose(packed, padded, atol=1e-5)


def test_scores_are_the_same_where_prompts_stand_once(parts):
    sequences = [np.concatenate([np.arange(40), np.arange(first, first + 9)]).astype(np.int32) for first in range(6)]
    pairs = [[Tokens(ids, np.arange(49) >= 41) for ids in sequences[number : number + 2]] for number in (0, 2, 4)]
    store = Store([together(pair, [[0.0]] * 2) for pair in pairs])
    assert choose_packed_attention(parts.model, len(parts.tokenizer))
    assert shares_exactly(parts.model, len(parts.tokenizer))
    with torch.no_grad():
        apart, shared = (
            collate(store, range(3), packed=True, filler=parts.pad, shares=shares) for shares in (False, True)
        )
        expected, found = sequence_scores(parts.model, apart), sequence_scores(parts.model, shared)
    assert shared.ids.numel() == 40 + 6 * 9
    assert found.shape == expected.shape == (6,)
    assert torch.allclose(found, expected, atol=1e-5)
