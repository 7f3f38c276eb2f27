"""Direct preference optimization against plain transformers, against TRL, and in every way of cutting its steps."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from training import WORDS, events, in_child, learnt, losses, recipe, same, train_or_resume, write_chats
from transformers import AutoModelForCausalLM, AutoTokenizer

import tutelage
from tutelage.data.batches import collate
from tutelage.data.preparing import prepare
from tutelage.engine.attention import choose_packed_attention
from tutelage.engine.references import Referenced
from tutelage.models.loading import end_ids
from tutelage.plugins import host
from tutelage.recipe import Data
from tutelage_plugins.phases.dpo import DPO

LOG_2 = math.log(2)
SOME = {"loss": "sigmoid", "beta": 0.2, "label_smoothing": 0.1, "sft_weight": 0.3}


def write_pairs(path, rows=40, seed=0, **columns):
    """Chosen answers repeat the question backwards, rejected ones are made of other words."""
    generator = random.Random(seed)
    with path.open("w") as file:
        for _ in range(rows):
            asked = generator.choices(WORDS, k=generator.randint(2, 12))
            other = generator.choices(WORDS, k=generator.randint(1, 9))
            row = {"prompt": " ".join(asked), "chosen": " ".join(asked[::-1]), "rejected": " ".join(other)}
            file.write(json.dumps({**row, **columns}) + "\n")
    return path


def write_rankings(path):
    rows = [
        {"prompt": "two birds", "answers": ["a cat", "the mat", "it saw", "two"], "ranks": [3, 1, 2, 1]},
        {"prompt": "the cat sat", "answers": ["on a mat", "in three trees"], "ranks": [2, 1]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def dpo(folder, data, *, adapter="full", phase=None, **trainer):
    made = recipe(folder, data, adapter=adapter, **trainer)
    made["stages"][0]["phase"] = {"kind": "dpo", **(phase or {})}
    return made


def examples_of(folder, data):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = prepare(
        DPO(),
        Data(train=str(data)),
        data.parent,
        tokenizer,
        max_length=200,
        seed=0,
        host=host(),
        place="data",
        end_ids=end_ids(tokenizer, tokenizer),
    )
    return found.train


def log_probs(folder, sequences):
    """Of each sequence's learnt tokens, one sequence at a time; and how many they are."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for tokens in sequences:
        ids = torch.from_numpy(tokens.ids.astype(np.int64))
        with torch.no_grad():
            each = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        learnt_here = torch.from_numpy(np.array(tokens.learn))[1:]
        found.append((float(each[learnt_here].sum()), int(learnt_here.sum())))
    return found


