"""From examples to what a model computes: which examples make up each optimizer step, and how they are laid out.

The examples of a step depend on the data, the seed and `tokens_per_step` alone. How a step is cut into micro-batches,
and over how many devices, changes speed and memory but never the step's loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from tutelage.data.rendering import Tokens


class Examples(Protocol):
    """What the plan needs of a store of tokenised examples."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per example."""
        ...

    @property
    def weights(self) -> NDArray[Any]:
        """Learnt tokens per example."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tokens: ...

    def place(self, index: int) -> str:
        """Where an example comes from, for messages."""
        ...


@dataclass(frozen=True)
class Step:
    """One optimizer step: its number (from 1), its epoch as a fraction done, and the examples in it."""

    number: int
    epoch: float
    examples: NDArray[np.int64]


class Plan:
    """All optimizer steps of a training stage, from the first to the last, over all epochs.

    An epoch is a seeded permutation of the examples, cut into steps of nearly equal numbers of tokens, each close to
    `tokens_per_step`; no step mixes two epochs, so none is much smaller than the others.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        *,
        tokens_per_step: int,
        epochs: float | None,
        max_steps: int | None,
        seed: int,
    ) -> None:
        self.lengths = lengths
        self.tokens_per_step = tokens_per_step
        self.seed = seed
        self._bounds: list[NDArray[np.int64]] = []
        self._first: list[int] = []
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self.steps = 0
        self.tokens = 0
        "Planned, over all steps."
        epoch = 0
        while (self.steps < max_steps) if max_steps is not None else (epoch < (epochs or 0)):
            share = 1.0 if max_steps is not None else min(1.0, (epochs or 0) - epoch)
            self._add_epoch(epoch, share, max_steps)
            epoch += 1
        self.epochs = self[self.steps].epoch if self.steps else 0.0

    def _add_epoch(self, epoch: int, share: float, max_steps: int | None) -> None:
        order = self._permutation(epoch)
        order = order[: max(1, round(share * len(order)))]
        ends = np.cumsum(self.lengths[order])
        steps = min(len(order), max(1, round(int(ends[-1]) / self.tokens_per_step)))
        cuts = np.searchsorted(ends, np.arange(1, steps) * (ends[-1] / steps), side="left") + 1
        bounds = np.unique(np.concatenate([[0], cuts, [len(order)]])).astype(np.int64)
        if max_steps is not None:
            bounds = bounds[: max_steps - self.steps + 1]
        self._first.append(self.steps)
        self._bounds.append(bounds)
        self.steps += len(bounds) - 1
        self.tokens += int(ends[bounds[-1] - 1])

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._order = (epoch, generator.permutation(len(self.lengths)).astype(np.int64))
        return self._order[1]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> Step:
        """The step of this number, from 1."""
        epoch = int(np.searchsorted(self._first, number - 1, side="right")) - 1
        bounds = self._bounds[epoch]
        within = number - 1 - self._first[epoch]
        order = self._permutation(epoch)
        done = epoch + bounds[within + 1] / len(order)
        return Step(number, float(done), order[bounds[within] : bounds[within + 1]])

    def iterate(self, after: int) -> Iterator[Step]:
        """The steps that follow step number `after`."""
        for number in range(after + 1, self.steps + 1):
            yield self[number]

    def epoch_ends(self) -> set[int]:
        """The numbers of the steps that end an epoch, the last step included."""
        return {first + len(bounds) - 1 for first, bounds in zip(self._first, self._bounds, strict=True)}


