"""The rehearsal: before the first real step, try what could fail at the end.

Two optimizer steps and an evaluation on the longest rows, a real save read back, and the room on disk. Steps are taken
with a learning rate of 0, so weights stay as they are with no second copy of them; the optimizer's state is dropped
afterwards, and every real step seeds its own random numbers. Where this would cost more than 3% of the planned work
it uses fewer rows and steps, and at last none.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tutelage.data.columns import chunks_of
from tutelage.engine.checkpoints import LEARNT, is_sharded, learnt_weights, unwritable, whole_weights
from tutelage.engine.devices import peak_memory_gib
from tutelage.errors import RunFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.optim import Optimizer

    from tutelage.adapter import Adapter
    from tutelage.data.batches import Examples
    from tutelage.engine.learner import Learner

LARGEST_SHARE = 0.02
"Of the planned tokens, for the steps; as many may be evaluated, at about a third of a step's cost."


def rehearse(
    learner: Learner, adapter: Adapter, held_out: Examples | None, folder: Path, *, keep: int
) -> dict[str, Any]:
    """Try a run's steps, evaluation and save; `folder` is where its checkpoints will lie.

    Returns:
        what the event `rehearsal` tells.
    Raises:
        RunFailed: when something that would fail at the end fails now.
    """
    started = time.perf_counter()
    random_state = torch.get_rng_state()
    require_room(learner, folder, keep)
    with learner.apart():
        steps, tokens = _try_steps(learner)
        evaluated = _try_evaluation(learner, held_out) if held_out is not None and steps else 0
    try_save(learner, adapter, folder)
    torch.set_rng_state(random_state)
    return {
        "steps": steps,
        "tokens": tokens,
        "evaluated_tokens": evaluated,
        "seconds": round(time.perf_counter() - started, 3),
        "peak_memory_gib": round(peak_memory_gib(learner.device.type), 3),
    }


def longest_rows(examples: Examples, tokens: int) -> NDArray[np.int64]:
    """The longest examples that together have at most `tokens` tokens."""
    longest = np.zeros(0, dtype=np.int64)
    for chunk in chunks_of(range(len(examples))):  # memory must not grow with the examples
        longest = np.concatenate([longest, chunk])
        longest = longest[np.argsort(-examples.lengths[longest], kind="stable")]
        sums = np.cumsum(examples.lengths[longest])
        longest = longest[: np.searchsorted(sums, tokens, side="right") + 1]  # and the first that is too much
    return longest[np.cumsum(examples.lengths[longest]) <= tokens]


def _try_steps(learner: Learner) -> tuple[int, int]:
    """Returns the number of steps taken and the tokens computed."""
    budget = LARGEST_SHARE * learner.plan.tokens
    world = learner.trainer.world_size
    for steps in (2, 1):
        most = min(learner.progress.micro_batch_tokens * world, learner.settings.tokens_per_step)
        most = max(most, int(learner.lengths.max()))
        rows = longest_rows(learner.examples, min(int(budget / steps), most))
        if len(rows):
            break
    else:
        return 0, 0
    optimizer = learner.trainer.optimizers[0]
    weight = int(learner.weights[rows].sum())
    for _ in range(steps):
        learner.accumulate(rows, weight, 0)
        step_without_learning(optimizer)
    optimizer.state.clear()
    return steps, steps * int(learner.lengths[rows].sum())


def step_without_learning(optimizer: Optimizer) -> None:
    """An optimizer step that leaves the weights as they are."""
    groups = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, (rate, decay) in zip(optimizer.param_groups, groups, strict=True):
        group["lr"], group["weight_decay"] = rate, decay


def _try_evaluation(learner: Learner, held_out: Examples) -> int:
    most = max(learner.progress.micro_batch_tokens, int(held_out.lengths.max()))
    rows = longest_rows(held_out, min(int(LARGEST_SHARE * learner.plan.tokens), most))
    if len(rows):
        learner.evaluate(_Part(held_out, rows))
    return int(held_out.lengths[rows].sum())


class _Part:
    """Some examples of a store."""

    def __init__(self, store: Examples, indices: NDArray[np.int64]) -> None:
        self._store = store
        self._indices = indices
        self.lengths = store.lengths[indices]
        self.weights = store.weights[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._store[int(self._indices[index])]

    def place(self, index: int) -> str:
        return self._store.place(int(self._indices[index]))


def require_room(learner: Learner, folder: Path, keep: int) -> None:
    """Raises RunFailed where the disk has no room for the checkpoints and the result."""
    parameters = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
    learnt = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    needed = learnt * 3 * (keep + 1) + learnt  # weights and two moments a checkpoint, one more while it is written
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunFailed.at(
            str(folder),
            f"the checkpoints and the result need {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free",
            "free some room, lower trainer.keep_checkpoints, or put the run elsewhere with --out",
        )


def try_save(learner: Learner, adapter: Adapter, folder: Path) -> None:
    """Write what a checkpoint and the artifact will hold, and read both back."""
    writes = learner.trainer.is_global_zero
    learnt = learnt_weights(learner.model, wanted=writes)
    gathered = None
    if is_sharded(learner.model):
        gathered = learnt if adapter.artifact == "adapter" else whole_weights(learner.model, wanted=writes)
    if not writes:
        return
    place = folder / ".rehearsal"
    try:
        shutil.rmtree(place, ignore_errors=True)  # a process killed inside a rehearsal leaves it
        place.mkdir()
        save_file(learnt, place / LEARNT)
        with safe_open(place / LEARNT, framework="pt") as read:
            differing = [name for name, weight in learnt.items() if not torch.equal(weight, read.get_tensor(name))]
        adapter.save(learner.artifact, place / "artifact", gathered)
        for file in (place / "artifact").glob("*.safetensors"):
            with safe_open(file, framework="pt") as read:
                differing += [name for name in read.keys() if not read.get_tensor(name).isfinite().all()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if differing:
        wrong = f"{differing[0]} was read back from disk with other values"
        raise RunFailed.at(str(folder), wrong, "is the disk sound?")
