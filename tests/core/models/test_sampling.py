from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TEXTS
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig
from transformers.cache_utils import DynamicLayer

import tutelage
from tutelage.models import sampling
from tutelage.models.caching import RoomyLayer
from tutelage.models.prompts import generate_ids

ENDS = frozenset({0, *range(7, 10), *range(198, 206)})


@pytest.fixture
def loaded(tiny_model):
    """A function that gives a tiny model in float32 with its tokenizer."""

    def load(family: str = "llama-untied"):
        folder = tiny_model(family)
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    return load


def prompts_of(tokenizer) -> list[list[int]]:
    """Prompts of ragged lengths, of which two are given twice."""
    ids = [tokenizer(text)["input_ids"][: 3 + 4 * number] for number, text in enumerate(TEXTS)]
    return [*ids, ids[1], ids[0]]


def drawn(model, prompts, **options):
    usual = {"max_new_tokens": 24, "seeds": list(range(len(prompts))), "ends": ENDS, "pad": 0, "batch_size": 8}
    return sampling.sample(model, prompts, **(usual | options))


def generated(model, prompts, ends, count):
    """What transformers' own greedy generation adds, up to and with the end."""
    made = generate_ids(
        model, prompts, max_new_tokens=count, do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=0
    )
    return [row[: next((at + 1 for at, token in enumerate(row) if token in ends), len(row))] for row in made]


@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "gpt2"])
@pytest.mark.parametrize("ends", [frozenset(), ENDS])
def test_greedy_answers_are_those_of_transformers(loaded, family, ends):
    model, tokenizer = loaded(family)
    prompts = prompts_of(tokenizer)
    answers = drawn(model, prompts, temperature=0.0, ends=ends, max_new_tokens=60)
    assert [answer.ids for answer in answers] == generated(model, prompts, ends, 60)
    assert [answer.finished for answer in answers] == [answer.ids[-1] in ends for answer in answers]


def test_a_sliding_window_slides():
    config = MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, sliding_window=6, max_position_embeddings=128, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    prompts = [[5, 9, 77, 30], list(range(40, 53)), [5, 9, 77, 30], [11]]
    ends = frozenset(range(0, 300, 13))
    answers = [answer.ids for answer in drawn(model, prompts, temperature=0.0, ends=ends, max_new_tokens=30)]
    assert answers == generated(model, prompts, ends, 30)
    assert len({len(ids) for ids in answers}) > 1  # so rows did leave


@pytest.mark.parametrize(
    "rule", [{}, {"temperature": 0.6}, {"top_k": 9}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 40, "top_p": 0.8}]
)
def test_tokens_come_as_often_as_they_are_probable(loaded, rule):
    model, tokenizer = loaded()
    prompt = tokenizer(TEXTS[0])["input_ids"]
    count = 6000
    answers = drawn(model, [prompt] * count, seeds=list(range(count)), batch_size=count, max_new_tokens=1, **rule)
    seen = np.bincount([answer.ids[0] for answer in answers], minlength=len(tokenizer))
    expected = probabilities(model, prompt, **rule)
    assert not seen[expected == 0].any()
    deviations = (seen - count * expected) / np.sqrt(count * expected * (1 - expected) + 1e-9)
    assert np.abs(deviations[count * expected > 5]).max() < 5


