"""Learning from one's own answers: one Lightning batch is one iteration.

The policy answers the step's prompts, the answers are scored, each token is given an advantage, and a few optimizer
steps follow. All processes hold the whole rollout, so that whatever is computed from it (advantages, their whitening,
minibatches) is the same everywhere; gradients are computed of shares, and added up. Checkpoints lie between iterations,
and nothing of an iteration depends on what ran before but through the weights, the optimizer and `progress`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from tutelage.engine.answering import OF_POLICY, AnsweringLearner
from tutelage.engine.forward import token_log_probabilities
from tutelage.engine.heartbeat import EVALUATION
from tutelage.engine.learner import TURN, refuse_nan, schedule
from tutelage.engine.rollouts import Part, Rollout, mean_with_error
from tutelage.engine.watching import Watch
from tutelage.errors import RunFailed
from tutelage.models.sampling import Sampled, text
from tutelage.objectives.kl import k3
from tutelage.objectives.ragged import sum_by

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tutelage.data.batches import Batch, Step

LOSSES = ("loss", "value_loss")
"What is a mean as the phase weighs tokens; what else is measured at an optimizer step is a mean over its tokens."

NORMAL_95 = 1.96
"Standard errors on each side of a mean that make an interval of 95%."


class OnlineLearner(AnsweringLearner):
    """Trains a policy, and where the phase has one a value model, on the policy's own answers."""

    judged_by = "eval_reward"
    higher_is_better = True

    @property
    def artifact(self) -> nn.Module:
        return self.model.policy

    # One iteration

    def training_step(self, step: Step, *_: Any) -> None:
        """Answer the step's prompts, and learn from the answers."""
        started = time.perf_counter()
        self.turn, self._number = 0, step.number
        others = [] if self.evaluates else self.held_out_rewards
        # The answers' log-probabilities are those of the one step that follows: that measures them in passing.
        at_once = self._learns_at_once()
        samples = self.online.config.samples
        rollout = self.answer(self.prompts, step.examples, step.number, samples, others, policy=not at_once)
        rolled_out = time.perf_counter()
        told = {} if at_once else self.look(rollout, step.number, watch=not self.evaluates)
        told |= self.online.credit(rollout, self.progress.state)
        if at_once and rollout.learnt is not None and len(rollout.learnt) < len(rollout):  # not all take part in it
            self._measure(rollout, OF_POLICY)
        improved = self._improve(rollout, step)
        if at_once:
            told |= self.look(rollout, step.number, watch=not self.evaluates)
        told |= improved
        self.progress.step = step.number
        self.samples = rollout.shown(self.online.config.show)
        ended = time.perf_counter()
        tokens = int(rollout.lengths.sum())
        self.last = {
            "loss": told.pop("loss", 0.0),
            **told,
            "tokens": tokens,
            "learnt_tokens": int(rollout.weights.sum()),
            "seconds": ended - started,
            "rollout_seconds": rolled_out - started,
            "tokens_per_second": tokens / (ended - started),
            "epoch": step.epoch,
        }

    def _learns_at_once(self) -> bool:
        config = self.online.config
        return not self.online.credits_by_log_probs and config.inner_epochs == config.minibatches == 1

    def look(self, rollout: Rollout, step: int, *, watch: bool) -> dict[str, float]:
        """What there is to tell of a rollout; refuses a divergence that can't be or must not be.

        Raises:
            RunFailed: when the policy is beyond `kl_limit`, or the divergence is no number or negative.
        """
        measured = {name: mean_with_error(scores, rollout.group) for name, scores in rollout.given.items()}
        measured["length"] = mean_with_error(rollout.counts.float(), rollout.group)
        told: dict[str, float] = {}
        for name, (mean, error) in measured.items():
            told[name] = mean
            if name == "reward" and math.isfinite(error):
                told |= {"reward_low": mean - NORMAL_95 * error, "reward_high": mean + NORMAL_95 * error}
        told["finished"] = float(rollout.finished.float().mean())
        assert rollout.log_probs is not None
        assert rollout.entropy is not None
        told["entropy"] = float(rollout.entropy.mean())
        if rollout.reference is not None:
            each = self.online.divergence(rollout.log_probs, rollout.reference)
            measured["kl"] = mean_with_error(sum_by(each, rollout.sequence, len(rollout)), rollout.group)
            told["kl"], told["kl_per_token"] = measured["kl"][0], float(each.mean())
            self._refuse_divergence(*measured["kl"], told["length"], len(rollout), step)
        if watch:
            self._watch(step, measured)
        return told

    def _refuse_divergence(self, kl: float, error: float, length: float, answers: int, step: int) -> None:
        config = self.online.config
        if config.kl_limit is not None and not kl <= config.kl_limit:
            wrong = (
                f"the policy is {kl:.4g} nats an answer away from the reference, beyond kl_limit ({config.kl_limit:g})"
            )
            fix = "raise kl_coefficient or lower the learning rate, and begin the stage anew; or raise kl_limit"
            raise RunFailed.at(f"step {step}", wrong, fix)
        beyond_noise = kl + 5 * error < -1e-3 * length
        if beyond_noise and config.top_p == 1 and answers >= 8:
            wrong = f"the divergence from the reference is {kl:.4g} nats an answer, and less than 0 is impossible"
            fix = (
                "answers were drawn from another policy than the one that is trained, which is a fault here: report it"
            )
            raise RunFailed.at(f"step {step}", wrong, fix)

    def _watch(self, step: int, measured: dict[str, tuple[float, float]]) -> None:
        config = self.online.config
        watch = Watch(self.progress.state, kl_budget=config.kl_budget, length_drift=config.length_drift)
        others = [name for name in measured if name.startswith("held_out")]
        for said in watch.look(step, "reward", others, measured):
            if self.global_rank == 0:
                self.notice(f"step {step}: {said}")

    # Learning

    def _improve(self, rollout: Rollout, step: Step) -> dict[str, float]:
        """Optimizer steps on minibatches of the answers; means of what was measured at each."""
        learnt = np.arange(len(rollout)) if rollout.learnt is None else rollout.learnt
        rate = self.learning_rate * schedule(self.settings, step.number, len(self.plan))
        told: list[dict[str, float]] = []
        self._take(rollout)
        for answers in self._minibatches(learnt, step.number):
            self.turn += 1
            found = self._learn(answers, step, rate)
            if found is None:
                break
            told.append(found)
        measures = {name: float(np.mean([each[name] for each in told])) for name in (told[0] if told else ())}
        return {**measures, "learning_rate": rate, "updates": len(told)}

    def _minibatches(self, learnt: NDArray[np.int64], number: int) -> Iterator[NDArray[np.int64]]:
        config = self.online.config
        for epoch in range(config.inner_epochs if len(learnt) else 0):
            order = np.random.default_rng([self.settings.seed, number, epoch]).permutation(learnt)
            yield from np.array_split(order, min(config.minibatches, len(order)))

    def _learn(self, answers: NDArray[np.int64], step: Step, rate: float) -> dict[str, float] | None:
        """One optimizer step; None, and no step, when the policy has moved far enough in this iteration."""
        assert self._rollout is not None
        optimizer: Any = self.optimizers()
        weight = float(self.online.weights(self._rollout.part(answers))[1].sum())
        found = self.accumulate(answers, weight, step.number)
        each_token = weight / float(self._rollout.weights[answers].sum())
        found |= {name: value * each_token for name, value in found.items() if name not in LOSSES}
        target = self.online.config.target_kl
        if target is not None and found["approx_kl"] > target:
            self.model.zero_grad(set_to_none=True)
            return None
        found["grad_norm"] = self._clip(step, self.model.learning("policy"))
        if self.online.critic:
            found["value_grad_norm"] = self._clip(step, self.model.learning("value"))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found

    def _backward(self, batches: list[NDArray[np.int64]], weight: float, number: int) -> list[dict[str, Tensor]]:
        """Add the gradients of policy and value model, one after the other, so that only one's activations are held."""
        rollout = self._rollout
        assert rollout is not None
        told = []
        drawn_by = torch.zeros(len(OF_POLICY), int(rollout.weights.sum()))
        for index, answers in enumerate(batches):
            self.beat(number, 2 * index)
            batch, part = self.collate(answers), rollout.part(answers).to(self.device)
            counts = self.online.weights(part)[0]
            with self._alone():
                measures, found = self._policy_backward(batch, part, counts, weight)
                drawn_by[:, rollout.where(answers)] = found.cpu()
                if self.online.critic:
                    measures["value_loss"] = self._value_backward(batch, part, counts, weight)
            for name in LOSSES:
                if name in measures:
                    refuse_nan(measures[name], self.examples, answers, number)
            told.append(measures)
        self.beat(number, 2 * len(batches))
        self._add_up_gradients()
        if rollout.log_probs is None:
            rollout.log_probs, rollout.entropy = self._together(drawn_by)
        return told

    def _policy_backward(
        self, batch: Batch, part: Part, counts: Tensor, weight: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Measures, summed over tokens; and of each token its log-probability and entropy, (2, tokens)."""
        assert self._rollout is not None
        config = self.online.config
        with self.model.acting("policy") as policy:
            with self.trainer.precision_plugin.forward_context():
                log_probs, _, entropy = token_log_probabilities(
                    policy, batch, config.temperature, entropy_gradient=config.entropy_bonus > 0
                )
            if self._rollout.log_probs is None:
                part.log_probs = log_probs.detach()
            losses, measures = self.online.policy_losses(log_probs, entropy, part)
            loss = (counts * losses).sum()
            self.manual_backward(loss / weight)
        moved = (log_probs - part.log_probs).detach()
        measures |= {"ratio": moved.exp(), "approx_kl": k3(part.log_probs, log_probs)}
        summed = {"loss": loss.detach(), **{name: each.sum().detach() for name, each in measures.items()}}
        return summed, torch.stack([log_probs, entropy]).detach()

    def _value_backward(self, batch: Batch, part: Part, counts: Tensor, weight: float) -> Tensor:
        with self.model.acting("value") as model:
            with self.trainer.precision_plugin.forward_context():
                values = self.model.values(model, batch)
            loss = (counts * self.online.value_losses(values, part)).sum()
            self.manual_backward(loss / weight)
        return loss.detach()

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        """Without the strategy's own exchange of gradients, which allows one backward pass a step."""
        model: Any = self.trainer.strategy.model
        return model.no_sync() if hasattr(model, "no_sync") else contextlib.nullcontext()

    def _add_up_gradients(self) -> None:
        """Sum gradients over devices, in pieces of some megabytes."""
        if self.trainer.world_size == 1:
            return
        waiting: list[nn.Parameter] = []
        size = 0
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for index, parameter in enumerate(learning):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            waiting.append(parameter)
            size += parameter.numel()
            if size >= 2**23 or index + 1 == len(learning):
                gradients = [each.grad for each in waiting if each.grad is not None]
                flat = torch.cat([gradient.flatten() for gradient in gradients])
                dist.all_reduce(flat)
                for gradient, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
                    gradient.copy_(part.view_as(gradient))
                waiting, size = [], 0

    # Evaluation and rehearsal

    @torch.no_grad()
    def evaluate(self, held_out: Any) -> dict[str, float]:
        """Answer held-out prompts, each time by the same random numbers; the rewards and the rest of it."""
        self.turn, self._number = EVALUATION // TURN, self.progress.step
        rollout = self.answer(held_out, np.arange(len(held_out)), 0, 1, self.held_out_rewards)
        told = self.look(rollout, self.progress.step, watch=True)
        return {f"eval_{name}": value for name, value in told.items()}

    def try_iteration(self, most: int) -> int:
        """Go once through an iteration's parts on the longest prompts with answers of full length, and undo it.

        Args:
            most: how many answers may be used.
        Returns:
            the tokens computed.
        """
        config = self.online.config
        width = self.prompts.longest + config.max_new_tokens
        count = min(most, max(1, self.progress.micro_batch_tokens * self.trainer.world_size // width))
        if count < 1:
            return 0
        longest_first = sorted(range(len(self.prompts)), key=lambda index: -len(self.prompts.ids[index]))
        indices = [longest_first[number % len(longest_first)] for number in range(count)]
        self.model.eval()
        few = min(2, config.max_new_tokens)
        answers = self._draw([self.prompts.ids[index] for index in indices], list(range(count)), few)
        for answer in answers:  # as long as can be, whatever they say
            answer.ids += [self.filler] * (config.max_new_tokens - len(answer.ids))
        rollout = self._rollout_of(self.prompts, indices, answers)
        rollout.texts = [text(self.tokenizer, Sampled(answer.ids[:few])) for answer in answers]
        self._score(rollout, self.rewards, "reward")
        with self.apart():
            self._measure(rollout, [*OF_POLICY, *self.online.measured])
            self.online.credit(rollout, {})
            everything = np.arange(len(rollout))
            weight = float(self.online.weights(rollout.part(everything))[1].sum())
            self.accumulate(everything, weight, 0)
        return int(rollout.lengths.sum())
