"""The Lightning module that trains: one Lightning batch is one optimizer step, cut into micro-batches here.

Owning the whole step makes three promises simple. The loss is a mean over the learnt tokens of the step, whatever the
number of micro-batches and devices. A step that runs out of memory is done again in smaller micro-batches, to the same
result. And a checkpoint always lies between two steps.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist

from tutelage.data.batches import Batch, Examples, Plan, Step, collate, split_packed, split_padded
from tutelage.engine.checkpoints import Progress
from tutelage.engine.devices import give_memory_back
from tutelage.engine.heartbeat import EVALUATION, Heartbeat
from tutelage.engine.optimizers import make_optimizer
from tutelage.engine.sharding import reduce_on_last
from tutelage.errors import RunFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tutelage.phase import TrainingPhase
    from tutelage.recipe import Trainer


TURN = 10_000
"Signs of life within a step are numbered from a multiple of this in each accumulation of gradients."

COMPUTED = "computed_tokens"
"What went through the model: fewer than a step's tokens where beginnings are shared, more where rows are padded."


class OutOfMemory(Exception):
    """A process of several ran out of memory; the run goes on from its last checkpoint with smaller micro-batches."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"memory does not suffice for micro-batches of {tokens} tokens")
        self.tokens = tokens


class Learner(L.LightningModule):
    """Trains `model` by a phase's loss. Everything that must survive a kill is in `progress`."""

    judged_by = "eval_loss"
    "The measure by which one evaluation is better than another."
    higher_is_better = False

    def __init__(
        self,
        phase: TrainingPhase,
        model: nn.Module,
        examples: Examples,
        plan: Plan,
        settings: Trainer,
        progress: Progress,
        *,
        learning_rate: float,
        packed: bool,
        filler: int,
        notice: Callable[[str], None],
        heartbeat: Heartbeat,
        shard: Callable[[nn.Module, Any], None] | None = None,
        shares: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.phase = phase
        self.model = model
        self.examples = examples
        self.lengths = examples.lengths
        self.weights = examples.weights
        self.plan = plan
        self.settings = settings
        self.progress = progress
        self.learning_rate = learning_rate
        self.packed = packed
        self.shares = shares
        "Whether what sequences of a packed row have in common at their beginning is computed once."
        self.filler = filler
        self.notice = notice
        self.heartbeat = heartbeat
        self.last: dict[str, float] = {}
        self.turn = 0
        "Which accumulation of gradients within a step this is, where there are several."
        self._shard = shard

    @property
    def artifact(self) -> nn.Module:
        """The model that the stage leaves."""
        return self.model

    def configure_model(self) -> None:
        """Shard the model over devices where the strategy does; Lightning calls this more than once."""
        if self._shard is not None:
            self._shard(self.model, self.device_mesh)
            self._shard = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer that the recipe asks for."""
        return make_optimizer(self.model, self.settings, self.learning_rate)

    def transfer_batch_to_device(self, batch: Any, *_: Any) -> Any:
        """Micro-batches move to the device one at a time, when their turn comes."""
        return batch

    def training_step(self, step: Step, *_: Any) -> None:
        """One optimizer step."""
        started = time.perf_counter()
        weight = int(self.weights[step.examples].sum())
        optimizer: Any = self.optimizers()
        told = self.accumulate(step.examples, weight, step.number)
        norm = self._clip(step)
        rate = self.learning_rate * schedule(self.settings, step.number, len(self.plan))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.progress.step = step.number
        tokens = int(self.lengths[step.examples].sum())
        computed = round(told.pop(COMPUTED, 0.0) * max(1, weight))
        seconds = time.perf_counter() - started
        self.last = {
            **told,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": tokens,
            COMPUTED: computed,
            **({"learnt_tokens": weight} if self.phase.counts_tokens else {}),
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "epoch": step.epoch,
        }

    def accumulate(self, examples: NDArray[np.int64], weight: float, number: int) -> dict[str, float]:
        """Add the gradients of a step's mean loss; halve the micro-batches and begin again when memory runs out.

        Returns:
            the step's `loss`, `computed_tokens`, and the phase's further measures: sums over all devices, by `weight`.
        Raises:
            RunFailed: when the loss is not finite, naming the rows.
            OutOfMemory: when memory runs out and other processes are in the middle of the same step.
        """
        while True:
            batches = self.cut(examples)
            torch.manual_seed(_step_seed(self.settings.seed, number, self.global_rank, self.turn))
            try:
                return self._sum_over_devices(self._backward(batches, weight, number), weight, number)
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.trainer.world_size > 1:
                    raise OutOfMemory(self.progress.micro_batch_tokens) from error
                if sum(map(bool, map(len, batches))) >= len(examples):
                    raise RunFailed.at(
                        f"step {number}",
                        "memory does not suffice for a single example",
                        "lower trainer.max_length, or use activation_checkpointing, qlora, or a larger device",
                    ) from error
            self.model.zero_grad(set_to_none=True)
            self.halve(largest=max(int(self.lengths[batch].sum()) for batch in batches))

    def halve(self, largest: int) -> None:
        """Use micro-batches of half the tokens from now on, and say so."""
        self.progress.micro_batch_tokens = max(1, min(self.progress.micro_batch_tokens, largest) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.notice(
            f"out of memory: micro-batches now have {self.progress.micro_batch_tokens} tokens; the result is the same"
        )

    def cut(self, examples: NDArray[np.int64], store: Examples | None = None) -> list[NDArray[np.int64]]:
        """This device's micro-batches of some examples (of the step, or of another `store`), as their indices."""
        split = split_packed if self.packed else split_padded
        lengths = self.lengths if store is None else store.lengths
        tokens = self.progress.micro_batch_tokens
        return split(examples, lengths, tokens=tokens, devices=self.trainer.world_size)[self.global_rank]

    def collate(self, examples: Sequence[int] | NDArray[np.int64], store: Examples | None = None) -> Batch:
        """A micro-batch on this device."""
        made = collate(
            self.examples if store is None else store,
            list(examples),
            packed=self.packed,
            shares=self.shares,
            filler=self.filler,
        )
        return made.to(self.device)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Share no beginnings within the context: micro-batches are then as large as any of so many tokens can be."""
        shares, self.shares = self.shares, False
        try:
            yield
        finally:
            self.shares = shares

    def _backward(self, batches: list[NDArray[np.int64]], weight: float, number: int) -> list[dict[str, Tensor]]:
        told = []
        for index, examples in enumerate(batches):
            self.beat(number, 2 * index)
            with self.synchronised_on_last(index == len(batches) - 1):
                batch = self.collate(examples)
                summed, measures = self.loss(batch)
                self.beat(number, 2 * index + 1)  # from here on it may wait for others
                # Strategies average gradients over devices; the step's mean is over tokens, so undo that.
                self.manual_backward(summed * (self.trainer.world_size / max(1, weight)))
            computed = torch.tensor(float(batch.ids.numel()), device=summed.device)
            measures = {"loss": summed, **measures, COMPUTED: computed}
            told.append({name: each.detach() for name, each in measures.items()})
            refuse_nan(summed.detach(), self.examples, examples, number)
        return told

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The phase's loss and measures, in the stage's precision, wherever in the loop they are asked for."""
        with self.trainer.precision_plugin.forward_context():
            found = self.phase.loss(self.model, batch)
        return found if isinstance(found, tuple) else (found, {})

    def synchronised_on_last(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients travel between devices once a step, with its last micro-batch."""
        model = self.trainer.strategy.model
        if not last and isinstance(model, torch.nn.parallel.DistributedDataParallel):
            return model.no_sync()
        reduce_on_last(self.model, last)
        return contextlib.nullcontext()

    def beat(self, number: int, index: int) -> None:
        """This process is so far in a step."""
        self.heartbeat.beat(number, self.turn * TURN + index)

    def _sum_over_devices(self, told: list[dict[str, Tensor]], weight: float, number: int) -> dict[str, float]:
        self.beat(number, 2 * len(told))
        names = list(told[0])
        total = torch.stack([torch.stack([each[name].float() for name in names]) for each in told]).sum(0)
        if self.trainer.world_size > 1:
            dist.all_reduce(total)
        return {name: value / max(1, weight) for name, value in zip(names, total.tolist(), strict=True)}

    def end_learning(self) -> None:
        """Let go of gradients and the optimizer's state: what is saved is read back beside the model, without them."""
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        self.zero_grad(set_to_none=True)
        give_memory_back()

    def _clip(self, step: Step, parameters: list[nn.Parameter] | None = None) -> float:
        if parameters is None:
            parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip or math.inf)
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        if not torch.isfinite(norm):
            raise RunFailed.at(
                f"step {step.number}",
                f"the gradient's norm is {float(norm)}",
                "lower the learning rate, raise trainer.warmup, or use precision: fp32",
            )
        return float(norm)

    @torch.no_grad()
    def evaluate(self, held_out: Examples) -> dict[str, float]:
        """The loss and measures over held-out examples, means over them; memory does not grow with their number."""
        self.model.eval()
        totals: dict[str, Tensor] = {}
        for index, examples in enumerate(self.cut(np.arange(len(held_out), dtype=np.int64), held_out)):
            self.heartbeat.beat(self.progress.step, EVALUATION + index)
            summed, measures = self.loss(self.collate(examples, held_out))
            refuse_nan(summed, held_out, examples, self.progress.step)
            for name, each in {"loss": summed, **measures}.items():
                totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64)) + each.double().cpu()
        total = torch.stack(list(totals.values()))
        if self.trainer.world_size > 1:
            total = total.to(self.device if self.device.type == "cuda" else "cpu")
            dist.all_reduce(total)
        self.model.train()
        weight = max(1, int(held_out.weights.sum()))
        means = {f"eval_{name}": value / weight for name, value in zip(totals, total.tolist(), strict=True)}
        if self.phase.counts_tokens:
            means["eval_perplexity"] = math.exp(min(means["eval_loss"], 80.0))
        means.update(self.phase.measures(means, held_out))
        return means