def split_packed(
    examples: NDArray[np.int64], lengths: NDArray[np.int64], *, tokens: int, devices: int
) -> list[list[NDArray[np.int64]]]:
    """Share a step's examples among devices as packed micro-batches of about `tokens` tokens each.

    Longest first, each to the micro-batch with the fewest tokens: all are nearly equal, so no device waits long.

    Returns:
        for each device, the same number of micro-batches (some may be empty).
    """
    total = int(lengths[examples].sum())
    count = devices * max(1, -(-total // (tokens * devices)))
    loads = np.zeros(count, dtype=np.int64)
    bins: list[list[int]] = [[] for _ in range(count)]
    for index in examples[np.argsort(-lengths[examples], kind="stable")]:
        lightest = int(np.argmin(loads))
        bins[lightest].append(int(index))
        loads[lightest] += lengths[index]
    return _deal([np.array(content, dtype=np.int64) for content in bins], devices)


def split_padded(
    examples: NDArray[np.int64], lengths: NDArray[np.int64], *, tokens: int, devices: int
) -> list[list[NDArray[np.int64]]]:
    """Like `split_packed` for rows of one example each: examples of like length together, to pad little."""
    batches: list[list[int]] = []
    width = 0
    for index in examples[np.argsort(-lengths[examples], kind="stable")]:
        if not batches or (len(batches[-1]) + 1) * width > tokens:
            batches.append([])
            width = int(lengths[index])
        batches[-1].append(int(index))
    while len(batches) % devices:
        widest = max(batches, key=len)
        if len(widest) < 2:
            batches.append([])
            continue
        half = len(widest) // 2
        position = batches.index(widest)
        batches[position : position + 1] = [widest[:half], widest[half:]]
    return _deal([np.array(content, dtype=np.int64) for content in batches], devices)


def _deal(batches: list[NDArray[np.int64]], devices: int) -> list[list[NDArray[np.int64]]]:
    return [batches[device::devices] for device in range(devices)]


@dataclass
class Batch:
    """A micro-batch on a device.

    Packed, it is one row in which examples follow each other: `ids` and `positions` are (1, tokens), `positions` start
    again at 0 with each example, and `bounds` (examples + 1,) are where examples start and end. Padded, it is one row
    an example: `ids` (examples, longest), `attention_mask` the same shape, `bounds` None.

    `targets` (same shape as `ids`) marks the tokens that are learnt; the first token of a sequence never is.

    Where examples hold several sequences, each is laid out as if it were an example: `groups` (examples + 1,) says
    where each example's sequences start among all, and `values` (sequences, columns) holds what the phase says of each.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    bounds: torch.Tensor | None
    attention_mask: torch.Tensor | None
    groups: torch.Tensor | None = None
    values: torch.Tensor | None = None
    sequences: int = 0
    "How many sequences there are; 0 where a device has nothing to do but take part."

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if hasattr(value := getattr(self, field.name), "to")
        }
        return replace(self, **moved)


def collate(store: Examples, examples: Sequence[int], *, packed: bool, filler: int) -> Batch:
    """Lay examples out as a batch. `filler` pads rows, and is the one token of an empty batch; it is never learnt."""
    import torch

    chosen = [store[int(index)] for index in examples]
    if not chosen:
        return _nothing(packed, filler)
    batch = _packed(chosen) if packed else _padded(chosen, filler)
    counts = [len(item.lengths) for item in chosen]
    batch.sequences = sum(counts)
    if chosen[0].values is not None:
        batch.groups = torch.tensor(np.concatenate([[0], np.cumsum(counts)]))
        batch.values = torch.from_numpy(np.concatenate([np.asarray(item.values) for item in chosen]))
    return batch


def _nothing(packed: bool, filler: int) -> Batch:
    import torch

    one = torch.full((1, 1), filler)
    nothing = torch.zeros(1, 1, dtype=torch.bool)
    bounds = torch.tensor([0, 1], dtype=torch.int32) if packed else None
    mask = None if packed else torch.ones(1, 1, dtype=torch.long)
    return Batch(one, torch.zeros(1, 1, dtype=torch.long), nothing, bounds, mask)


def _packed(examples: list[Tokens]) -> Batch:
    import torch

    lengths = np.concatenate([item.lengths for item in examples])
    ids = torch.from_numpy(np.concatenate([item.ids for item in examples]).astype(np.int64))[None]
    learn = torch.from_numpy(np.concatenate([item.targets for item in examples]))[None]
    positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None]
    bounds = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32)
    return Batch(ids, positions, learn, bounds, None)


def _padded(examples: list[Tokens], filler: int) -> Batch:
    import torch

    rows = [row for item in examples for row in item.sequences()]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), filler)
    learn = torch.zeros(len(rows), width, dtype=torch.bool)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, item in enumerate(rows):
        length = len(item.ids)
        ids[row, :length] = torch.from_numpy(item.ids.astype(np.int64))
        learn[row, :length] = torch.from_numpy(item.targets)
        mask[row, :length] = 1
    positions = torch.arange(width).expand(len(rows), width).contiguous()
    return Batch(ids, positions, learn, None, mask)
