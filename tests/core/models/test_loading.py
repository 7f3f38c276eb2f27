"""Models and tokenizers are loaded whole or refused with a sentence."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_models as tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from tutelage.errors import TutelageError
from tutelage.models.loading import (
    end_ids,
    load_model,
    load_tokenizer,
    meta_model,
    prepare_base,
    resize_for,
    rows_needed,
)
from tutelage.models.locating import Located
from tutelage.recipe import Tokens


def located(folder) -> Located:
    return Located("model", str(folder))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loaded_model_is_the_one_on_disk(family, tiny_model):
    ids = tiny.some_ids()
    expected = tiny.logits(AutoModelForCausalLM.from_pretrained(tiny_model(family)), ids)
    assert torch.equal(tiny.logits(load_model(located(tiny_model(family)), dtype=torch.float32), ids), expected)
    half = load_model(located(tiny_model(family)), dtype=torch.bfloat16, attention="eager")
    assert half.dtype == torch.bfloat16
    assert half.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_meta_model_has_the_same_parameters_and_no_weights(family, tiny_model):
    real = AutoModelForCausalLM.from_pretrained(tiny_model(family))
    meta = meta_model(located(tiny_model(family)))
    assert {name: parameter.shape for name, parameter in meta.named_parameters()} == {
        name: parameter.shape for name, parameter in real.named_parameters()
    }
    assert all(parameter.is_meta for parameter in meta.parameters())


def copied(source, target):
    shutil.copytree(source, target)
    return target


def test_missing_weights_are_never_made_up(tiny_model, tmp_path):
    folder = copied(tiny_model("llama-untied"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TutelageError, match=r"lacks weights that the model needs \(1: lm_head\.weight"):
        load_model(located(folder), dtype="auto")


def test_files_that_transformers_can_not_read_get_a_sentence(tiny_model, tmp_path):
    folder = copied(tiny_model("llama-tied"), tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    with pytest.raises(TutelageError, match=r"model: the model of .* can't be loaded"):
        meta_model(located(folder))
    (folder / "tokenizer.json").write_text("{")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(TutelageError, match=r"the tokenizer of .* can't be loaded"):
        load_tokenizer(located(folder), Tokens(), tmp_path)


def test_broken_safetensors_get_a_sentence(tiny_model, tmp_path):
    folder = copied(tiny_model("llama-tied"), tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TutelageError, match=r"the model of .* can't be loaded"):
        load_model(located(folder), dtype="auto")


def test_code_that_a_model_brings_is_not_run(tiny_model, tmp_path):
    folder = copied(tiny_model("llama-tied"), tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(TutelageError, match="can't be loaded"):
        load_model(located(folder), dtype="auto")
    assert not (tmp_path / "ran").exists()


def test_the_recipe_changes_the_tokenizer(tiny_model, tmp_path):
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    tokens = Tokens(chat_template="chat.jinja", add=["<json>"])
    tokenizer = load_tokenizer(located(tiny_model("llama-tied")), tokens, tmp_path)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert tokenizer.convert_ids_to_tokens(tokenizer("a<json>b")["input_ids"]) == ["a", "<json>", "b"]


@pytest.mark.parametrize(
    ("template", "add", "sentence"),
    [
        (None, [], "tokenizer.chat_template: there is no file"),
        ("{% for %}", [], "line 1: "),
        ("", [" "], "tokenizer.add: an empty token"),
    ],
)
def test_bad_changes_to_the_tokenizer_get_a_sentence(template, add, sentence, tiny_model, tmp_path):
    if template is not None:
        (tmp_path / "chat.jinja").write_text(template)
    with pytest.raises(TutelageError) as caught:
        load_tokenizer(located(tiny_model("llama-tied")), Tokens(chat_template="chat.jinja", add=add), tmp_path)
    assert sentence in str(caught.value)


def test_a_template_with_generation_marks_is_accepted(tiny_model, tmp_path):
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    (tmp_path / "chat.jinja").write_text(text)
    tokenizer = load_tokenizer(located(tiny_model("llama-tied")), Tokens(chat_template="chat.jinja"), tmp_path)
    assert tokenizer.chat_template == text


def test_embeddings_grow_only_where_they_must(tiny_model):
    tokenizer = load_tokenizer(located(tiny_model("llama-tied")), Tokens(), None)
    rows = rows_needed(tokenizer)
    spare = load_model(located(tiny_model("llama-tied", spare_rows=5)), dtype=torch.float32)
    assert not resize_for(spare, tokenizer)
    assert spare.get_input_embeddings().weight.shape[0] == rows + 5
    exact = load_model(located(tiny_model("llama-tied")), dtype=torch.float32)
    assert not resize_for(exact, tokenizer)
    old = exact.get_input_embeddings().weight.detach().clone()
    tokenizer.add_tokens(["<a>", "<b>"], special_tokens=True)
    assert resize_for(exact, tokenizer)
    new = exact.get_input_embeddings().weight
    assert new.shape[0] == rows + 2
    assert torch.equal(new[:rows], old)
    assert (new[rows:] - old.mean(dim=0)).abs().max() < 0.05  # near the mean; the old rows' spread is 0.15
    assert exact.get_output_embeddings().weight is new


def test_a_base_is_written_only_where_peft_could_not_make_it(tiny_model, tmp_path):
    folder = tiny_model("llama-untied")
    tokenizer = load_tokenizer(located(folder), Tokens(), folder)
    assert prepare_base(located(folder), tokenizer, tmp_path / "base") == located(folder)
    assert not (tmp_path / "base").exists()
    tokenizer.add_tokens(["<a>"], special_tokens=True)
    grown = prepare_base(located(folder), tokenizer, tmp_path / "base")
    assert grown == located(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    assert weights["lm_head.weight"].shape[0] == weights["model.embed_tokens.weight"].shape[0] == rows_needed(tokenizer)
    again = prepare_base(located(folder), tokenizer, tmp_path / "other")
    assert load_file(again.path + "/model.safetensors").keys() == weights.keys()
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in load_file(again.path + "/model.safetensors").items()
    )


def test_every_token_that_ends_an_answer_is_known(tiny_model):
    tokenizer = tiny.tokenizer()
    end, turn_end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    model = load_model(located(tiny_model("llama-tied")), dtype=torch.float32)
    assert end_ids(model, tokenizer) == {end, turn_end}
    assert end_ids(LlamaConfig(eos_token_id=[5, 6]), tiny.tokenizer(template=None)) == {5, 6, end}
    model.generation_config = GenerationConfig(eos_token_id=[9])
    assert end_ids(model, tokenizer) == {9, end, turn_end}
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} and so on {% endfor %}"
    assert end_ids(model, tokenizer) == {9, end}
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert end_ids(model, tokenizer) == {9, end}
