"""Flat vectors of items that belong to sequences of unequal lengths."""

from __future__ import annotations

import torch
from torch import Tensor


def index_of(offsets: Tensor) -> Tensor:
    """Which sequence each item belongs to, (items,): sequence i is offsets[i]:offsets[i + 1]. (sequences + 1,)."""
    lengths = offsets[1:] - offsets[:-1]
    return torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)


def lengths_of(sequence: Tensor, sequences: int) -> Tensor:
    """How many items each sequence has, (sequences,) int64, from `sequence` (items,)."""
    return torch.bincount(sequence, minlength=sequences)


def sum_by(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """The sum of `values` (items,) in each sequence, (sequences,); 0 in one without items."""
    return values.new_zeros(sequences).index_add(0, sequence, values)


def mean_by(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """The mean of `values` (items,) in each sequence, (sequences,); 0 in one without items."""
    return sum_by(values, sequence, sequences) / lengths_of(sequence, sequences).clamp(min=1)


def position_in(sequence: Tensor, sequences: int) -> Tensor:
    """The place of each item in its sequence, from 0, (items,)."""
    lengths = lengths_of(sequence, sequences)
    starts = lengths.cumsum(0) - lengths
    return torch.arange(len(sequence), device=sequence.device) - starts[sequence]


def ends_of(sequence: Tensor) -> Tensor:
    """Which items are the last of their sequence, (items,) bool."""
    ends = torch.ones_like(sequence, dtype=torch.bool)
    ends[:-1] = sequence[1:] != sequence[:-1]
    return ends