def by_hand(policy, reference, ranks, probability, settings):
    """The loss of one ranking, pair by pair, in plain Python."""
    beta, smoothing = settings["beta"], settings.get("label_smoothing", 0.0)
    kind, sft = settings["loss"], settings.get("sft_weight", 0.0)
    normalized = settings.get("length_normalized", kind == "ipo")
    certain = probability * (1 - smoothing) + (1 - probability) * smoothing
    ratios = []
    for (log_p, count), (log_r, _) in zip(policy, reference, strict=True):
        ratio = log_p - (0.0 if settings.get("reference_free") else log_r)
        ratios.append(ratio / count if normalized else ratio)
    hard = {
        "sigmoid": lambda h: math.log1p(math.exp(-beta * h)),
        "ipo": lambda h: (h - 1 / (2 * beta)) ** 2,
        "hinge": lambda h: max(0.0, 1 - beta * h),
    }[kind]
    found = []
    for i, better in enumerate(ranks):
        for j, worse in enumerate(ranks):
            if better < worse:
                margin = ratios[i] - ratios[j]
                loss = certain * hard(margin) + (1 - certain) * hard(-margin)
                found.append((loss - sft * policy[i][0] / policy[i][1], beta * margin))
    count = len(found)
    return sum(loss for loss, _ in found) / count, sum(margin for _, margin in found) / count


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        SOME,
        {"loss": "sigmoid", "beta": 0.1},
        {"loss": "sigmoid", "beta": 0.4, "length_normalized": True},
        {"loss": "ipo", "beta": 0.1},
        {"loss": "ipo", "beta": 0.1, "length_normalized": False},
        {"loss": "hinge", "beta": 0.1, "label_smoothing": 0.2},
        {"loss": "sigmoid", "beta": 0.1, "reference_free": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
@pytest.mark.parametrize(
    ("write", "probability"),
    [
        (lambda path: write_pairs(path, rows=3), 1.0),
        (lambda path: write_pairs(path, rows=3, probability=0.8), 0.8),
        (write_rankings, 1.0),
    ],
    ids=["pairs", "soft", "rankings"],
)
def test_the_loss_is_what_transformers_and_the_papers_give(tiny_model, tmp_path, settings, packed, write, probability):
    policy, reference = tiny_model("llama-untied"), tiny_model("qwen2")
    examples = examples_of(policy, write(tmp_path / "data.jsonl"))
    loss, margins, known = 0.0, 0.0, []
    for index in range(len(examples)):
        sequences = examples[index].sequences()
        known.append(log_probs(reference, sequences))
        ranks = examples[index].values[:, 0].tolist()
        one, margin = by_hand(log_probs(policy, sequences), known[-1], ranks, probability, settings)
        loss, margins = loss + one, margins + margin
    column = np.array([log_p for example in known for log_p, _ in example], dtype=np.float32)
    phase = DPO(DPO.Config(**settings))
    store = Referenced(examples, column) if phase.needs_reference else examples
    model = AutoModelForCausalLM.from_pretrained(policy, attn_implementation="eager").eval()
    if packed:
        choose_packed_attention(model, model.config.vocab_size)
    found, measures = phase.loss(model, collate(store, range(len(store)), packed=packed, filler=0))
    assert float(found.detach()) == pytest.approx(loss, rel=1e-4)
    assert float(measures["reward_margin"]) == pytest.approx(margins, rel=1e-4)
    difference = measures["reward_chosen"] - measures["reward_rejected"]
    assert float(difference) == pytest.approx(margins, rel=1e-3)
    assert sum(phase.weight(examples[index]) for index in range(len(examples))) == len(examples)


def test_an_uncertain_label_below_half_prefers_the_other_answer(tiny_model, tmp_path):
    one = write_pairs(tmp_path / "one.jsonl", rows=1, probability=0.3)
    row = json.loads(one.read_text())
    other = tmp_path / "other.jsonl"
    swapped = {"chosen": row["rejected"], "rejected": row["chosen"], "probability": 0.7}
    other.write_text(json.dumps({**row, **swapped}) + "\n")
    model = AutoModelForCausalLM.from_pretrained(tiny_model("qwen2")).eval()
    phase = DPO(DPO.Config(reference_free=True))
    found = []
    for data in (one, other):
        batch = collate(examples_of(tiny_model("qwen2"), data), [0], packed=False, filler=0)
        loss, measures = phase.loss(model, batch)
        found.append({"loss": float(loss.detach()), **{name: float(each) for name, each in measures.items()}})
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_an_empty_share_of_a_step_has_a_gradient_of_nothing(tiny_model, tmp_path):
    examples = examples_of(tiny_model("qwen2"), write_pairs(tmp_path / "data.jsonl", rows=1))
    model = AutoModelForCausalLM.from_pretrained(tiny_model("qwen2")).train()
    loss, measures = DPO().loss(model, collate(examples, [], packed=False, filler=0))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(float(parameter.grad.abs().sum()) == 0 for parameter in model.parameters() if parameter.grad is not None)
    assert any(parameter.grad is not None for parameter in model.parameters())
    assert set(measures) == set(
        DPO(DPO.Config(reference_free=True)).loss(model, collate(examples, [0], packed=False, filler=0))[1]
    )


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"loss": "sigmoid", "beta": 0.1}, {"loss_type": "sigmoid"}),
        ({"loss": "ipo", "beta": 0.1}, {"loss_type": "ipo"}),
        ({"loss": "hinge", "beta": 0.1}, {"loss_type": "hinge"}),
        ({"loss": "sigmoid", "beta": 0.1, "length_normalized": True}, {"loss_type": "sigmoid_norm"}),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_the_loss_is_that_of_trl(tiny_model, tmp_path, settings, theirs):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    policy, reference = tiny_model("llama-untied"), tiny_model("qwen2")
    examples = examples_of(policy, write_pairs(tmp_path / "data.jsonl", rows=4))
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy),
        AutoModelForCausalLM.from_pretrained(reference),
        args=trl.DPOConfig(str(tmp_path / "trl"), beta=0.1, use_cpu=True, bf16=False, report_to="none", **theirs),
        train_dataset=datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tokenizer,
    )
    rows = []
    for index in range(len(examples)):
        chosen, rejected = examples[index].sequences()
        start, end = np.flatnonzero(chosen.learn)[[0, -1]]
        other = np.flatnonzero(rejected.learn)[-1]
        prompt, answer, worse = chosen.ids[:start], chosen.ids[start : end + 1], rejected.ids[start : other + 1]
        rows.append({"prompt_ids": prompt.tolist(), "chosen_ids": answer.tolist(), "rejected_ids": worse.tolist()})
    with torch.no_grad():
        expected = trainer._compute_loss(trainer.model, trainer.data_collator(rows), return_outputs=False)
    known = [log_p for index in range(4) for log_p, _ in log_probs(reference, examples[index].sequences())]
    store = Referenced(examples, np.array(known, dtype=np.float32))
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    found, _ = DPO(DPO.Config(**settings)).loss(model, collate(store, range(4), packed=False, filler=0))
    assert float(found.detach()) / 4 == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("adapter", "rate", "epochs", "reached"),
    [("full", 3e-3, 4, 0.5), ("lora", 1e-2, 4, 0.5), ("qlora", 1e-2, 4, 0.5), ("prompt", 0.03, 6, 0.65)],
)
def test_every_adapter_learns_the_preference(tiny_model, tmp_path, adapter, rate, epochs, reached):
    if adapter == "qlora":
        pytest.importorskip("bitsandbytes")
    made = dpo(tiny_model("llama-tied"), write_pairs(tmp_path / "pairs.jsonl"), adapter=adapter, epochs=epochs)
    made["stages"][0]["trainer"]["learning_rate"] = rate
    steps = events(tutelage.train(made, out=tmp_path / "run").folder, "step")
    if adapter != "prompt":  # whose first state is not the reference
        assert steps[0]["loss"] == pytest.approx(LOG_2, abs=1e-3)
        assert steps[0]["reward_margin"] == pytest.approx(0.0, abs=1e-3)
    assert np.mean([step["loss"] for step in steps[-4:]]) < reached
    assert np.mean([step["accuracy"] for step in steps[-4:]]) > 0.8
    for step in steps:
        assert step["reward_margin"] == pytest.approx(step["reward_chosen"] - step["reward_rejected"], abs=1e-3)