def probabilities(model, prompt, temperature=1.0, top_k=0, top_p=1.0):
    """By sorting and counting, in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double().numpy() / temperature
    order = np.argsort(-logits)
    if top_k:
        order = order[:top_k]
    shares = np.exp(logits[order] - logits[order].max())
    shares /= shares.sum()
    kept = order[: int(np.searchsorted(np.cumsum(shares), top_p)) + 1] if top_p < 1 else order
    result = np.zeros(len(logits))
    result[kept] = np.exp(logits[kept] - logits[kept].max())
    return result / result.sum()


def test_a_nucleus_wider_than_what_is_looked_at_first(loaded, monkeypatch):
    model, tokenizer = loaded()
    prompts = prompts_of(tokenizer)
    usual = drawn(model, prompts, temperature=2.0, top_p=0.97, max_new_tokens=12)
    monkeypatch.setattr(sampling, "_LIKELIEST", 3)
    assert drawn(model, prompts, temperature=2.0, top_p=0.97, max_new_tokens=12) == usual


@pytest.mark.parametrize("rule", [{"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.9}, {"min_new_tokens": 6}])
def test_log_probabilities_are_the_models_own(loaded, rule):
    model, tokenizer = loaded("qwen2")
    prompts = prompts_of(tokenizer)
    for prompt, answer in zip(prompts, drawn(model, prompts, **rule), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer.ids])).logits[0].double()
        expected = logits.log_softmax(-1)[range(len(prompt) - 1, len(prompt) + len(answer.ids) - 1), answer.ids]
        assert torch.allclose(torch.tensor(answer.log_probs, dtype=torch.float64), expected, atol=1e-4)


def test_an_answer_does_not_depend_on_its_company(loaded):
    model, tokenizer = loaded()
    prompts = prompts_of(tokenizer)
    seeds = [sampling.seed_of(5, number) for number in range(len(prompts))]
    together = drawn(model, prompts, seeds=seeds)
    alone = [drawn(model, [prompt], seeds=[seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    backwards = drawn(model, prompts[::-1], seeds=seeds[::-1], batch_size=3)[::-1]
    ids = [answer.ids for answer in together]
    assert ids == [answer.ids for answer in alone] == [answer.ids for answer in backwards]
    assert len({len(row) for row in ids}) > 1
    assert ids[0] != ids[-1]  # one prompt, two seeds


def test_a_longer_limit_goes_on_where_a_shorter_one_cut(loaded):
    model, tokenizer = loaded()
    prompts = prompts_of(tokenizer)
    short, long = (drawn(model, prompts, ends=frozenset(), max_new_tokens=count) for count in (5, 40))
    assert [answer.ids for answer in short] == [answer.ids[:5] for answer in long]
    assert not any(answer.finished for answer in long)


def test_no_answer_ends_too_early(loaded):
    model, tokenizer = loaded()
    answers = drawn(model, prompts_of(tokenizer) * 4, min_new_tokens=6)
    assert all(len(answer.ids) > 6 and not ENDS & {*answer.ids[:6]} for answer in answers)
    assert any(answer.finished for answer in answers)


def test_prompts_are_computed_once_and_ended_answers_no_more(loaded):
    model, tokenizer = loaded()
    shapes = []
    model.model.register_forward_pre_hook(
        lambda _module, _positional, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    prompt, other = tokenizer(TEXTS[0])["input_ids"], tokenizer(TEXTS[1])["input_ids"]
    answers = drawn(model, [prompt, other, prompt, prompt, prompt, other], max_new_tokens=30)
    assert shapes[0] == (2, max(len(prompt), len(other)))
    lengths = [len(answer.ids) for answer in answers]
    steps = [(sum(length > step for length in lengths), 1) for step in range(1, max(lengths))]
    assert shapes[-len(steps) :] == steps
    assert len(shapes) <= len(steps) + 1 + 5  # a recording's two passes, and three to prove it
    assert min(lengths) < max(lengths)


def test_adapters_answer_as_in_transformers_and_peft(loaded):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    lora = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    soft = PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    for settings_ in (lora, soft):
        model, tokenizer = loaded()
        torch.manual_seed(0)
        adapted = get_peft_model(model, settings_).eval()
        prompts = prompts_of(tokenizer)
        answers = drawn(adapted, prompts, temperature=0.0, max_new_tokens=30)
        assert [answer.ids for answer in answers] == generated(adapted, prompts, ENDS, 30)


def test_other_kinds_of_prompts_are_refused(loaded):
    from peft import PrefixTuningConfig, get_peft_model

    model, _ = loaded()
    prefixed = get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(tutelage.TutelageError, match="PREFIX_TUNING can't be sampled from"):
        drawn(prefixed, [[1, 2]])


def test_a_model_is_left_as_it_was(loaded):
    from tutelage.engine.attention import SEGMENTS

    model, tokenizer = loaded()
    prompts = prompts_of(tokenizer)
    expected = drawn(model, prompts)
    model.set_attn_implementation(SEGMENTS)
    model.train()
    before = torch.random.get_rng_state()
    assert drawn(model, prompts) == expected
    assert model.training
    assert model.config._attn_implementation == SEGMENTS
    assert torch.equal(torch.random.get_rng_state(), before)


def test_answers_as_text(loaded):
    model, tokenizer = loaded()
    asked = [tutelage.Prompted(text) for text in TEXTS]
    answers = sampling.answer(model, tokenizer, asked, samples=3, max_new_tokens=8, seed=4, temperature=1.3)
    assert [len(each) for each in answers] == [3] * 4
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": TEXTS[2]}], add_generation_prompt=True, tokenize=False
    )
    (alone,) = drawn(
        model,
        [tokenizer(ids, add_special_tokens=False)["input_ids"]],
        seeds=[sampling.seed_of(4, 2, 1)],
        temperature=1.3,
        max_new_tokens=8,
        **{"ends": frozenset({0, tokenizer.convert_tokens_to_ids("<|im_end|>")})},
    )
    assert alone.ids == answers[2][1].ids
    words = tokenizer("a cat")["input_ids"]
    assert sampling.text(tokenizer, sampling.Sampled([*words, 0], [], True)) == "a cat"
    assert sampling.text(tokenizer, sampling.Sampled([*words, 0], [], False)) == "a cat<|endoftext|>"


def test_what_can_not_be_answered_is_named(loaded):
    model, tokenizer = loaded()
    with pytest.raises(tutelage.TutelageError, match="prompt 1: is empty"):
        drawn(model, [[3], []])
    with pytest.raises(tutelage.TutelageError, match=r"prompt 0: its \d+ tokens and 250 new ones are more than .* 256"):
        sampling.answer(model, tokenizer, [tutelage.Prompted("the cat sat on the mat")], max_new_tokens=250)


def test_seeds_differ_with_each_number():
    seeds = {sampling.seed_of(*numbers) for numbers in [(), (1,), (1, 2), (2, 1), (12,), (1, 2, 0), (-1,), (2**70,)]}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert math.isclose(np.mean([sampling.seed_of(0, n) / 2**63 for n in range(2000)]), 0.5, abs_tol=0.03)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cache_with_room_holds_what_a_plain_one_does(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    plain, roomy = DynamicLayer(), RoomyLayer()
    rows = data.draw(st.integers(1, 5))
    for _ in range(data.draw(st.integers(1, 12))):
        if plain.is_initialized and data.draw(st.booleans()):
            size = st.lists(st.integers(0, rows - 1), min_size=1, max_size=7)
            order = torch.tensor(data.draw(size))
            plain.reorder_cache(order)
            roomy.reorder_cache(order)
            rows = len(order)
        new = torch.randn(2, rows, 2, data.draw(st.integers(1, 40)), 3, generator=generator)
        expected, found = plain.update(*new), roomy.update(*new.clone())
        assert torch.equal(expected[0], found[0])
        assert torch.equal(expected[1], found[1])
        assert roomy.get_seq_length() == plain.get_seq_length()
