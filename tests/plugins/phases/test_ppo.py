"""PPO: the reward rises, and each step is what the papers say it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from online import Recorder, online, plain, plain_log_probs, write_prompts
from training import events

import tutelage
from tutelage.plugins import host


class Lower(tutelage.Reward):
    """The share of small letters."""

    name = "lower"

    def score(self, prompts, answers):
        return [sum(letter.islower() for letter in answer) / max(1, len(answer)) for answer in answers]


@pytest.fixture(autouse=True)
def _lower(monkeypatch):
    monkeypatch.setitem(host().classes("reward"), "lower", Lower)


@pytest.mark.parametrize("seed", range(3))
def test_a_reward_rises(tiny_model, tmp_path, seed):
    phase = {
        "kind": "ppo",
        "rewards": ["lower"],
        "prompts_per_step": 8,
        "samples": 8,
        "minibatches": 2,
        "inner_epochs": 1,
        "clip": 0.5,
        "kl_coefficient": 0.001,
    }
    made = online(tiny_model("llama-tied"), write_prompts(tmp_path / "p.jsonl", 8), phase, max_steps=26)
    made["stages"][0]["trainer"] |= {"learning_rate": 3e-2, "seed": seed, "checkpoint_every": 50}
    told = events(tutelage.train(made, out=tmp_path / "run").folder, "step")
    first, last = told[0], told[-1]
    rewards = [step["reward"] for step in told]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:2]) + 0.1  # an iteration's mean has an error of about 0.03
    assert last["kl"] > 1 > first["kl"] == pytest.approx(0, abs=1e-5)
    assert last["entropy"] < first["entropy"]


CONFIG = {
    "kind": "ppo",
    "samples": 2,
    "inner_epochs": 2,
    "minibatches": 2,
    "kl_coefficient": 0.3,
    "gamma": 0.97,
    "gae_lambda": 0.9,
    "missing_end_penalty": 0.5,
    "length_penalty": 0.01,
    "entropy_bonus": 0.02,
}


@pytest.fixture(scope="module")
def updates(tiny_model, tmp_path_factory):
    """Every optimizer step of two iterations, in micro-batches of few tokens, and what was told of them."""
    folder = tmp_path_factory.mktemp("updates")
    made = online(tiny_model("llama-tied"), write_prompts(folder / "p.jsonl", 6), CONFIG, max_steps=2)
    made["stages"][0]["trainer"] |= {"tokens_per_micro_batch": 60, "clip": 0}
    with pytest.MonkeyPatch.context() as patches:
        recorder = Recorder(patches)
        run = tutelage.train(made, out=folder / "run").folder
    return recorder.updates, events(run, "step")


def _values(actors, rollout, answer):
    """The value model's scores before each new token, one sequence at a time."""
    tokens = rollout.examples[answer]
    new = int(rollout.counts[answer])
    with actors.acting("value") as model:
        ids = torch.from_numpy(tokens.ids.astype("int64"))[None]
        hidden = plain(model)(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    return (hidden @ actors.value_head.weight[0])[-new - 1 : -1]


def _advantages(rewards, values, gamma, decay):
    """Schulman et al. 2016, equation 16, as a sum over all later errors."""
    following = np.append(values[1:], 0.0)
    errors = rewards + gamma * following - values
    steps = np.arange(len(errors))
    weights = np.where(steps[None] >= steps[:, None], (gamma * decay) ** (steps[None] - steps[:, None]), 0.0)
    return weights @ errors


def test_what_is_measured_of_a_rollout_is_what_plain_passes_give(updates):
    recorded, _ = updates
    first = next(update for update in recorded if update["step"] == 2)
    actors, rollout = first["model"], first["rollout"]
    with torch.no_grad():
        log_probs = torch.cat([plain_log_probs(actors.policy, rollout, row) for row in range(len(rollout))])
        values = torch.cat([_values(actors, rollout, row) for row in range(len(rollout))])
        with actors.acting("reference") as reference:
            expected = torch.cat([plain_log_probs(reference, rollout, row) for row in range(len(rollout))])
    torch.testing.assert_close(rollout.log_probs, log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(rollout.values, values, atol=1e-5, rtol=0)
    torch.testing.assert_close(rollout.reference, expected, atol=1e-5, rtol=0)
    assert values.abs().max() > 1e-3
    assert (log_probs - expected).abs().max() > 1e-2


def test_advantages_and_returns_are_those_of_the_papers(updates):
    recorded, told = updates
    rollout = next(update["rollout"] for update in recorded if update["step"] == 2)
    log_probs, reference, values = (
        each.double().numpy() for each in (rollout.log_probs, rollout.reference, rollout.values)
    )
    owner = rollout.sequence.numpy()
    raw = np.zeros(len(owner))
    for row, text in enumerate(rollout.texts):
        where = np.flatnonzero(owner == row)
        rewards = -0.3 * (log_probs[where] - reference[where])
        found = any(
            text[i : i + 3].isalpha() and text[i : i + 3].islower() and text[i : i + 3].isascii()
            for i in range(len(text) - 2)
        )
        rewards[-1] += float(found) - 0.5 * (not rollout.finished[row]) - 0.01 * len(where)
        raw[where] = _advantages(rewards, values[where], 0.97, 0.9)
    np.testing.assert_allclose(rollout.returns.numpy(), raw + values, atol=1e-5)
    np.testing.assert_allclose(rollout.advantages.numpy(), (raw - raw.mean()) / raw.std(), atol=1e-4)
    explained = 1 - np.var(raw) / np.var(raw + values)
    assert told[1]["explained_variance"] == pytest.approx(explained, abs=1e-3)


@pytest.mark.parametrize("which", [0, 3])
def test_loss_and_gradients_are_those_of_an_independent_computation(updates, which):
    """The first minibatch of an iteration, where the ratio is 1, and the last, where the policy has moved."""
    recorded, _ = updates
    update = [update for update in recorded if update["step"] == 2][which]
    actors, rollout, answers = update["model"], update["rollout"], update["answers"]
    actors.zero_grad()
    policy_loss = value_loss = tokens = 0.0
    for answer in answers:
        where = rollout.where([answer])
        new = plain_log_probs(actors.policy, rollout, answer)
        ratio = torch.exp(new - rollout.log_probs[where])
        advantage = rollout.advantages[where]
        surrogate = torch.minimum(ratio * advantage, torch.clamp(ratio, 0.8, 1.2) * advantage)
        policy_loss = policy_loss - (surrogate + 0.02 * _entropy(actors.policy, rollout, answer)).sum()
        tokens += len(where)
    (policy_loss / tokens).backward()
    for answer in answers:
        where = rollout.where([answer])
        value, old, target = _values(actors, rollout, answer), rollout.values[where], rollout.returns[where]
        near = old + torch.clamp(value - old, -0.2, 0.2)
        value_loss = value_loss + 0.5 * torch.maximum((value - target) ** 2, (near - target) ** 2).sum()
    with actors.acting("value"):
        (value_loss / tokens).backward()
    assert update["told"]["loss"] == pytest.approx(float(policy_loss.detach() / tokens), abs=1e-5)
    assert update["told"]["value_loss"] == pytest.approx(float(value_loss.detach() / tokens), abs=1e-5)
    found = {name: p.grad for name, p in actors.named_parameters() if p.grad is not None}
    assert found.keys() == update["gradients"].keys()
    for name, gradient in found.items():
        torch.testing.assert_close(update["gradients"][name], gradient, atol=2e-5, rtol=1e-3)
    assert (update["told"]["approx_kl"] > 1e-4) == (which == 3)


def _entropy(model, rollout, answer):
    ids = torch.from_numpy(rollout.examples[answer].ids.astype("int64"))[None]
    new = int(rollout.counts[answer])
    log_probs = plain(model)(input_ids=ids).logits[0, -new - 1 : -1].log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def test_passes_end_when_the_policy_has_moved_far_enough(tiny_model, tmp_path):
    phase = {"kind": "ppo", "inner_epochs": 4, "target_kl": 1e-6}
    made = online(tiny_model("llama-tied"), write_prompts(tmp_path / "p.jsonl", 4), phase, max_steps=1)
    (told,) = events(tutelage.train(made, out=tmp_path / "run").folder, "step")
    assert told["updates"] == 1  # the first can't be told from what drew the answers; the second is refused
