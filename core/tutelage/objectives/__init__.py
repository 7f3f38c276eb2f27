"""Losses and estimators of alignment, as plain functions of tensors.

One convention holds for all. Values of tokens, of answers or of pairs are flat vectors: only what counts is in them,
nothing is padded and there are no masks. Which sequence a token belongs to is said by a vector `sequence` (tokens,) of
indices from 0 (and which ranking an answer belongs to by `group` (answers,)). The items of one sequence lie next to
each other, in order; the number of sequences is passed along, so that one without items still counts. `ragged` makes
such vectors from offsets and sums over them. Padded tensors fit by indexing with their mask: `values[mask]`, with
`mask.nonzero()[:, 0]` as `sequence`.

Losses come one per item, in float32, neither summed nor averaged: whoever calls them sums them over a micro-batch and
divides by what the whole step counts for, so that micro-batches and devices change nothing.
"""
