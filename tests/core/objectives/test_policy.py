"""Policy losses: by hand, by TRL, and by the optima that they lead to where all that can happen can be enumerated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tutelage.objectives.advantages import gae, token_rewards
from tutelage.objectives.kl import k1
from tutelage.objectives.policy import clipped_policy_loss, clipped_value_loss, grpo_loss, is_clipped, token_weights
from tutelage.objectives.ragged import index_of


def test_the_clipped_loss_by_hand():
    ratio, advantages = np.array([1.5, 1.5, 0.5, 0.5, 1.1]), np.array([1.0, -1.0, 1.0, -1.0, 2.0])
    old = torch.full((5,), -1.0, dtype=torch.double)
    log_probs = old + torch.tensor(ratio).log()
    found = clipped_policy_loss(log_probs, old, torch.tensor(advantages))
    assert found.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8, -2.2])
    higher = clipped_policy_loss(log_probs, old, torch.tensor(advantages), clip_high=0.4)
    assert higher.tolist() == pytest.approx([-1.4, 1.5, -0.5, 0.8, -2.2])


def test_clipped_tokens_are_those_without_a_gradient():
    old = torch.full((5,), -1.0)
    log_probs = (old + torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]).log()).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    clipped_policy_loss(log_probs, old, advantages).sum().backward()
    assert (log_probs.grad == 0).tolist() == is_clipped(log_probs, old, advantages).tolist()
    assert is_clipped(log_probs, old, advantages).tolist() == [True, False, False, True, False]
    assert is_clipped(log_probs, old, advantages, clip_high=0.6).tolist() == [False, False, False, True, False]


def test_the_value_loss_by_hand():
    values, old, returns = torch.tensor([1.0, 0.3, -1.0]), torch.tensor([0.0, 0.0, 0.0]), torch.tensor([2.0, 1.0, 2.0])
    assert clipped_value_loss(values, old, returns, clip=0.5).tolist() == pytest.approx([1.125, 0.245, 4.5])
    assert clipped_value_loss(values, old, returns, clip=None).tolist() == pytest.approx([0.5, 0.245, 4.5])


@pytest.mark.parametrize(("normalization", "expected"), [("answer", 3.0), ("token", 2.5), ("constant", 1.0)])
def test_what_a_token_counts_for(normalization, expected):
    """Losses 1, 2, 3 in one answer and 4 in another, of at most five tokens."""
    losses, sequence = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 0, 1])
    tokens, answers = token_weights(sequence, 2, normalization, constant=5)
    assert float((losses * tokens).sum() / answers.sum()) == pytest.approx(expected)


@pytest.mark.parametrize("start", [0.02, 0.6])
def test_a_bandit_learns_what_the_closed_form_gives(start):
    """Two arms and a KL penalty: the best policy is reference * exp(reward / coefficient), wherever it begins."""
    scores, coefficient = torch.tensor([1.0, 0.0], dtype=torch.double), 0.5
    reference = torch.tensor([0.2, 0.8], dtype=torch.double).log()
    logits = torch.tensor([start, 1 - start], dtype=torch.double).log().requires_grad_()
    arms = torch.arange(2)
    for _ in range(150):
        old = logits.detach().log_softmax(0)
        rewards = token_rewards(scores, k1(old, reference), coefficient, arms)
        advantages, _ = gae(rewards, (old.exp() * rewards).sum().expand(2), arms, 2)
        for _ in range(4):
            loss = (old.exp() * clipped_policy_loss(logits.log_softmax(0), old, advantages)).sum()
            (gradient,) = torch.autograd.grad(loss, logits)
            logits = (logits - 0.5 * gradient).detach().requires_grad_()
    best = (reference + scores / coefficient).softmax(0)
    assert logits.detach().softmax(0).tolist() == pytest.approx(best.tolist(), abs=1e-3)


def test_a_chain_learns_to_walk_to_its_end():
    """Three states: stopping pays 0.3, 0.2 and 0 in them, going on costs 0.1 and pays 1 at the end.

    By backward induction, going on is best everywhere and the values are 0.7, 0.8 and 0.9, though a policy that mostly
    stops finds stopping at once the best. All four walks are enumerated and weighed by their chance.
    """
    stops = [0.3, 0.2, 0.0]
    walks = [[1] * goes + [0] * (goes < 3) for goes in range(4)]  # 1 goes on, 0 stops
    actions = torch.tensor([action for walk in walks for action in walk])
    states = torch.tensor([state for walk in walks for state in range(len(walk))])
    sequence = index_of(torch.tensor([0, 1, 3, 6, 9]))
    costs = torch.where(actions == 1, -0.1, torch.tensor(stops)[states]).double()
    rewards = costs + ((actions == 1) & (states == 2))
    policy = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.double, requires_grad=True)
    values = torch.zeros(3, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.Adam([policy, values], lr=0.05)
    for _ in range(200):
        with torch.no_grad():
            old = policy.log_softmax(1)[states, actions]
            chance = torch.zeros(4, dtype=torch.double).index_add(0, sequence, old).exp()[sequence]
            guessed = values[states]
            advantages, returns = gae(rewards, guessed, sequence, 4)
        for _ in range(3):
            log_probs = policy.log_softmax(1)[states, actions]
            losses = clipped_policy_loss(log_probs, old, advantages) + clipped_value_loss(
                values[states], guessed, returns
            )
            optimizer.zero_grad()
            (chance * losses).sum().backward()
            optimizer.step()
    assert (policy.detach().softmax(1)[:, 1] > 0.99).all()
    assert values.tolist() == pytest.approx([0.7, 0.8, 0.9], abs=0.02)


@pytest.fixture(scope="module")
def trl_loss(tiny_model, tmp_path_factory):
    """TRL's GRPO loss of given log-probabilities, by its trainer's own code."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_model("llama-tied")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token

    def compute(loss_type, log_probs, old, reference, advantages, mask, **options):
        settings = trl.GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            loss_type=loss_type,
            per_device_train_batch_size=len(mask),
            num_generations=len(mask),
            max_completion_length=mask.shape[1],
            use_cpu=True,
            bf16=False,
            report_to="none",
            **options,
        )
        trainer = trl.GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(folder),
            args=settings,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            train_dataset=datasets.Dataset.from_list([{"prompt": "the cat"}]),
            processing_class=tokenizer,
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None)
        ones = torch.ones(len(mask), 1, dtype=torch.long)
        inputs = {
            "prompt_ids": ones,
            "prompt_mask": ones,
            "completion_ids": torch.ones_like(mask, dtype=torch.long),
            "completion_mask": mask.long(),
            "advantages": advantages,
            "old_per_token_logps": old,
            "ref_per_token_logps": reference,
            "num_items_in_batch": mask.sum(),
        }
        return trainer._compute_loss(trainer.model, inputs)

    return compute