def test_no_way_of_cutting_a_step_changes_it(tiny_model, tmp_path):
    """Packed, padded, in few and in many micro-batches: the same losses and measures."""
    data = {"train": str(write_pairs(tmp_path / "pairs.jsonl")), "eval_split": 0.1}
    curves = []
    for number, (packing, tokens) in enumerate([("auto", 4096), ("auto", 150), (False, 4096), (False, 8)]):
        made = dpo(
            tiny_model("llama-tied"),
            data,
            phase=SOME,
            packing=packing,
            tokens_per_micro_batch=tokens,
            learning_rate=1e-3,
        )
        run = tutelage.train(made, out=tmp_path / f"run{number}")
        assert events(run.folder, "stage_started")[0]["packed"] is (packing == "auto")
        names = ("loss", "reward_chosen", "reward_margin", "log_prob_rejected")
        curves.append([step[name] for step in events(run.folder, "step") for name in names])
        curves[-1] += [run.stages[0].metrics[f"eval_{name}"] for name in names]
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=2e-3, rel=1e-4)


def test_two_processes_equal_one(tiny_model, tmp_path):
    data = {"train": str(write_pairs(tmp_path / "pairs.jsonl", rows=30)), "eval_split": 0.1}
    folder = tiny_model("llama-untied")
    one = tutelage.train(dpo(folder, data, learning_rate=1e-3, epochs=1), out=tmp_path / "one")
    for strategy in ("ddp", "fsdp"):
        made = dpo(folder, data, learning_rate=1e-3, epochs=1, devices=2, strategy=strategy)
        two = tutelage.train(made, out=tmp_path / strategy)
        assert losses(two.folder) == pytest.approx(losses(one.folder), abs=1e-4)
        for name in ("eval_loss", "eval_accuracy", "eval_reward_margin"):
            assert two.stages[0].metrics[name] == pytest.approx(one.stages[0].metrics[name], abs=1e-3)


