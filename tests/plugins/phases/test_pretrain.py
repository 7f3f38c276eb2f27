"""Pretraining from nothing: the model that is made, what is learnt of which text, and what is told of it."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from training import WORDS, events, learnt, losses, write_chats
from transformers import AutoModelForCausalLM, AutoTokenizer

import tutelage
from tutelage.data.preparing import prepare
from tutelage.models.architectures import config_of_size, count
from tutelage.models.vocabulary import CHATML, train_tokenizer
from tutelage.plugins import host
from tutelage.recipe import Data, resolve

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}


def write_text(path, documents=60, seed=0):
    """Documents in which each word but the first follows from the one before it."""
    generator = random.Random(seed)
    made = []
    for _ in range(documents):
        start = generator.randrange(len(WORDS))
        made.append(" ".join(WORDS[(start + at) % len(WORDS)] for at in range(generator.randint(2, 40))))
    path.write_text("\n\n".join(made))
    return path


def recipe(data, phase=None, model="new", **trainer):
    made = {"max_length": 32, "tokens_per_step": 256, "precision": "fp32", "devices": 1, "rehearsal": False, **trainer}
    if model == "new":
        phase = {"shape": SMALL, "vocabulary": 280, **(phase or {})}
    source = data if isinstance(data, dict) else {"train": str(data)}
    stage = {"name": "read", "phase": {"kind": "pretrain", **(phase or {})}, "data": source, "trainer": made}
    return {"name": "tiny", "model": str(model), "stages": [stage]}


def nll(model, ids):
    """Of each token but the first, by the plain model."""
    ids = torch.from_numpy(np.asarray(ids, dtype=np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0, :-1].double()
    return F.cross_entropy(logits, ids[1:], reduction="none")


def prepared(folder, data, max_length=32, seed=0, **config):
    """The windows of a text under a model's tokenizer."""
    phase = host().get("phase", "pretrain", "")
    made = phase(phase.Config(**config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settled = Data(**data) if isinstance(data, dict) else Data(train=str(data))
    source = {"seed": seed, "host": host(), "place": "data"}
    return prepare(made, settled, folder, tokenizer, max_length=max_length, **source)


@pytest.mark.parametrize(
    ("architecture", "parameters", "vocabulary"),
    [("llama", 3e5, 300), ("qwen2", 1e6, 2000), ("qwen3", 5e5, 300), ("gpt2", 1e6, 500), ("gemma", 4e5, 600)],
)
def test_sizes_are_met(architecture, parameters, vocabulary):
    config = config_of_size(architecture, parameters, {"vocab_size": vocabulary}, "phase")
    assert count(config) == pytest.approx(parameters, rel=0.04)
    assert config.model_type == architecture
    assert config.hidden_size % config.num_attention_heads == 0
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(config).num_parameters() == count(config)


def test_depth_grows_with_width():
    """About 100 million parameters: ln width = 5.039 + 0.0555 depth (Levine et al. 2020), within one layer."""
    config = config_of_size("llama", 1e8, {"vocab_size": 8192}, "phase")
    assert config.num_hidden_layers == pytest.approx((math.log(config.hidden_size) - 5.039) / 0.0555, abs=1.5)
    assert config.tie_word_embeddings


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def run(text):
    """A short pretraining with held-out text."""
    data = {"train": str(text), "eval_split": 0.2}
    return tutelage.train(recipe(data, epochs=8, learning_rate=1e-2, seed=3), out=text.parent / "run")


def test_a_new_model_is_any_model(run):
    """Plain transformers loads what was started from and what was made; it has the size that was asked for."""
    start = run.folder / "stages" / "read" / "start"
    model = AutoModelForCausalLM.from_pretrained(start)
    assert model.config.hidden_size == 32
    assert model.config.max_position_embeddings == 32
    tokenizer = AutoTokenizer.from_pretrained(start)
    assert model.config.vocab_size == len(tokenizer) <= 280
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    made = AutoModelForCausalLM.from_pretrained(run.artifact)
    assert made.num_parameters() == model.num_parameters() == events(run.folder, "stage_started")[0]["trainable"]
    ids = tokenizer("the cat sat on a mat and then", return_tensors="pt")["input_ids"]
    said = tokenizer.decode(made.generate(ids, max_new_tokens=12, do_sample=False)[0])
    assert "it saw two" in said


def test_it_learns_more_than_how_often_words_come(run, text):
    """The loss on held-out text falls far below the entropy of single tokens."""
    tokenizer = AutoTokenizer.from_pretrained(run.artifact)
    counts = Counter(id_ for line in text.read_text().split("\n\n") for id_ in tokenizer(line)["input_ids"])
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    assert run.stages[0].metrics["eval_loss"] < 0.6 * entropy
    assert losses(run.folder)[0] == pytest.approx(math.log(len(tokenizer)), rel=0.02)


def test_bits_per_byte_by_hand(run, text):
    """The held-out rows, found by decoding; their text's negative log-likelihood over its bytes."""
    windows = prepared(run.artifact, {"train": str(text), "eval_split": 0.2}, seed=3).eval
    model = AutoModelForCausalLM.from_pretrained(run.artifact).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.artifact)
    nats = sum(float(nll(model, window.ids).sum()) for window in windows)
    rows = [windows.rows[index].ids for index in range(len(windows.rows))]
    held_out = {tokenizer.decode(ids, skip_special_tokens=True) for ids in rows}
    assert held_out <= set(text.read_text().split("\n\n"))
    in_bytes = sum(len(tokenizer.decode(ids, skip_special_tokens=True).encode()) for ids in rows)
    metrics = run.stages[0].metrics
    assert metrics["eval_loss"] == pytest.approx(nats / sum(len(window) - 1 for window in windows), abs=1e-4)
    assert metrics["eval_bits_per_byte"] == pytest.approx(nats / math.log(2) / in_bytes, rel=1e-4)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]), rel=1e-6)


