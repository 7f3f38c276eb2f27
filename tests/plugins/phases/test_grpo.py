"""GRPO: the reward rises, each step is what the papers say it is, and answers that were cut are treated as asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from online import Recorder, online, plain_log_probs, write_prompts
from training import events

import tutelage
from tutelage.plugins import host


class Lower(tutelage.Reward):
    """The share of small letters."""

    name = "lower"

    def score(self, prompts, answers):
        return [sum(letter.islower() for letter in answer) / max(1, len(answer)) for answer in answers]


class Nan(tutelage.Reward):
    """No number."""

    name = "nan"

    def score(self, prompts, answers):
        return [float("nan")] * len(answers)


@pytest.fixture(autouse=True)
def _rewards(monkeypatch):
    monkeypatch.setitem(host().classes("reward"), "lower", Lower)
    monkeypatch.setitem(host().classes("reward"), "nan", Nan)


@pytest.mark.parametrize("seed", range(3))
def test_a_reward_rises(tiny_model, tmp_path, seed):
    phase = {"kind": "grpo", "rewards": ["lower"], "prompts_per_step": 8, "samples": 8}
    made = online(tiny_model("llama-tied"), write_prompts(tmp_path / "p.jsonl", 8), phase, max_steps=10)
    made["stages"][0]["trainer"] |= {"learning_rate": 3e-2, "seed": seed, "checkpoint_every": 50}
    told = events(tutelage.train(made, out=tmp_path / "run").folder, "step")
    rewards = [step["reward"] for step in told]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:2]) + 0.06  # an iteration's mean has an error of about 0.03
    assert "kl" not in told[0]  # without a coefficient no reference is computed


@pytest.mark.parametrize(
    "choice",
    [
        {"loss": "answer", "scale": "group", "kl_coefficient": 0.1},
        {"loss": "token", "scale": "none", "clip_high": 0.4, "kl_coefficient": 0.2, "kl_estimator": "k2"},
        {"loss": "constant", "scale": "group", "cut_answers": "mask", "samples": 24, "prompts_per_step": 2},
    ],
)
def test_loss_and_gradients_are_those_of_an_independent_computation(tiny_model, tmp_path, monkeypatch, choice):
    recorder = Recorder(monkeypatch)
    phase = {"kind": "grpo", "rewards": ["lower"], "samples": 4, "prompts_per_step": 4, "inner_epochs": 2, **choice}
    made = online(
        tiny_model("llama-tied"), write_prompts(tmp_path / "p.jsonl", phase["prompts_per_step"]), phase, max_steps=2
    )
    made["stages"][0]["trainer"] |= {"tokens_per_micro_batch": 80, "clip": 0}
    tutelage.train(made, out=tmp_path / "run")
    update = recorder.updates[-1]  # the second pass over the second iteration's answers
    policy, rollout = update["model"].policy, update["rollout"]
    policy.zero_grad()
    masked = choice.get("cut_answers") == "mask"
    rewards = np.array(Lower().score([], rollout.texts))
    total, count = 0.0, 0
    for answer in range(len(rollout)):
        group = [
            other
            for other in range(len(rollout))
            if rollout.group[other] == rollout.group[answer] and (bool(rollout.finished[other]) or not masked)
        ]
        if answer not in group:
            assert answer not in update["answers"]
            continue
        advantage = rewards[answer] - rewards[group].mean()
        if choice["scale"] == "group":
            advantage /= (rewards[group].std(ddof=1) if len(group) > 1 else 0.0) + 1e-4
        where = rollout.where([answer])
        new = plain_log_probs(policy, rollout, answer)
        ratio = torch.exp(new - rollout.log_probs[where])
        losses = -torch.minimum(
            ratio * advantage, torch.clamp(ratio, 0.8, 1 + choice.get("clip_high", 0.2)) * advantage
        )
        if "kl_coefficient" in choice:
            away = rollout.reference[where] - new
            kl = 0.5 * away**2 if choice.get("kl_estimator") == "k2" else torch.exp(away) - away - 1
            losses = losses + choice["kl_coefficient"] * kl
        shares = {"answer": 1 / len(where), "token": 1.0, "constant": 1 / 8}
        total = total + shares[choice["loss"]] * losses.sum()
        count += len(where) if choice["loss"] == "token" else 1
    (total / count).backward()
    assert update["told"]["loss"] == pytest.approx(float(total.detach() / count), abs=1e-5)
    assert update["told"]["approx_kl"] > 1e-4
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(update["gradients"][f"policy.{name}"], parameter.grad, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("choice", [{}, {"cut_answers": "mask", "samples": 24}, {"kl_coefficient": 0.1}])
def test_log_probabilities_of_the_one_step_are_those_measured_before_it(tiny_model, tmp_path, monkeypatch, choice):
    phase = {"kind": "grpo", "rewards": ["lower"], "prompts_per_step": 4, "samples": 4, "entropy_bonus": 0.01, **choice}
    data, told = write_prompts(tmp_path / "p.jsonl", 8), []
    for before in (False, True):
        monkeypatch.setattr(host().classes("phase")["grpo"], "credits_by_log_probs", before)
        made = online(tiny_model("llama-tied"), data, phase, max_steps=3)
        made["stages"][0]["trainer"] |= {"learning_rate": 1e-2, "tokens_per_micro_batch": 100}
        told.append(events(tutelage.train(made, out=tmp_path / str(before)).folder, "step"))
    for one, other in zip(*told, strict=True):
        assert one.keys() == other.keys()
        for name in {"loss", "entropy", "reward", "kl", "kl_per_token", "ratio", "approx_kl", "grad_norm"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
    assert told[0][0]["ratio"] == pytest.approx(1.0, abs=1e-6)


def test_rewards_are_weighted_and_prompts_without_variance_are_counted(tiny_model, tmp_path):
    """One reward is the same for all answers; all of it is told, and a group in which nothing differs teaches nothing."""
    always = {"kind": "regex", "pattern": "(?s).*", "weight": 2.0, "name": "always"}
    phase = {"kind": "grpo", "samples": 2, "rewards": [{"kind": "regex", "pattern": "[a-z]{7}", "weight": 0.5}, always]}
    made = online(tiny_model("qwen2"), write_prompts(tmp_path / "p.jsonl", 6), phase, max_steps=1)
    (told,) = events(tutelage.train(made, out=tmp_path / "run").folder, "step")
    assert told["reward_always"] == 1.0
    assert told["reward"] == pytest.approx(2.0 + 0.5 * told["reward_regex"])
    varied = 6 - told["prompts_without_variance"]
    assert varied <= 12 * told["reward_regex"]
    assert (told["grad_norm"] > 1e-6) == (varied > 0)


def test_when_all_answers_are_cut_and_masked_nothing_is_learnt(tiny_model, tmp_path):
    phase = {"kind": "grpo", "rewards": ["lower"], "samples": 2, "max_new_tokens": 1, "cut_answers": "mask"}
    made = online(tiny_model("llama-tied"), write_prompts(tmp_path / "p.jsonl", 3), phase, max_steps=1)
    (told,) = events(tutelage.train(made, out=tmp_path / "run").folder, "step")
    assert told["masked"] == 6
    assert told["updates"] == 0


def test_a_reward_that_is_no_number_stops_with_a_sentence(tiny_model, tmp_path):
    phase = {"kind": "grpo", "rewards": ["nan"], "samples": 2}
    made = online(tiny_model("llama-tied"), write_prompts(tmp_path / "p.jsonl", 3), phase, max_steps=1)
    with pytest.raises(tutelage.RunFailed, match="reward nan: gave nan for the answer") as error:
        tutelage.train(made, out=tmp_path / "run")
    assert error.value.exit_code == 1


def test_prompt_tuning_learns_too(tiny_model, tmp_path):
    phase = {"kind": "grpo", "rewards": ["lower"], "samples": 4, "kl_coefficient": 0.01}
    made = online(
        tiny_model("llama-tied"), write_prompts(tmp_path / "p.jsonl", 4), phase, adapter="prompt", max_steps=2
    )
    told = events(tutelage.train(made, out=tmp_path / "run").folder, "step")
    assert all(step["grad_norm"] > 0 for step in told)


def test_measures_are_means_over_tokens_whatever_the_loss_weighs_by(tiny_model, tmp_path):
    phase = {"kind": "grpo", "rewards": ["lower"], "samples": 24, "loss": "constant"}
    made = online(tiny_model("llama-tied"), write_prompts(tmp_path / "p.jsonl", 3), phase, max_steps=1)
    (told,) = events(tutelage.train(made, out=tmp_path / "run").folder, "step")
    assert told["length"] < 8
    assert told["ratio"] == pytest.approx(1.0, abs=1e-4)


def test_a_policy_can_not_learn_with_dropout_from_answers_given_without(tiny_model, tmp_path):
    phase = {"kind": "grpo", "rewards": ["lower"], "samples": 2}
    made = online(tiny_model("llama-tied"), write_prompts(tmp_path / "p.jsonl", 3), phase, max_steps=1)
    made["stages"][0]["adapter"] = {"kind": "lora", "rank": 4, "dropout": 0.1}
    assert any(problem.place.endswith("adapter.dropout") for problem in tutelage.check(made).problems)