def test_a_killed_run_goes_on_to_the_same_weights(tiny_model, tmp_path):
    """The reference stays the model that the stage began with, not the one that it went on from."""
    data = write_pairs(tmp_path / "pairs.jsonl", rows=30)
    made = dpo(tiny_model("qwen2"), data, learning_rate=2e-3, checkpoint_every=2)
    whole, part = tmp_path / "whole", tmp_path / "part"
    for run, crash in ((whole, ""), (part, "after-rename"), (part, "")):
        child = in_child(train_or_resume, made, str(run), crash)
        child.join()
        assert (child.exitcode == 0) is (not crash)
    assert same(learnt(part), learnt(whole))
    assert losses(part) == losses(whole)
    assert all(later != earlier for earlier, later in pairwise(losses(whole)))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "a", "chosen": "the same", "rejected": "the same"}, "same"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "  "}, "empty"),
        ({"prompt": "a", "chosen": "b"}, "rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "probability": 1.5}, "probability"),
    ],
)
def test_a_useless_pair_is_named(tiny_model, tmp_path, row, told):
    data = write_pairs(tmp_path / "pairs.jsonl", rows=5)
    with data.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(tutelage.TutelageError, match=told) as caught:
        tutelage.train(dpo(tiny_model("qwen2"), data), out=tmp_path / "run")
    assert "pairs.jsonl line 6" in str(caught.value)
    assert caught.value.exit_code == 2


def test_useless_rankings_are_named(tiny_model, tmp_path):
    data = write_rankings(tmp_path / "rankings.jsonl")
    with data.open("a") as file:
        file.write(json.dumps({"prompt": "a", "answers": ["b", "c", "d"], "ranks": [1, 1, 1]}) + "\n")
        file.write(json.dumps({"prompt": "a", "answers": ["b", "c", "b"], "ranks": [1, 2, 3]}) + "\n")
    with pytest.raises(tutelage.TutelageError) as caught:
        tutelage.train(dpo(tiny_model("qwen2"), data), out=tmp_path / "run")
    for place in ("rankings.jsonl line 3", "rankings.jsonl line 4"):
        assert place in str(caught.value)


def test_answers_that_are_the_same_to_the_model_are_refused():
    """A format of someone else's may let them through."""

    class Alike:
        def answered(self, prompt, answer):
            from tutelage.data.rendering import Tokens

            ids = np.array([1, *map(ord, answer.strip())], dtype=np.int32)
            return Tokens(ids, np.arange(len(ids)) > 0)

    with pytest.raises(ValueError, match="the same to the model"):
        DPO().example(tutelage.Ranking("a", ["b", "b "], [1, 2]), Alike())
    with pytest.raises(ValueError, match="tied"):
        DPO().example(tutelage.Ranking("a", ["b", "c"], [1, 1]), Alike())
    assert len(DPO().example(tutelage.Ranking("a", ["b", "b ", "c"], [1, 1, 2]), Alike()).lengths) == 3


def test_other_rows_than_preferences_are_refused(tiny_model, tmp_path):
    data = write_chats(tmp_path / "chats.jsonl", rows=3)
    with pytest.raises(tutelage.TutelageError, match="is a conversation, and the phase dpo takes ranked answers"):
        tutelage.train(dpo(tiny_model("qwen2"), data), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"loss": "sigmod"}, "loss"),
        ({"beta": 0}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"bta": 1}, "beta"),
    ],
)
def test_wrong_settings_are_told_before_anything_runs(tiny_model, tmp_path, setting, told):
    data = write_pairs(tmp_path / "pairs.jsonl", rows=2)
    with pytest.raises(tutelage.TutelageError, match=told):
        tutelage.train(dpo(tiny_model("qwen2"), data, phase=setting), out=tmp_path / "run")


def test_one_long_answer_drops_its_pair_and_is_counted(tiny_model, tmp_path):
    data = write_pairs(tmp_path / "pairs.jsonl", rows=30)
    with data.open("a") as file:
        file.write(json.dumps({"prompt": "a cat", "chosen": "the mat " * 200, "rejected": "no"}) + "\n")
    source = {"train": str(data), "allow_loss": 0.1}
    run = tutelage.train(dpo(tiny_model("qwen2"), source, max_steps=1), out=tmp_path / "run")
    report = events(run.folder, "data")[0]["report"]
    assert report["examples"] == 30
    assert "longer than 200 tokens" in json.dumps(report)


def test_a_pair_judged_twice_is_named_or_kept(tiny_model, tmp_path):
    pair = {"prompt": "a cat", "chosen": "two birds", "rejected": "three trees"}
    turned = {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in (pair, pair, turned)))
    made = recipe(tiny_model("qwen2"), data, max_steps=1)
    made["stages"][0]["phase"] = {"kind": "dpo"}
    told = "\n".join(map(str, tutelage.check(made).problems))
    assert "line 2: judges the same answers as" in told
    assert "line 3: judges the same answers as" in told
    assert told.count("and otherwise") == 1
    made["stages"][0]["phase"]["repeats"] = "keep"
    assert tutelage.check(made).ok
