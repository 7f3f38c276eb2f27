"""What sequences have in common is computed once, to the losses and gradients of each sequence by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from training import events, losses, recipe, write_chats
from transformers import AutoModelForCausalLM, MistralConfig

import tutelage
from tutelage.data.batches import collate
from tutelage.data.rendering import Tokens
from tutelage.engine import attention
from tutelage.engine.answering import AnsweringLearner
from tutelage.engine.attention import SEGMENTS, _Probe, choose_packed_attention, shares_exactly
from tutelage.engine.forward import learnt_loss, sequence_log_probabilities
from tutelage.engine.kernels.segments import gathered


def rows(vocabulary: int, begin: int = 30) -> _Probe:
    """Two answers to one question, one to another, all under one beginning; and one that has nothing to do with it."""
    generator = torch.Generator().manual_seed(1)

    def drawn(count: int) -> list[int]:
        return torch.randint(0, vocabulary, (count,), generator=generator).tolist()

    system, question = drawn(begin), drawn(24)
    made = [
        (system + question, drawn(9)), (system + question, drawn(14)), (system + drawn(5), drawn(11)), (drawn(8), drawn(8)),
    ]  # fmt: skip
    return _Probe(
        [
            Tokens(np.array(before + after, dtype=np.int32), np.arange(len(before + after)) >= len(before))
            for before, after in made
        ]
    )


def alone(model, row: Tokens) -> torch.Tensor:
    """The summed loss of a row by the plain model's logits."""
    logits = model(torch.from_numpy(row.ids.astype(np.int64))[None]).logits[0]
    targets = torch.from_numpy(row.targets)
    ids = torch.from_numpy(row.ids.astype(np.int64))
    return F.cross_entropy(logits[:-1].float()[targets[1:]], ids[targets], reduction="sum")


def gradients(loss, model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "phi", "gpt2"])
@pytest.mark.parametrize("longest", [attention.LONGEST, 0])  # plain products, and PyTorch's attention
def test_losses_and_gradients_are_those_of_each_row_alone(tiny_model, monkeypatch, family, longest):
    monkeypatch.setattr(attention, "LONGEST", longest)
    model = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
    vocabulary = model.config.vocab_size
    store = rows(vocabulary)
    each = [alone(model, row) for row in store.examples]
    expected = gradients(sum(each), model)
    assert choose_packed_attention(model, vocabulary) == SEGMENTS
    assert shares_exactly(model, vocabulary)
    batch = collate(store, range(4), packed=True, filler=0, shares=True)
    assert batch.shared == 2
    loss = learnt_loss(model, batch)
    assert float(loss) == pytest.approx(float(sum(each)), rel=1e-5)
    for name, gradient in gradients(loss, model).items():
        assert float((gradient - expected[name]).norm()) <= 1e-4 * max(1e-2, float(expected[name].norm())), name
    found, counts = sequence_log_probabilities(model, batch)
    assert torch.allclose(found, -torch.stack(each).detach(), rtol=1e-5, atol=1e-4)
    assert counts.tolist() == [9, 14, 11, 8]


def test_a_window_that_reaches_into_what_is_shared():
    shape = {
        "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MistralConfig(**shape, sliding_window=16)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    store = rows(120)
    with torch.no_grad():
        expected = sum(float(alone(model, row)) for row in store.examples)
        assert choose_packed_attention(model, 120) == SEGMENTS
        assert shares_exactly(model, 120)
        batch = collate(store, range(4), packed=True, filler=0, shares=True)
        assert batch.shared == 2
        assert float(learnt_loss(model, batch)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_attention_is_not_told_is_found_out(tiny_model, monkeypatch, dtype):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama-tied"), dtype=dtype)
    vocabulary = model.config.vocab_size
    choose_packed_attention(model, vocabulary)
    assert shares_exactly(model, vocabulary)
    forward = model.model.forward
    with monkeypatch.context() as patched:
        patched.setattr(model.model, "forward", lambda *args, seen_keys=None, **more: forward(*args, **more))
        assert not shares_exactly(model, vocabulary)
    whole = attention.gathered
    with monkeypatch.context() as patched:  # sees the wrong tokens, as many
        patched.setattr(attention, "gathered", lambda values, index: whole(values, index.flip(0)))
        assert not shares_exactly(model, vocabulary)
    assert shares_exactly(model, vocabulary)


def test_gradients_of_a_shared_token_are_summed_in_float32():
    values = torch.ones(1, 3, 2, dtype=torch.bfloat16, requires_grad=True)
    index = torch.tensor([0] * 1000 + [2])
    gathered(values, index).sum().backward()
    assert values.grad[0, :, 0].tolist() == [1000, 0, 1]


def test_a_run_learns_the_same(tiny_model, tmp_path):
    data = write_chats(tmp_path / "chats.jsonl")
    told = []
    for shares in (True, False):
        made = recipe(tiny_model("llama-tied"), data, max_steps=3, share_prefixes=shares)
        folder = tutelage.train(made, out=tmp_path / str(shares)).folder
        assert events(folder, "stage_started")[0]["shares_prefixes"] is shares
        told.append(losses(folder))
        spared = [step["tokens"] - step["computed_tokens"] for step in events(folder, "step")]
        assert min(spared) > 0 if shares else max(spared) == 0
    assert told[0] == pytest.approx(told[1], rel=1e-5)


@given(st.lists(st.integers(1, 900), max_size=30), st.integers(1, 2000), st.integers(1, 3))
def test_answers_to_a_prompt_stay_together_within_the_limit(lengths, limit, devices):
    cut: list[Any] = []
    for rank in range(devices):
        learner: Any = SimpleNamespace(
            shares=True,
            lengths=np.array(lengths, dtype=np.int64),
            progress=SimpleNamespace(micro_batch_tokens=limit),
            trainer=SimpleNamespace(world_size=devices),
            global_rank=rank,
        )
        cut.append(AnsweringLearner.cut(learner, np.arange(len(lengths))[::-1]))
    assert len({len(batches) for batches in cut}) == 1  # all take part in each
    in_turn = [batch.tolist() for number in range(len(cut[0])) for batch in (batches[number] for batches in cut)]
    assert [index for batch in in_turn for index in batch] == list(range(len(lengths)))
    for batch in in_turn:
        assert len(batch) < 2 or sum(lengths[index] for index in batch) <= limit