@pytest.mark.parametrize(
    ("estimator", "on_policy", "off_policy"), [("k2", True, False), ("k3", False, False), ("k3-unbiased", True, True)]
)
def test_which_kl_terms_have_the_gradient_of_the_divergence(estimator, on_policy, off_policy):
    """By enumeration of four tokens, drawn by the learning policy itself or by another."""
    logits = torch.tensor([0.2, -1.0, 0.7, 0.0], dtype=torch.double, requires_grad=True)
    policy = logits.log_softmax(0)
    other, reference = torch.tensor([[0.5, 0.0, 0.1, 0.0], [0.0, -0.5, 0.2, 0.4]], dtype=torch.double).log_softmax(1)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)
    for old, same in ((policy.detach(), on_policy), (other, off_policy)):
        losses = grpo_loss(policy, old, torch.zeros(4), reference, coefficient=1.0, estimator=estimator)
        (found,) = torch.autograd.grad((old.exp() * losses).sum(), logits, retain_graph=True)
        assert (found.tolist() == pytest.approx(exact.tolist(), rel=1e-6)) is same


@pytest.mark.parametrize(
    ("normalization", "loss_type", "estimator"),
    [("answer", "grpo", "k3-unbiased"), ("token", "dapo", "k3"), ("constant", "dr_grpo", "k3-unbiased")],
)
def test_grpo_is_that_of_trl(trl_loss, normalization, loss_type, estimator):
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(6)[None] < torch.tensor([6, 2, 4, 1])[:, None]
    old, reference = -torch.rand(2, 4, 6, generator=generator) * 3
    log_probs = (old + torch.randn(4, 6, generator=generator) * 0.3).requires_grad_()
    advantages = torch.tensor([1.2, -0.4, 0.3, -1.1])
    options = {"beta": 0.05, "epsilon": 0.2, "epsilon_high": 0.28, "use_bias_correction_kl": estimator == "k3-unbiased"}
    theirs = trl_loss(loss_type, log_probs, old, reference, advantages, mask, **options)
    sequence = mask.nonzero()[:, 0]
    losses = grpo_loss(
        log_probs[mask],
        old[mask],
        advantages[sequence],
        reference[mask],
        coefficient=0.05,
        estimator=estimator,
        clip=0.2,
        clip_high=0.28,
    )
    tokens, answers = token_weights(sequence, 4, normalization, constant=6)
    ours = (losses * tokens).sum() / answers.sum()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    gradients = [torch.autograd.grad(loss, log_probs, retain_graph=True)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-7)
