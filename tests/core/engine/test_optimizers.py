"""Optimizers and schedules against independent formulas, and a run that was killed under them."""

from __future__ import annotations

import math
import signal

import numpy as np
import pytest
import torch
from tiny_models import some_ids
from training import events, in_child, learnt, losses, same, train_or_resume
from transformers import AutoModelForCausalLM

import tutelage
from tutelage.engine.learner import schedule
from tutelage.engine.optimizers import make_optimizer
from tutelage.models.heads import load_scorer
from tutelage.models.locating import Located
from tutelage.recipe import Trainer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "saw", "two", "birds", "in", "three", "trees"]


def backward(model, ids):
    logits = model(input_ids=ids).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()


def orthogonalised(matrix):
    """Five steps of the quintic iteration that Jordan (2024) gives, in float64."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    found = wide / np.linalg.norm(wide)
    for _ in range(5):
        square = found @ found.T
        found = 3.4445 * found + (-4.7750 * square + 2.0315 * square @ square) @ found
    return found.T if matrix.shape[0] > matrix.shape[1] else found


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_muon_by_hand(tiny_model, family):
    """Three steps: hidden matrices by the formula in numpy, all else as AdamW alone would move it."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model(family))
    settings = Trainer(optimizer="muon", weight_decay=0.1, betas=(0.9, 0.95))
    rate = 0.01
    optimizer = make_optimizer(model, settings, rate)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden = {
        name: parameter.detach().double().numpy()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and not any(part in name for part in ("embed", "wte", "wpe", "lm_head"))
    }
    assert len(hidden) == (14 if family == "llama-tied" else 8)
    momenta = dict.fromkeys(hidden, 0.0)
    rest = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name not in hidden}
    alone = torch.optim.AdamW(list(rest.values()), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in model.parameters():  # of full rank: where there is no signal, bfloat16's noise is blown up
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.named_parameters():
            if name in hidden:
                gradient = parameter.grad.double().numpy()
                momenta[name] = 0.95 * momenta[name] + gradient
                update = orthogonalised(gradient + 0.95 * momenta[name])
                scale = 0.2 * math.sqrt(max(update.shape))
                hidden[name] = hidden[name] * (1 - rate * 0.1) - rate * scale * update
            else:
                rest[name].grad = parameter.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        alone.step()
        for name, parameter in model.named_parameters():
            if name in rest:
                torch.testing.assert_close(parameter, rest[name], rtol=1e-6, atol=1e-8)
            else:  # torch iterates in bfloat16
                difference = np.linalg.norm(parameter.detach().double().numpy() - hidden[name])
                assert difference < 0.05 * rate * 0.2 * math.sqrt(parameter.numel()), name
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(hidden[name]))
    assert {names[id(parameter)] for parameter in optimizer.state} == set(names.values())


def test_muon_moves_matrices_as_far_as_adamw_does(tiny_model):
    """The root mean square of an update is the learning rate times 0.2, whatever the matrix's shape (Liu et al. 2025)."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model("qwen2"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, Trainer(optimizer="muon", weight_decay=0.0), 0.01)
    backward(model, some_ids())
    optimizer.step()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name and "lm_head" not in name:
            moved = float((parameter.detach() - before[name]).square().mean().sqrt()) / 0.01
            assert 0.1 < moved < 0.25, name


def test_adamw_decays_matrices_alone(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama-untied"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, Trainer(weight_decay=0.5), 0.1)
    assert type(optimizer) is torch.optim.AdamW
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decayed = parameter.dim() == 2 and "embed" not in name
        assert torch.allclose(parameter, before[name] * (0.95 if decayed else 1.0)), name


def test_muon_of_nothing_but_vectors(tiny_model):
    """Where no hidden matrix learns, AdamW does it all."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama-untied"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name or "lm_head" in name)
    assert type(make_optimizer(model, Trainer(optimizer="muon"), 0.1)) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("decay", "warmup", "floor"), [(0.2, 0.1, 0.0), (0.5, 0.0, 0.1), (1.0, 0.1, 0.0), (0.0, 0.1, 0.0)]
)
def test_wsd_by_hand(decay, warmup, floor):
    """It rises over the first steps, stays, and falls over the last as 1 - sqrt(t) does."""
    settings = Trainer(schedule="wsd", decay=decay, warmup=warmup, final_learning_rate=floor)
    steps = 40
    rising, falling = round(warmup * steps), min(round(decay * steps), steps - round(warmup * steps))
    expected = [step / rising for step in range(1, rising + 1)] + [1.0] * (steps - rising - falling)
    expected += [floor + (1 - floor) * (1 - (step / (falling + 1)) ** 0.5) for step in range(1, falling + 1)]
    assert [schedule(settings, step, steps) for step in range(1, steps + 1)] == pytest.approx(expected)


def text_recipe(tiny_model, folder, **trainer):
    generator = np.random.default_rng(0)
    documents = [" ".join(generator.choice(WORDS, generator.integers(2, 30))) for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    settings = {"epochs": 2, "learning_rate": 3e-3, "max_length": 32, "tokens_per_step": 256, "precision": "fp32"}
    settings |= {"optimizer": "muon", "schedule": "wsd", "checkpoint_every": 3, "devices": 1, **trainer}
    stage = {"name": "read", "phase": "pretrain", "data": {"train": str(folder / "text.txt"), "eval_split": 0.1}}
    return {"name": "tiny", "model": str(tiny_model("llama-untied")), "stages": [{**stage, "trainer": settings}]}


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """A run by one process that was never killed, and its recipe."""
    folder = tmp_path_factory.mktemp("whole")
    made = text_recipe(tiny_model, folder)
    return made, tutelage.train(made, out=folder / "run")


def test_killed_in_the_middle_of_the_stream(whole, tmp_path):
    """Muon's momenta, the schedule and the place in the stream are found again to the bit."""
    made, expected = whole
    run = tmp_path / "run"
    child = in_child(train_or_resume, made, str(run), "after-rename")
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert 0 < len(losses(run)) < len(losses(expected.folder))
    tutelage.resume(run)
    assert losses(run) == losses(expected.folder)
    assert same(learnt(run), learnt(expected.folder))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one(whole, tmp_path, strategy):
    made, one = whole
    trainer = {**made["stages"][0]["trainer"], "devices": 2, "strategy": strategy, "rehearsal": False}
    two = tutelage.train({**made, "stages": [{**made["stages"][0], "trainer": trainer}]}, out=tmp_path / "two")
    assert losses(two.folder) == pytest.approx(losses(one.folder), abs=2e-3)  # bfloat16 in Muon's iteration
    assert two.stages[0].metrics["eval_loss"] == pytest.approx(one.stages[0].metrics["eval_loss"], abs=2e-3)
    assert events(two.folder, "stage_started")[0]["devices"] == 2


def test_muon_leaves_a_score_head_to_adamw(tiny_model):
    model = load_scorer(Located("model", str(tiny_model("llama-tied"))), dtype=torch.float32, seed=0)
    optimizer = make_optimizer(model, Trainer(optimizer="muon"), 0.01)
    muons = [group["params"] for group in optimizer.param_groups if "adjust_lr_fn" in group and "ns_steps" in group]
    assert not any(parameter is model.score.weight for parameters in muons for parameter in parameters)
