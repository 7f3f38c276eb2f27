"""Models that end in a score: drawn heads, padding that ends nothing, and what plain libraries make of them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from tutelage.errors import RunFailed, TutelageError
from tutelage.models import heads
from tutelage.models.loading import (
    SCORE,
    end_ids,
    is_reward_model,
    keep_packing,
    load_model,
    load_tokenizer,
    meta_model,
    prepare_base,
)
from tutelage.models.locating import Located
from tutelage.models.merging import merge
from tutelage.models.saving import save_artifact
from tutelage.models.verifying import reference_of, verify
from tutelage.plugins import host
from tutelage.recipe import Tokens

SEQUENCES = [[5, 9, 20, 31, 7, 2], [40, 2], [8, 8, 8, 60, 61, 62, 63, 64, 65, 2], [1, 2]]


def located(folder: Path) -> Located:
    return Located("adapter" if (folder / "adapter_config.json").is_file() else "model", str(folder))


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """A function that gives a reward model's folder, after steps by which all that learns has moved."""
    made: dict[tuple[str, str], Path] = {}

    def folder(adapter: str, family: str = "llama-tied") -> Path:
        if (adapter, family) not in made:
            place = tmp_path_factory.mktemp(adapter)
            base = located(tiny_model(family))
            tokenizer = load_tokenizer(base, Tokens(), place)
            pad = heads.choose_pad(tokenizer, end_ids(tokenizer, tokenizer))
            plugin = host().get("adapter", adapter, "")()
            loading = plugin.loading(torch.float32)
            model = heads.load_scorer(base, dtype=torch.float32, seed=3, pad=pad, **loading)
            model = plugin.attach(model, tokenizer)
            learn(model)
            reference = reference_of(model, tokenizer, SEQUENCES[0], dtype=torch.float32, loading=loading)
            path = heads.prepare_scorer_base(base, place / "base", seed=3, pad=pad).path
            save_artifact(plugin, model, tokenizer, place / "artifact", base_path=path)
            verify(place / "artifact", reference)
            (place / "expected.json").write_text(json.dumps(alone(model)))
            made[adapter, family] = place / "artifact"
        return made[adapter, family]

    return folder


def learn(model: torch.nn.Module) -> None:
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.02)
    for _ in range(3):
        model(input_ids=torch.tensor(SEQUENCES[:1])).logits.sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def alone(model: torch.nn.Module) -> list[float]:
    """Scores of each sequence by itself, which no padding can touch."""
    model.eval()
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in SEQUENCES]


def expected(folder: Path) -> list[float]:
    return json.loads((folder.parent / "expected.json").read_text())


# Drawn heads


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_language_model_is_given_a_small_head_and_keeps_the_rest(tiny_model, family):
    model = heads.load_scorer(located(tiny_model(family)), dtype=torch.bfloat16, seed=1)
    language = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.bfloat16)
    trunk = getattr(model, model.base_model_prefix)
    for name, weight in getattr(language, language.base_model_prefix).named_parameters():
        assert torch.equal(weight, trunk.get_parameter(name))
    assert model.score.weight.dtype == torch.float32
    assert model.score.weight.shape == (1, 32)


def test_a_drawn_head_follows_its_seed_and_its_distribution():
    weight = heads._drawn(100_000, seed=5)
    assert torch.equal(weight, heads._drawn(100_000, seed=5))
    assert not torch.equal(weight, heads._drawn(100_000, seed=6))
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(100_001), rel=0.02)


def test_the_head_computes_in_float32_under_autocast(tiny_model):
    model = heads.load_scorer(located(tiny_model("llama-tied")), dtype=torch.bfloat16, seed=1).eval()
    ids = torch.tensor(SEQUENCES[:1])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state
        score = model(input_ids=ids).logits
    by_hand = hidden[0, -1].float() @ model.score.weight[0]
    assert score.dtype == torch.float32
    assert float(score[0, 0]) == pytest.approx(float(by_hand.detach()), abs=1e-6)


# Heads that are missing