class Steps:
    """The steps that are still to do, for Lightning's loop."""

    def __init__(self, plan: Plan, after: int) -> None:
        self.plan = plan
        self.after = after

    def __iter__(self) -> Iterator[Step]:
        return self.plan.iterate(self.after)

    def __len__(self) -> int:
        # Over nothing, Lightning would start no loop, and the last checkpoint would never be restored.
        return max(1, len(self.plan) - self.after)


def schedule(settings: Trainer, step: int, steps: int) -> float:
    """The share of the peak learning rate at a step (from 1 to `steps`): linear warm-up, then the recipe's schedule.

    Cosine as in Loshchilov & Hutter 2017 (SGDR), equation 5, without restarts. Warm-up, stable, decay (wsd) as in Hu et
    al. 2024 (MiniCPM), section 4.2, falling as 1 - sqrt(share of the decay done) (Hägele et al. 2024).
    """
    warmup = math.ceil(settings.warmup * steps) if settings.schedule != "constant" or settings.warmup else 0
    if step <= warmup:
        return step / warmup
    stable = steps - math.ceil(settings.decay * steps) if settings.schedule == "wsd" else warmup
    if settings.schedule == "constant" or step <= stable:
        return 1.0
    begin = max(warmup, stable)
    done = (step - begin) / max(1, steps - begin + 1)
    falls = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "wsd": 1 - math.sqrt(done)}
    fall = falls[settings.schedule]
    return settings.final_learning_rate + (1 - settings.final_learning_rate) * fall


def refuse_nan(loss: Tensor, store: Examples, examples: NDArray[np.int64], number: int) -> None:
    """Raises RunFailed, naming the rows, when their loss is not finite."""
    if not torch.isfinite(loss):
        places = [store.place(int(index)) for index in examples]
        raise RunFailed.at(
            f"step {number}",
            f"the loss of these rows is {float(loss)}: {', '.join(places[:20])}",
            "look at these rows (tutelage data show), lower the learning rate, or use precision: fp32",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error).lower()
    return "out of memory" in words or "can't allocate memory" in words or "cannot allocate memory" in words


def _step_seed(seed: int, step: int, rank: int, turn: int) -> int:
    """Dropout depends on the step, not on what ran before it: a resumed run draws the same numbers."""
    return int(np.random.SeedSequence([seed, step, rank, turn]).generate_state(1, np.uint64)[0] >> 1)
