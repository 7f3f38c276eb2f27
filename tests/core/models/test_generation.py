"""Generation: batched equals single, ends where the model ends, and is the same again with the same seed."""

from __future__ import annotations

import pytest
import tiny_models as tiny
import torch
from transformers import AutoModelForCausalLM

from tutelage.errors import TutelageError
from tutelage.models.generation import generate, load_for_generation, stream
from tutelage.models.loading import load_model, load_tokenizer
from tutelage.models.locating import Located
from tutelage.models.saving import save_artifact
from tutelage.plugins import host
from tutelage.recipe import Tokens

PROMPTS = ["the cat", "2 + 3 = 5, they say, and again", "a", "déjà vu"]


def by_hand(model, ids: list[int], count: int, ends: set[int]) -> list[int]:
    """Greedy decoding without a cache, one forward pass a token."""
    new: list[int] = []
    while len(new) < count:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
        if token in ends:
            break
        new.append(token)
    return new


def adapted(folder, kind: str, out):
    """A trained adapter's folder."""
    plugin = host().get("adapter", kind, "")
    adapter = plugin(plugin.Config())
    tokenizer = load_tokenizer(Located("model", str(folder)), Tokens(), folder)
    torch.manual_seed(3)
    model = adapter.attach(load_model(Located("model", str(folder)), dtype=torch.float32), tokenizer)
    tiny.step(model, tiny.some_ids(), rate=0.1)
    return save_artifact(adapter, model, tokenizer, out / kind, base_path=str(folder))


@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "gpt2"])
@pytest.mark.parametrize("kind", ["model", "lora", "prompt"])
def test_answers_are_those_of_greedy_decoding_by_hand_whatever_the_batch(kind, family, tiny_model, tmp_path):
    folder = tiny_model(family)
    reference = str(folder if kind == "model" else adapted(folder, kind, tmp_path))
    model, tokenizer = load_for_generation(reference, host(), dtype=torch.float32, device="cpu")
    ends = set(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    answers = generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=3)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = by_hand(model, ids, 12, ends)
        assert answer == tokenizer.decode(expected, skip_special_tokens=False)
        assert "".join(stream(model, tokenizer, prompt, max_new_tokens=12)) == answer


def test_without_a_chat_template_text_goes_on_as_it_is(tiny_model):
    model, tokenizer = load_for_generation(str(tiny_model("llama-tied")), host(), device="cpu")
    tokenizer.chat_template = None
    expected = by_hand(model, tokenizer("the cat")["input_ids"], 8, {tokenizer.eos_token_id})
    assert generate(model, tokenizer, ["the cat"], max_new_tokens=8) == [tokenizer.decode(expected)]
    with pytest.raises(TutelageError, match="prompt 1: the model has no chat template"):
        generate(model, tokenizer, ["a", [{"role": "user", "content": "b"}]], max_new_tokens=8)


def test_sampling_repeats_with_its_seed_and_leaves_the_random_state(tiny_model):
    model, tokenizer = load_for_generation(str(tiny_model("llama-tied")), host(), device="cpu")
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    options = {"max_new_tokens": 16, "temperature": 1.0, "top_p": 0.95}
    first = generate(model, tokenizer, PROMPTS, seed=1, **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert generate(model, tokenizer, PROMPTS, seed=1, **options) == first
    assert generate(model, tokenizer, PROMPTS, seed=2, **options) != first
    assert (
        "".join(stream(model, tokenizer, PROMPTS[0], seed=5, **options))
        == (generate(model, tokenizer, PROMPTS[:1], seed=5, **options)[0])
    )


def test_generation_stops_at_the_end_of_a_turn_and_keeps_other_special_tokens(tiny_model):
    folder = tiny_model("llama-tied")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = tiny.tokenizer()
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    taught = [*tokenizer(prompt)["input_ids"], *tokenizer("ok")["input_ids"], start, *tokenizer("ok")["input_ids"], end]
    tiny.step(model, torch.tensor([taught]), steps=80, rate=0.01)
    assert generate(model, tokenizer, ["hi"], max_new_tokens=30) == ["ok<|im_start|>ok"]


def test_a_stream_can_be_left_early(tiny_model):
    model, tokenizer = load_for_generation(str(tiny_model("llama-tied")), host(), device="cpu")
    pieces = stream(model, tokenizer, "the cat", max_new_tokens=200)
    next(pieces)
    pieces.close()
    assert generate(model, tokenizer, ["the cat"], max_new_tokens=2)


def test_a_stream_never_shows_half_a_character(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama-tied"))
    tokenizer = tiny.tokenizer()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    )
    taught = tokenizer(prompt)["input_ids"] + tokenizer("é ü 漢字")["input_ids"] + [tokenizer.eos_token_id]
    tiny.step(model, torch.tensor([taught]), steps=80, rate=0.01)
    shown = list(stream(model, tokenizer, "x", max_new_tokens=30))
    assert "".join(shown) == "é ü 漢字"
    assert 1 < len(shown) < len(tokenizer("é ü 漢字")["input_ids"])
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in shown)


def test_what_can_not_be_answered_gets_a_sentence(tiny_model):
    model, tokenizer = load_for_generation(str(tiny_model("llama-tied")), host(), device="cpu")
    with pytest.raises(
        TutelageError, match=r"prompt 0: its \d+ tokens and 250 new ones are more than .* context of 256"
    ):
        generate(model, tokenizer, ["the cat sat"], max_new_tokens=250)
    tokenizer.chat_template = None
    with pytest.raises(TutelageError, match="prompt 0: is empty"):
        generate(model, tokenizer, [""])
    with pytest.raises(TutelageError, match="no model is found"):
        load_for_generation("./nowhere", host())


def test_errors_inside_a_stream_reach_the_reader(tiny_model, monkeypatch):
    model, tokenizer = load_for_generation(str(tiny_model("llama-tied")), host(), device="cpu")
    monkeypatch.setattr(model, "forward", lambda **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream(model, tokenizer, "the cat", max_new_tokens=8))
