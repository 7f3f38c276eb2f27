"""From examples to what a model computes: which examples make up each optimizer step, and how they are laid out.

The examples of a step depend on the data, the seed and `tokens_per_step` alone. How a step is cut into micro-batches,
and over how many devices, changes speed and memory but never the step's loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tutelage.data.columns import chunks_of
from tutelage.data.sharing import prefix_tree

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
    `tokens_per_step`; no step mixes two epochs, so none is much smaller than the others. The permutation is all that is
    held for each example: 4 bytes.
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
        self._order: tuple[int, NDArray[np.integer]] | None = None
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
        tokens = self._tokens(order)
        steps = min(len(order), max(1, round(tokens / self.tokens_per_step)))
        cuts = self._cuts(order, np.arange(1, steps) * (tokens / steps))
        bounds = np.unique(np.concatenate([[0], *cuts, [len(order)]])).astype(np.int64)
        if max_steps is not None:
            bounds = bounds[: max_steps - self.steps + 1]
        self._first.append(self.steps)
        self._bounds.append(bounds)
        self.steps += len(bounds) - 1
        self.tokens += self._tokens(order[: bounds[-1]])

    def _tokens(self, order: NDArray[np.integer]) -> int:
        return sum(int(self.lengths[chunk].sum()) for chunk in chunks_of(order))

    def _cuts(self, order: NDArray[np.integer], wanted: NDArray[np.floating]) -> Iterator[NDArray[np.int64]]:
        """How many of the examples it takes until their tokens are at least as many as each of `wanted`."""
        tokens = examples = 0
        for chunk in chunks_of(order):
            ends = tokens + np.cumsum(self.lengths[chunk])
            here = slice(*np.searchsorted(wanted, [tokens, ends[-1]], side="right"))
            yield examples + np.searchsorted(ends, wanted[here], side="left") + 1
            tokens, examples = int(ends[-1]), examples + len(chunk)

    def _permutation(self, epoch: int) -> NDArray[np.integer]:
        if self._order is None or self._order[0] != epoch:
            self._order = None  # room for the next
            small = len(self.lengths) < 2**31
            order: NDArray[np.integer] = np.arange(len(self.lengths), dtype=np.int32 if small else np.int64)
            np.random.default_rng([self.seed, epoch]).shuffle(order)
            self._order = (epoch, order)
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
        return Step(number, float(done), order[bounds[within] : bounds[within + 1]].astype(np.int64))

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

    Packed, it is one row in which sequences follow each other as segments: `ids` and `positions` are (1, tokens),
    `positions` count within a sequence, and `bounds` (segments + 1,) are where segments start and end. A segment is a
    sequence, or what it has to itself: then `keys` says where what a segment sees lies in the row, segment after
    segment, `key_bounds` (segments + 1,) where in `keys` each one's begins and ends, and the first `shared` segments
    are what sequences have in common. Padded, it is one row a sequence: `ids` (sequences, longest), `attention_mask`
    the same shape, `bounds` None.

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
    keys: torch.Tensor | None = None
    key_bounds: torch.Tensor | None = None
    shared: int = 0

    @property
    def sequence_bounds(self) -> torch.Tensor:
        """Where, in a packed row, what each sequence has to itself starts and ends: (sequences + 1,)."""
        assert self.bounds is not None
        return self.bounds[self.shared :]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if hasattr(value := getattr(self, field.name), "to")
        }
        return replace(self, **moved)


def collate(store: Examples, examples: Sequence[int], *, packed: bool, filler: int, shares: bool = False) -> Batch:
    """Lay examples out as a batch.

    Args:
        filler: pads rows, and is the one token of an empty batch; it is never learnt.
        shares: whether a packed row holds but once what sequences have in common at their beginning.
    """
    import torch

    chosen = [store[int(index)] for index in examples]
    if not chosen:
        return _nothing(packed, filler)
    batch = _padded(chosen, filler) if not packed else (shares and _shared(chosen)) or _packed(chosen)
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


def _shared(examples: list[Tokens]) -> Batch | None:
    """One row in which common beginnings stand once; None where there are none worth it."""
    import torch

    rows = [row for item in examples for row in item.sequences()]
    targets = [row.targets for row in rows]
    # What predicts a learnt token stays with the sequence, as others may go on otherwise from the same beginning.
    sharable = [int(learn.argmax()) - 1 if learn.any() else len(learn) - 1 for learn in targets]
    tree = prefix_tree([row.ids for row in rows], sharable)
    if not tree.shared:
        return None
    segments = [*tree.shared, *tree.own]
    starts = np.cumsum([0, *(each.end - each.start for each in segments)])
    seen: list[NDArray[np.int64]] = []
    for each, start, end in zip(segments, starts, starts[1:], strict=False):
        before = seen[each.parent] if each.parent >= 0 else np.zeros(0, dtype=np.int64)
        seen.append(np.concatenate([before, np.arange(start, end)]))
    ids = np.concatenate([rows[each.sequence].ids[each.start : each.end] for each in segments])
    learn = np.concatenate([targets[each.sequence][each.start : each.end] for each in segments])
    positions = np.concatenate([np.arange(each.start, each.end) for each in segments])
    return Batch(
        torch.from_numpy(ids.astype(np.int64))[None],
        torch.from_numpy(positions)[None],
        torch.from_numpy(learn)[None],
        torch.tensor(starts, dtype=torch.int32),
        None,
        keys=torch.from_numpy(np.concatenate(seen)),
        key_bounds=torch.tensor(np.cumsum([0, *map(len, seen)]), dtype=torch.int32),
        shared=len(tree.shared),
    )


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
