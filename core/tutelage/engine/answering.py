"""Answers to prompts: drawn, scored and measured by all processes together.

Each process does its share, and what each found is put together, so that all hold the same rollout. An answer's random
numbers follow from the seed, the iteration, the prompt and the number of the answer: neither the number of processes
nor a resume changes them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

from tutelage.data.rendering import Tokens
from tutelage.engine.forward import token_log_probabilities
from tutelage.engine.learner import TURN, Learner, OutOfMemory, is_out_of_memory
from tutelage.engine.prompting import Prompts
from tutelage.engine.rollouts import Rollout
from tutelage.errors import RunFailed
from tutelage.models.sampling import Sampled, sample, seed_of, text
from tutelage.reward import Weighted, total

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from tutelage.data.batches import Batch, Examples
    from tutelage.engine.online import OnlinePhase
    from tutelage.engine.shared import Actors

T = TypeVar("T")
OF_POLICY = ["log_probs", "entropy"]
"What is measured of a rollout's tokens under the policy that drew them."

SAMPLED_AT_ONCE = 8
"How many times the tokens of a micro-batch are drawn at a time: keys and values take less room than activations."


class AnsweringLearner(Learner):
    """A learner whose policy answers prompts; how it learns from the answers is its subclass's."""

    model: Actors

    def __init__(
        self,
        phase: OnlinePhase,
        *arguments: Any,
        prompts: Prompts,
        tokenizer: PreTrainedTokenizerBase,
        ends: dict[str, Any],
        rewards: list[Weighted],
        held_out_rewards: list[Weighted],
        evaluates: bool,
        **options: Any,
    ) -> None:
        super().__init__(cast(Any, phase), *arguments, **options)
        self.online = phase
        self.prompts = prompts
        self.tokenizer = tokenizer
        self.ends = ends
        "What ends an answer, and what pads: arguments of `sample`."
        self.rewards = rewards
        self.held_out_rewards = held_out_rewards
        self.evaluates = evaluates
        "Whether there are held-out prompts; if not, held-out rewards are taken of the answers that are learnt from."
        self.samples: list[dict[str, Any]] = []
        "Some answers of the last iteration, for people."
        self._rollout: Rollout | None = None
        self._number = 0
        "The step that signs of life name."
        if held_out_rewards:
            self.judged_by = "eval_held_out"

    def answer(
        self,
        prompts: Prompts,
        indices: NDArray[np.int64],
        iteration: int,
        samples: int,
        others: Sequence[Weighted],
        *,
        policy: bool = True,
    ) -> Rollout:
        """Answers to some of the prompts, scored and measured.

        Args:
            iteration: what seeds the answers' random numbers, together with the stage's seed.
            others: rewards to be taken besides those that are learnt from.
            policy: whether the policy's log-probabilities and entropies are measured, too.
        """
        self.model.eval()
        asked = [(int(index), number) for index in indices for number in range(samples)]
        seeds = [seed_of(self.settings.seed, iteration, index, number) for index, number in asked]
        longest = self.online.config.max_new_tokens
        found = torch.zeros(len(asked), longest + 2, dtype=torch.int64)
        mine = self._share(len(asked))
        drawn = self._draw([prompts.ids[asked[row][0]] for row in mine], [seeds[row] for row in mine], longest)
        for row, each in zip(mine, drawn, strict=True):
            found[row, : len(each.ids)] = torch.tensor(each.ids)
            found[row, -2], found[row, -1] = len(each.ids), each.finished
        found = self._together(found)
        answers = [Sampled(row[: row[-2]], [], bool(row[-1])) for row in found.tolist()]
        rollout = self._rollout_of(prompts, [index for index, _ in asked], answers)
        self._score(rollout, self.rewards, "reward")
        if others:
            self._score(rollout, others, "held_out")
        self._measure(rollout, [*OF_POLICY, *self.online.measured] if policy else self.online.measured)
        self.model.train()
        return rollout

    def _draw(self, prompts: list[list[int]], seeds: list[int], longest: int) -> list[Sampled]:
        config = self.online.config

        def work() -> list[Sampled]:
            width = max(map(len, prompts), default=1) + longest
            with self._beating(), self.trainer.precision_plugin.forward_context():
                return sample(
                    self.model.policy,
                    prompts,
                    max_new_tokens=longest,
                    temperature=config.temperature,
                    top_p=config.top_p,
                    seeds=seeds,
                    batch_size=max(1, SAMPLED_AT_ONCE * self.progress.micro_batch_tokens // width),
                    log_probs=False,
                    **self.ends,
                )

        return self._spared(work, largest=self.progress.micro_batch_tokens)

    def _rollout_of(self, prompts: Prompts, indices: list[int], answers: list[Sampled]) -> Rollout:
        examples = []
        for index, answer in zip(indices, answers, strict=True):
            ids = np.array([*prompts.ids[index], *answer.ids], dtype=np.int32)
            learn = np.zeros(len(ids), dtype=bool)
            learn[len(prompts.ids[index]) :] = True
            examples.append(Tokens(ids, learn))
        return Rollout(
            prompts=[prompts.records[index] for index in indices],
            group=torch.from_numpy(np.unique(indices, return_inverse=True)[1]),
            examples=examples,
            places=[prompts.place(index) for index in indices],
            texts=[text(self.tokenizer, answer) for answer in answers],
            finished=torch.tensor([answer.finished for answer in answers]),
        )

    def _score(self, rollout: Rollout, rewards: Sequence[Weighted], name: str) -> None:
        """Have rewards score the answers; their weighted sum is kept by `name`, and each by its own."""
        mine = self._share(len(rollout))
        self.heartbeat.rest()  # a reward may be a service far away
        prompts, texts = [rollout.prompts[row] for row in mine], [rollout.texts[row] for row in mine]
        sums, each = total(rewards if mine else [], prompts, texts)
        columns = {name: sums}
        if len(rewards) > 1:
            columns |= {f"{name}_{weighted.name}": each.get(weighted.name, []) for weighted in rewards}
        found = torch.zeros(len(columns), len(rollout))
        found[:, mine] = torch.tensor(list(columns.values()), dtype=torch.float32).reshape(len(columns), len(mine))
        rollout.given |= dict(zip(columns, self._together(found), strict=True))

    @torch.no_grad()
    def _measure(self, rollout: Rollout, names: list[str]) -> None:
        """What is named of each new token: log-probabilities under policy and reference, entropies, and values."""
        self._take(rollout)
        if not names:
            return
        self.model.eval()

        def work() -> Tensor:
            flat = torch.zeros(len(names), int(rollout.weights.sum()))
            for index, answers in enumerate(self.cut(np.arange(len(rollout)))):
                self.beat(self._number, index)
                if len(answers):
                    found = self._measured(self.collate(answers), names)
                    flat[:, rollout.where(answers)] = torch.stack([found[name] for name in names]).cpu()
            return flat

        whole = self._together(self._spared(work, largest=int(rollout.lengths.max())))
        for name, values in zip(names, whole, strict=True):
            setattr(rollout, name, values)
        self.model.train()

    def _measured(self, batch: Batch, names: list[str]) -> dict[str, Tensor]:
        temperature = self.online.config.temperature
        found: dict[str, Tensor] = {}
        with self.trainer.precision_plugin.forward_context():
            if "log_probs" in names:
                with self.model.acting("policy") as policy:
                    found["log_probs"], _, found["entropy"] = token_log_probabilities(policy, batch, temperature)
            if "reference" in names:
                with self.model.acting("reference") as reference:
                    found["reference"], _, _ = token_log_probabilities(reference, batch, temperature, entropy=False)
            if "values" in names:
                with self.model.acting("value") as model:
                    found["values"] = self.model.values(model, batch)
        return found

    # What processes share

    def _take(self, rollout: Rollout) -> None:
        """Have the answers be the examples that micro-batches are cut from."""
        self._rollout = rollout
        self.examples = rollout
        self.lengths = rollout.lengths
        self.weights = rollout.weights

    def cut(self, examples: NDArray[np.int64], store: Examples | None = None) -> list[NDArray[np.int64]]:
        """Micro-batches in which the answers to a prompt stay together as far as they can, as they share it."""
        if not self.shares:
            return super().cut(examples, store)
        lengths, limit = (self.lengths if store is None else store.lengths), self.progress.micro_batch_tokens
        devices = self.trainer.world_size
        total = int(lengths[examples].sum())
        wanted = total / (devices * max(1, -(-total // (limit * devices))))
        batches: list[list[int]] = []
        load = 0
        for index in np.sort(examples).tolist():
            if not batches or load >= wanted or load + lengths[index] > limit:
                batches.append([])
                load = 0
            batches[-1].append(index)
            load += int(lengths[index])
        batches += [[] for _ in range(-len(batches) % devices)]
        return [np.array(each, dtype=np.int64) for each in (batches or [[]] * devices)[self.global_rank :: devices]]

    def _share(self, count: int) -> list[int]:
        """This process's share of so many things: neighbours, as answers to one prompt are."""
        share: list[int] = np.array_split(np.arange(count), self.trainer.world_size)[self.global_rank].tolist()
        return share

    def _together(self, found: Tensor) -> Tensor:
        """What all processes found, each having left 0 where others look; on the CPU."""
        if self.trainer.world_size == 1:
            return found
        self.beat(self._number, TURN - 1)
        whole = found.to(self.device)
        dist.all_reduce(whole)
        self.turn += 1
        return whole.cpu()

    def _spared(self, work: Callable[[], T], *, largest: int) -> T:
        """Do it, with smaller micro-batches where memory does not suffice."""
        while True:
            try:
                return work()
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.trainer.world_size > 1:
                    raise OutOfMemory(self.progress.micro_batch_tokens) from error
                if self.progress.micro_batch_tokens <= 1:
                    fix = "lower phase.max_new_tokens, or use qlora or a larger device"
                    raise RunFailed.at("rollout", "memory does not suffice for a single answer", fix) from error
            self.halve(largest)

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """Say, at every token that is drawn, that this process gets on."""
        last = 0.0

        def beat(*_: Any) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 1.0:
                last = now
                self.beat(self._number, 0)

        handle = self.model.get_base_model().register_forward_pre_hook(beat)
        try:
            yield
        finally:
            handle.remove()