@pytest.mark.parametrize("packing", ["auto", False])
@pytest.mark.parametrize("across", [True, False])
def test_first_loss_is_what_transformers_computes(tiny_model, text, tmp_path, across, packing):
    """Each window alone through the plain model; where documents are apart, each part of one alone."""
    folder = tiny_model("llama-untied")
    config = {"across_documents": across}
    made = recipe(text, config, model=folder, max_steps=1, packing=packing, tokens_per_step=10_000)
    result = tutelage.train(made, out=tmp_path / "run")
    windows = prepared(folder, text, **config).train
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    parts = [part.ids for window in windows for part in (window.sequences() if not across else [window])]
    found = torch.cat([nll(model, ids) for ids in parts if len(ids) > 1])
    assert losses(result.folder)[0] == pytest.approx(float(found.mean()), abs=1e-5)
    ends = sum(len(part) for part in parts)
    assert len(found) == windows.weights.sum() == ends - len(parts)
    if not across:
        eos = AutoTokenizer.from_pretrained(folder).eos_token_id
        assert len(parts) > len(windows)
        assert not any((ids[:-1] == eos).any() for ids in parts)


def test_z_loss_by_hand(tiny_model, text, tmp_path):
    """1e-2 times the squared logarithm of the normaliser is added, in training alone (Chowdhery et al. 2022)."""
    folder = tiny_model("llama-untied")
    curves = []
    for weight in (0.0, 0.01):
        data = {"train": str(text), "eval": str(text)}
        made = recipe(data, {"z_loss": weight}, model=folder, max_steps=1, tokens_per_step=10_000, learning_rate=1e-9)
        curves.append(tutelage.train(made, out=tmp_path / f"run{weight}"))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    squares = []
    for window in prepared(folder, text).train:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(window.ids.astype(np.int64))[None]).logits[0, :-1]
        squares.append(logits.exp().sum(-1).log().square())
    added = losses(curves[1].folder)[0] - losses(curves[0].folder)[0]
    assert added == pytest.approx(0.01 * float(torch.cat(squares).mean()), abs=1e-5)
    assert curves[1].stages[0].metrics["eval_loss"] == pytest.approx(curves[0].stages[0].metrics["eval_loss"], abs=1e-6)


def test_the_seed_alone_decides_the_weights(text, tmp_path):
    starts = []
    for number, seed in enumerate((5, 5, 6)):
        made = tutelage.train(recipe(text, max_steps=1, seed=seed), out=tmp_path / str(number))
        starts.append(AutoModelForCausalLM.from_pretrained(made.folder / "stages/read/start").state_dict())
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not torch.equal(starts[0]["model.embed_tokens.weight"], starts[2]["model.embed_tokens.weight"])
    assert starts[0]["model.embed_tokens.weight"].std() == pytest.approx(0.02, rel=0.05)
    for name in ("self_attn.o_proj", "mlp.down_proj"):  # two layers: 0.02 / sqrt(4)
        assert starts[0][f"model.layers.1.{name}.weight"].std() == pytest.approx(0.01, rel=0.1)