def test_a_head_that_is_missing_is_never_drawn_in_silence(tiny_model, trained, tmp_path):
    language = located(tiny_model("llama-tied"))
    with pytest.raises(TutelageError, match="no score head"):
        heads.load_scorer(language, dtype=torch.float32)
    with pytest.raises(TutelageError, match="is no reward model"):
        heads.load_scorer_for_use(language)
    shutil.copytree(trained("full"), tmp_path / "full")
    weights = load_file(tmp_path / "full" / "model.safetensors")
    del weights[SCORE]
    save_file(weights, tmp_path / "full" / "model.safetensors", metadata={"format": "pt"})
    for load in (
        lambda: heads.load_scorer_for_use(tmp_path / "full"),
        lambda: heads.load_scorer(located(tmp_path / "full"), dtype=torch.float32, seed=1),
        lambda: meta_model(located(tmp_path / "full"), "score"),
    ):
        with pytest.raises(TutelageError, match=r"score\.weight") as raised:
            load()
        assert raised.value.exit_code == 2


def test_an_adapter_without_its_head_is_refused(trained, tmp_path):
    shutil.copytree(trained("lora"), tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({name: each for name, each in load_file(file).items() if "score" not in name}, file)
    with pytest.raises(TutelageError, match="no score head"):
        heads.load_scorer_for_use(tmp_path / "lora")


def test_a_reward_model_is_refused_as_a_language_model(trained):
    """With tied embeddings transformers would load it without a word."""
    for adapter in ("full", "lora"):
        with pytest.raises(TutelageError, match="is a reward model"):
            load_model(located(trained(adapter)), dtype="auto")
        with pytest.raises(TutelageError, match="is a reward model"):
            meta_model(located(trained(adapter)))


# Padding


def tokenizer_of(special: list[str], **roles: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with these special tokens and no others."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(sorted(alphabet))}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=made, **roles)


@pytest.mark.parametrize(
    ("special", "roles", "chosen"),
    [
        (["<pad>", "</s>"], {"eos_token": "</s>", "pad_token": "<pad>"}, "<pad>"),
        (["</s>", "<s>"], {"eos_token": "</s>", "pad_token": "</s>", "bos_token": "<s>"}, "<s>"),
        (["</s>", "<|finetune_right_pad_id|>", "<s>"], {"eos_token": "</s>"}, "<|finetune_right_pad_id|>"),
        (["</s>", "<end>", "<unk>"], {"eos_token": "</s>", "pad_token": "<end>", "unk_token": "<unk>"}, "<unk>"),
        (["<|endoftext|>"], dict.fromkeys(("eos_token", "bos_token", "unk_token"), "<|endoftext|>"), "<|pad|>"),
    ],
)
def test_padding_never_ends_a_sequence(special, roles, chosen):
    tokenizer = tokenizer_of(special, **roles)
    ends = frozenset(tokenizer.convert_tokens_to_ids([token for token in special if "end" in token]))
    pad = heads.choose_pad(tokenizer, ends)
    assert tokenizer.pad_token == chosen
    assert pad == tokenizer.convert_tokens_to_ids(chosen)
    assert pad not in ends | {tokenizer.eos_token_id}
    assert tokenizer.padding_side == "right"
    assert heads.choose_pad(tokenizer, ends) == pad


@pytest.mark.parametrize("adapter", ["full", "lora", "qlora"])
def test_plain_libraries_give_the_same_scores_alone_and_in_batches(trained, adapter):
    folder = trained(adapter)
    kind = AutoModelForSequenceClassification if adapter == "full" else AutoPeftModelForSequenceClassification
    quantised = host().get("adapter", adapter, "")().loading(torch.float32)
    model = keep_packing(kind.from_pretrained(folder, dtype=torch.float32, **quantised)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer.pad({"input_ids": SEQUENCES}, return_tensors="pt")
    with torch.no_grad():
        together = model(**batch).logits[:, 0]
    assert together.tolist() == pytest.approx(expected(folder), abs=1e-4)
    assert alone(model) == pytest.approx(expected(folder), abs=1e-5)
    assert all(row[-1] != tokenizer.pad_token_id for row in SEQUENCES)


def test_padding_that_ends_a_sequence_is_found_when_it_is_read_back(trained, tmp_path):
    folder = trained("full")
    shutil.copytree(folder, tmp_path / "full")
    model = heads.load_scorer(located(folder), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = reference_of(model, tokenizer, SEQUENCES[2], dtype=torch.float32)
    verify(tmp_path / "full", reference)
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    config["pad_token_id"] = SEQUENCES[2][4]  # what the first half of the probe ends with
    (tmp_path / "full" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunFailed, match="differ"):
        verify(tmp_path / "full", reference)


def test_other_weights_are_found_when_they_are_read_back(trained, tmp_path):
    shutil.copytree(trained("lora"), tmp_path / "lora")
    model = heads.adapted_scorer(trained("lora"), dtype=torch.float32)
    reference = reference_of(model, AutoTokenizer.from_pretrained(trained("lora")), SEQUENCES[0], dtype=torch.float32)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    weights = load_file(file)
    head = next(name for name in weights if "score" in name)
    weights[head] = torch.randn_like(weights[head])
    save_file(weights, file)
    with pytest.raises(RunFailed, match="score"):
        verify(tmp_path / "lora", reference)


# The base of a reward adapter


def test_the_base_links_its_weights_and_loads_with_its_head(tiny_model, tmp_path):
    source = tiny_model("llama-untied")
    base = heads.prepare_scorer_base(located(source), tmp_path / "base", seed=4, pad=1)
    linked = next((tmp_path / "base").glob("model-*.safetensors"))
    assert (
        linked.samefile(source / "model.safetensors")
        or linked.read_bytes() == (source / "model.safetensors").read_bytes()
    )
    model, info = AutoModelForSequenceClassification.from_pretrained(base.path, output_loading_info=True)
    drawn = heads.load_scorer(located(source), dtype=torch.float32, seed=4)
    assert not info["missing_keys"]
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == 1
    assert alone(model) == pytest.approx(alone(drawn), abs=1e-6)
    assert heads.prepare_scorer_base(base, tmp_path / "again", seed=9, pad=1) == base


def test_a_reward_model_that_pads_otherwise_becomes_a_base_with_its_own_head(trained, tmp_path):
    base = heads.prepare_scorer_base(located(trained("full")), tmp_path / "base", seed=4, pad=7)
    model, info = AutoModelForSequenceClassification.from_pretrained(base.path, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.config.pad_token_id == 7
    assert alone(model)[0] == pytest.approx(expected(trained("full"))[0], abs=1e-5)


def test_a_base_in_several_files_is_linked_whole(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("qwen2"))
    model.save_pretrained(tmp_path / "cut", max_shard_size="40KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 2
    base = heads.prepare_scorer_base(located(tmp_path / "cut"), tmp_path / "base", seed=4, pad=1)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(base.path, output_loading_info=True)
    assert not info["missing_keys"]
    whole = heads.load_scorer(located(tiny_model("qwen2")), dtype=torch.float32, seed=4)
    assert alone(loaded) == pytest.approx(alone(whole), abs=1e-6)


def test_training_goes_on_from_a_reward_adapter(trained, tmp_path):
    """Its base and what it learnt become one model, with the head that it had."""
    folder = trained("lora")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = prepare_base(located(folder), tokenizer, tmp_path / "base")
    assert is_reward_model(base)
    assert alone(heads.load_scorer(base, dtype=torch.float32)) == pytest.approx(expected(folder), abs=1e-4)
    direct = heads.load_scorer(located(folder), dtype=torch.float32)
    assert alone(direct) == pytest.approx(expected(folder), abs=1e-4)


def test_a_merged_reward_model_scores_the_same(trained, tmp_path):
    folder = merge(trained("lora"), tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert alone(model) == pytest.approx(expected(trained("lora")), abs=1e-4)
    with pytest.raises(TutelageError, match="4 bits"):
        merge(trained("lora"), tmp_path / "small", quantize=True)


# Use


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_scorer_scores_what_the_model_was_taught_to_read(trained, adapter):
    scorer = heads.load_scorer_for_use(trained(adapter))
    prompts = ["the cat", [{"role": "user", "content": "the cat"}], "sat on the mat and then"]
    answers = ["a bird", "a bird", "two"]
    scores = scorer.score(prompts, answers, batch_size=2)
    tokenizer = AutoTokenizer.from_pretrained(trained(adapter))
    for prompt, answer, score in zip(prompts, answers, scores, strict=True):
        turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert score == pytest.approx(float(scorer.model(input_ids=ids).logits[0, 0]), abs=1e-4)
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    backwards = scorer.score(prompts[::-1], answers[::-1], batch_size=3)[::-1]
    assert np.allclose(backwards, scores, atol=1e-5)


def test_a_scorer_scores_an_answer_that_ended_at_once(trained):
    scorer = heads.load_scorer_for_use(trained("full"))
    other = scorer._renderer.answered("the cat", "x").ids.tolist()
    start = len(scorer._renderer.prompted("the cat"))
    empty = [*other[:start], *other[start + 1 :]]
    assert scorer.score(["the cat"], [""]) == scorer.score_ids([empty])


def test_a_scorer_follows_a_model_of_others_in_its_padding(trained, tmp_path):
    """One that pads with the end of an answer is read before it, as in its training; one that names none is given one."""
    shutil.copytree(trained("full"), tmp_path / "full")
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    for pad, read in ((2, SEQUENCES[0][:-1]), (None, SEQUENCES[0])):
        (tmp_path / "full" / "config.json").write_text(json.dumps({**config, "pad_token_id": pad}))
        scorer = heads.load_scorer_for_use(tmp_path / "full")
        with torch.no_grad():
            plain = heads.load_scorer(located(trained("full")), dtype=torch.float32)(input_ids=torch.tensor([read]))
        assert scorer.score_ids([SEQUENCES[0], SEQUENCES[2]])[0] == pytest.approx(float(plain.logits), abs=1e-4)


def test_a_scorer_names_an_answer_that_it_cannot_see_whole(trained):
    scorer = heads.load_scorer_for_use(trained("full"))
    with pytest.raises(TutelageError, match=r"answer 1: has .* the reward model can see 256"):
        scorer.score(["a", "b"], ["short", "cat sat " * 300])


def test_a_bfloat16_base_is_read_back_as_it_was_where_scores_are_small_sums_of_large_numbers(tiny_model, tmp_path):
    """As in real models. Rounding the head, as peft does, then moves scores far; it is stored in float32 all the same."""
    base = located(tiny_model("llama-tied"))
    tokenizer = load_tokenizer(base, Tokens(), tmp_path)
    pad = heads.choose_pad(tokenizer, end_ids(tokenizer, tokenizer))
    plugin = host().get("adapter", "lora", "")()
    model = plugin.attach(heads.load_scorer(base, dtype=torch.bfloat16, seed=3, pad=pad), tokenizer)
    head = heads.score_head(model)
    with torch.no_grad():
        hidden = model.get_base_model().model(input_ids=torch.tensor(SEQUENCES[2:3])).last_hidden_state[0].float()
        _, _, directions = torch.linalg.svd(hidden)
        head.weight.copy_(20 * directions[len(hidden) :].sum(0))  # at right angles to all of them
        assert (hidden @ head.weight[0]).abs().max() < 1e-3
    learnt = head.weight.detach().clone()
    reference = reference_of(model, tokenizer, SEQUENCES[2], dtype=torch.bfloat16)
    assert torch.equal(head.weight, learnt)
    path = heads.prepare_scorer_base(base, tmp_path / "base", seed=3, pad=pad).path
    save_artifact(plugin, model, tokenizer, tmp_path / "artifact", base_path=path)
    verify(tmp_path / "artifact", reference)
    again = heads.adapted_scorer(tmp_path / "artifact", dtype=torch.bfloat16)
    assert torch.equal(heads.score_head(again).weight, learnt)
    assert alone(again) == alone(model)
