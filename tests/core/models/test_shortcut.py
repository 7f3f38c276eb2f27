"""The faster way through a model: the same tokens as transformers' for every family that it takes, and the plain way
for what it does not."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from tutelage.models import sampling
from tutelage.models.decoding import State
from tutelage.models.prompts import generate_ids
from tutelage.models.shortcut import Shortcut

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
HEADS = {**SHAPE, "head_dim": 16}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 320}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=6),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**HEADS),
    "gemma": GemmaConfig(**HEADS),
    "gemma2": Gemma2Config(**HEADS, sliding_window=6),
    "gemma3": Gemma3TextConfig(**HEADS, sliding_window=6),
    "phi": PhiConfig(**SHAPE),
    "phi3": Phi3Config(**SHAPE),
    "gpt2": GPT2Config(**GPT2, bos_token_id=None, eos_token_id=0),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=320, bos_token_id=None, eos_token_id=0),
}
PLAIN = ("mixtral", "bloom")
PROMPTS = [[5, 9, 77, 30], list(range(40, 53)), [5, 9, 77, 30], [11]]
ENDS = frozenset(range(0, 320, 13))


def made(family: str, std: float = 0.15):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model


def greedy(model, prompts=PROMPTS, ends=ENDS, count=40):
    options = {"max_new_tokens": count, "temperature": 0.0, "ends": ends, "pad": 0, "batch_size": 8}
    return sampling.sample(model, prompts, seeds=[0] * len(prompts), **options)


def of_transformers(model, prompts=PROMPTS, ends=ENDS, count=40):
    options = {"do_sample": False, "eos_token_id": sorted(ends) or None, "pad_token_id": 0}
    rows = generate_ids(model, prompts, max_new_tokens=count, **options)
    return [row[: next((at + 1 for at, token in enumerate(row) if token in ends), len(row))] for row in rows]


@torch.no_grad()
def stepped(model, shortcut, prompts=PROMPTS, steps=3):
    """Logits of some steps on from the prompts, by the way that the shortcut finds."""
    state = State(model, prompts, pad=0, room=steps, shortcut=shortcut)
    found = []
    for step in range(steps):
        state.advance(torch.arange(len(prompts)) + 7 * step)
        found.append(state.logits)
    return torch.stack(found)


def is_taken(model) -> bool:
    shortcut = Shortcut(model)
    stepped(model, shortcut)
    return shortcut.taken


@pytest.mark.parametrize("ends", [frozenset(), ENDS], ids=["full", "ending"])
@pytest.mark.parametrize("family", CONFIGS)
def test_tokens_are_those_of_transformers_whatever_the_family(family, ends):
    model = made(family)
    assert [answer.ids for answer in greedy(model, ends=ends)] == of_transformers(model, ends=ends)
    assert is_taken(model) == (family not in PLAIN)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_log_probabilities_are_those_of_a_plain_pass(family):
    model = made(family, std=0.08)
    for prompt, answer in zip(PROMPTS, greedy(model), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer.ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(answer.ids)[:, None])[:, 0]
        assert (torch.tensor(answer.log_probs) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi", "gpt2"])
def test_bfloat16_is_no_further_from_the_truth_than_the_plain_way(family):
    model = made(family)
    truth = stepped(model, None)
    model.to(torch.bfloat16)
    shortcut = Shortcut(model)
    found, plain = stepped(model, shortcut), stepped(model, None)
    assert shortcut.taken
    errors = [(logits - truth).square().mean().sqrt() for logits in (found, plain)]
    assert errors[0] < 1.3 * errors[1]


def test_under_autocast_it_computes_as_the_model_does():
    model = made("llama")
    with torch.autocast("cpu", torch.bfloat16):
        shortcut = Shortcut(model)
        found, plain = stepped(model, shortcut), stepped(model, None)
    assert shortcut.taken
    exact = stepped(model, None)
    assert not torch.equal(plain, exact)
    assert (found - exact).square().mean() < 1.5 * (plain - exact).square().mean()


def test_an_adapter_is_taken_as_it_is():
    from peft import LoraConfig, get_peft_model

    model = made("llama")
    lora = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora).eval()
    with_adapter = [answer.ids for answer in greedy(adapted)]
    assert with_adapter == of_transformers(adapted)
    assert is_taken(adapted.get_base_model())
    with adapted.disable_adapter():
        without = [answer.ids for answer in greedy(adapted)]
        assert without == of_transformers(adapted)
    assert without != with_adapter


def test_what_training_computes_in_fewer_operations_is_taken():
    from peft import LoraConfig, get_peft_model

    from tutelage.engine.kernels.blocks import fuse_blocks
    from tutelage.engine.kernels.low_rank import fuse_updates

    model = made("llama")
    lora = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = fuse_updates(get_peft_model(model, lora)).eval()
    expected = of_transformers(adapted)
    fuse_blocks(model)
    assert [answer.ids for answer in greedy(adapted)] == expected
    assert is_taken(model)
    model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_taken(model)


def test_weights_that_have_changed_are_taken_as_they_are_now():
    model = made("llama")
    before = [answer.ids for answer in greedy(model)]
    for parameter in model.parameters():
        parameter.data.mul_(1.1)  # unseen by torch's count of versions
    after = [answer.ids for answer in greedy(model)]
    assert after == of_transformers(model)
    assert after != before


def test_the_first_call_gives_what_later_ones_give():
    model = made("qwen2")
    assert greedy(model) == greedy(model)


def test_a_model_that_does_other_things_with_other_batches_goes_the_plain_way():
    model = made("llama")
    layer = model.model.layers[1].mlp
    plain = type(layer).forward

    class Fickle(type(layer)):
        def forward(self, hidden):
            return plain(self, hidden) * (2.0 if len(hidden) > 3 else 1.0)

    layer.__class__ = Fickle
    shortcut = Shortcut(model)
    found = stepped(model, shortcut)
    assert not shortcut.taken
    assert torch.equal(found, stepped(model, None))


def test_who_watches_a_layer_goes_on_seeing_it():
    model = made("llama")
    seen = []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    assert not is_taken(model)
    seen.clear()
    greedy(model, ends=frozenset(), count=20)
    assert len(seen) == 20


def test_a_model_is_left_as_it_was():
    model = made("gemma2")
    attention = model.config._attn_implementation
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    greedy(model)
    assert model.config._attn_implementation == attention
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_log_probabilities_can_be_left_out():
    model = made("llama")
    options = {"max_new_tokens": 20, "seeds": [1, 2, 3, 4], "ends": ENDS, "pad": 0, "batch_size": 4}
    scored, bare = (sampling.sample(model, PROMPTS, log_probs=wanted, **options) for wanted in (True, False))
    assert [each.ids for each in scored] == [each.ids for each in bare]
    assert all(len(each.log_probs) == len(each.ids) for each in scored)
    assert not any(each.log_probs for each in bare)