def test_a_mix_by_weights(tiny_model, tmp_path):
    """Documents of a source of weight 2 come twice, of weight 0.5 half of them once."""
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("\n\n".join(f"{word} one" for word in WORDS))
    two.write_text("\n\n".join(f"{word} two" for word in WORDS))
    mix = [{"source": str(one), "weight": 2.0}, {"source": str(two), "weight": 0.5}]
    data = Data(mix=[tutelage.recipe.Source(**part) for part in mix])
    phase = host().get("phase", "pretrain", "")()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama-untied"))
    windows = prepare(phase, data, tmp_path, tokenizer, max_length=16, seed=0, host=host(), place="data").train
    stream = np.concatenate([windows[0].ids[:1], *[window.ids[1:] for window in windows]])
    found = Counter(tokenizer.decode(stream).split("<|endoftext|>"))
    for document in one.read_text().split("\n\n"):
        assert found[document] == 2
    assert sorted(found[document] for document in two.read_text().split("\n\n")) == [0] * 7 + [1] * 8


def test_a_long_document_in_pieces_is_learnt_as_one(tiny_model, tmp_path):
    """A file as one document, read in several pieces: no end-of-text token but the last."""
    words = " ".join(WORDS)
    (tmp_path / "book.txt").write_text("\n".join([words] * 3000))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama-untied"))
    data = {"train": str(tmp_path / "book.txt"), "documents": "file"}
    windows = prepared(tiny_model("llama-untied"), data, max_length=512).train
    stream = np.concatenate([windows[0].ids[:1], *[window.ids[1:] for window in windows]])
    assert len(windows.rows) > 2
    assert np.flatnonzero(stream == tokenizer.eos_token_id).tolist() == [len(stream) - 1]
    assert tokenizer.decode(stream[:-1]) == (tmp_path / "book.txt").read_text()


