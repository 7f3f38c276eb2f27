"""Log-probabilities under the model that a stage starts from, computed once and kept in the stage's folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from tutelage.data.batches import Examples
from tutelage.data.rendering import Tokens
from tutelage.engine.forward import sequence_log_probabilities
from tutelage.engine.heartbeat import EVALUATION

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tutelage.engine.learner import Learner


class Referenced:
    """Examples whose values have one more column: each sequence's log-probability under the reference."""

    def __init__(self, examples: Examples, log_probabilities: NDArray[np.float32]) -> None:
        self._examples = examples
        self._log_probabilities = log_probabilities
        self._starts = _starts(examples)
        self.lengths = examples.lengths
        self.weights = examples.weights

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Tokens:
        tokens = self._examples[index]
        known = self._log_probabilities[self._starts[index] : self._starts[index + 1], None]
        values = known if tokens.values is None else np.concatenate([tokens.values, known], axis=1)
        return Tokens(tokens.ids, tokens.learn, tokens.lengths, values)

    def place(self, index: int) -> str:
        """Where an example comes from, for messages."""
        return self._examples.place(index)


def referenced(learner: Learner, examples: Examples, used: NDArray[np.int64], file: Path) -> Referenced:
    """The examples with log-probabilities under the model as it is now, adapters off, or with those kept in `file`.

    Args:
        used: the examples that will be asked for; others are given NaN.
    """
    if file.is_file():
        return Referenced(examples, np.load(file, allow_pickle=False))
    found = _compute(learner, examples, used)
    if learner.trainer.is_global_zero:
        beside = file.with_name(f".{file.name}")
        with beside.open("wb") as output:
            np.save(output, found, allow_pickle=False)
            output.flush()
            os.fsync(output.fileno())
        beside.rename(file)
    return Referenced(examples, found)


@torch.no_grad()
def _compute(learner: Learner, examples: Examples, used: NDArray[np.int64]) -> NDArray[np.float32]:
    starts = _starts(examples)
    found = torch.zeros(int(starts[-1]), dtype=torch.float64)
    learner.model.eval()
    for index, share in enumerate(learner.cut(used, examples)):
        learner.heartbeat.beat(learner.progress.step, EVALUATION + index)
        batch = learner.collate(share, examples)
        with _adapters_off(learner.model), learner.trainer.precision_plugin.forward_context():
            each, _ = sequence_log_probabilities(learner.model, batch)
        where = [np.arange(starts[example], starts[example + 1]) for example in share]
        if where:
            found[np.concatenate(where)] = each.double().cpu()
    learner.model.train()
    if learner.trainer.world_size > 1:
        found = found.to(learner.device if learner.device.type == "cuda" else "cpu")
        dist.all_reduce(found)
    whole = found.cpu().numpy().astype(np.float32)
    unused = np.ones(len(examples), dtype=bool)
    unused[used] = False
    whole[np.repeat(unused, np.diff(starts))] = np.nan
    return whole


def _adapters_off(model: Any) -> contextlib.AbstractContextManager[Any]:
    return model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()


def _starts(examples: Examples) -> NDArray[np.int64]:
    """Where each example's sequences start among all: (examples + 1,)."""
    counts = [len(examples[index].lengths) for index in range(len(examples))]
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