def test_what_is_learnt_can_be_taught_to_chat(tmp_path):
    """A stage of chats follows on the tokenizer's own template and tokens, from what was pretrained."""
    made = recipe(write_text(tmp_path / "text.txt"), {"chat": True}, max_steps=2, max_length=64)
    sft = {
        "name": "talk",
        "phase": "sft",
        "adapter": "lora",
        "data": str(write_chats(tmp_path / "chats.jsonl", rows=8)),
        "trainer": {"max_steps": 1, "max_length": 64, "devices": 1, "rehearsal": False},
    }
    made["stages"].append({**sft, "data": {"train": sft["data"], "too_long": "cut"}})
    assert tutelage.check(made).problems == []
    run = tutelage.train(made, out=tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(run.folder / run.stages[0].artifact)
    assert tokenizer.chat_template == CHATML
    assert [stage.state for stage in run.stages] == ["succeeded", "succeeded"]


def test_defaults_of_the_phase(tmp_path, text):
    """A stage that names nothing reads once, in full, at a rate by its size; what is named counts."""
    stage = {"name": "read", "phase": {"kind": "pretrain", "parameters": "1M"}, "data": str(text)}
    made = resolve({"name": "x", "model": "new", "stages": [stage]}, tmp_path, host()).recipe.stages[0]
    assert made.adapter["kind"] == "full"
    assert (made.trainer.epochs, made.trainer.betas, made.trainer.weight_decay) == (1, (0.9, 0.95), 0.1)
    stage["trainer"] = {"max_steps": 7, "weight_decay": 0.0}
    made = resolve({"name": "x", "model": "new", "stages": [stage]}, tmp_path, host()).recipe.stages[0]
    assert (made.trainer.epochs, made.trainer.max_steps, made.trainer.weight_decay) == (None, 7, 0.0)


@pytest.mark.parametrize("new", [True, False])
def test_the_rate_is_that_of_the_size_or_the_adapter(tiny_model, text, tmp_path, new):
    made = recipe(text, model="new" if new else tiny_model("qwen2"), max_steps=1, warmup=0.0, schedule="constant")
    run = tutelage.train(made, out=tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(run.artifact)
    inner = sum(weight.numel() for name, weight in model.named_parameters() if ".layers." in name or "norm" in name)
    expected = 0.003239 - 0.0001395 * math.log(inner) if new else 2e-5
    assert events(run.folder, "step")[0]["learning_rate"] == pytest.approx(expected)


def test_another_models_tokenizer(tiny_model, text, tmp_path):
    """It is taken as it is, from a model's folder or from one with nothing else in it."""
    bare = tmp_path / "bare"
    AutoTokenizer.from_pretrained(tiny_model("gpt2")).save_pretrained(bare)
    for number, named in enumerate((tiny_model("gpt2"), bare)):
        made = tutelage.train(recipe(text, {"tokenizer": str(named)}, max_steps=1), out=tmp_path / str(number))
        assert (
            AutoTokenizer.from_pretrained(made.artifact).get_vocab() == AutoTokenizer.from_pretrained(bare).get_vocab()
        )


def test_check_makes_no_weights(text, monkeypatch, tmp_path):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    report = tutelage.check(recipe(text))
    assert report.problems == []
    assert report.data["read"]["examples"] > 10
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phase": {"kind": "pretrain"}}, "stages.read.phase.parameters: nothing says how large the new model is"),
        ({"phase": {"kind": "pretrain", "parameters": "many"}}, "'many' is not a number over 0"),
        ({"phase": {"kind": "pretrain", "parameters": "1M", "shape": {"hidden_size": 8}}}, "not both"),
        ({"phase": {"kind": "pretrain", "parameters": "1M", "architecture": "lama"}}, "did you mean llama?"),
        ({"phase": {"kind": "pretrain", "parameters": "4k", "vocabulary": 300}}, "nearest to 4,000 parameters"),
        (
            {"phase": {"kind": "pretrain", "shape": {**SMALL, "num_atention_heads": 2}}},
            "stages.read.phase.shape.num_atention_heads: the config of llama has no such field; did you mean",
        ),
        (
            {"phase": {"kind": "pretrain", "shape": {**SMALL, "hidden_size": 0}}},
            "stages.read.phase.shape.hidden_size: is 0, not a whole number from 1",
        ),
        (
            {"phase": {"kind": "pretrain", "shape": {**SMALL, "hidden_size": 33, "num_attention_heads": 4}}},
            "The hidden size (33) is not a multiple of the number of attention heads (4)",
        ),
        ({"adapter": "lora"}, "stages.read.adapter: lora learns too little of a model whose other weights are random"),
        ({"phase": "sft"}, "stages.read.model: new is a model with random weights"),
        ({"phase": {"kind": "pretrain", "shape": SMALL, "tokenizer": "nowhere"}}, "stages.read.phase.tokenizer"),
    ],
)
def test_what_can_not_be_made_is_told(text, change, words):
    made = recipe(text)
    made["stages"][0] |= change
    try:
        told = "\n".join(map(str, tutelage.check(made).problems))
    except tutelage.TutelageError as error:
        told = str(error)
    assert words in told


def test_an_architecture_that_could_look_ahead_does_not():
    config = config_of_size("bert", 2e5, {"vocab_size": 300}, "phase")
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(8, 20)[None]
    other = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
    with torch.no_grad():
        first, second = (model(input_ids=each).logits[:, :-1] for each in (ids, other))
    assert torch.equal(first, second)


def test_rows_that_are_no_text(tmp_path):
    chats = write_chats(tmp_path / "chats.jsonl", rows=3)
    told = "\n".join(map(str, tutelage.check(recipe(chats)).problems))
    assert "chats.jsonl line 1: is a conversation, and the phase pretrain takes plain text" in told


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_every_text_is_read_back(text):
    tokenizer = _tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_vocabulary():
    tokenizer = _tokenizer()
    assert len(tokenizer) == 280
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "12"}], tokenize=True, return_dict=False)
    words = tokenizer.convert_ids_to_tokens(turn)
    assert words[0] == "<|im_start|>"
    assert words[-4:-1] == ["1", "2", "<|im_end|>"]
    assert _tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def _tokenizer():
    return train_tokenizer(iter([" ".join(WORDS * 3)] * 20), 280, chat=True)


def test_learnt_differs_from_the_start(run):
    start = AutoModelForCausalLM.from_pretrained(run.folder / "stages" / "read" / "start").state_dict()
    assert all(not torch.equal(weight, start[name]) for name, weight in learnt(run.folder).items())
    assert json.loads((run.folder / "run.json").read_text())["stages"][0]["kind"] == "model"
