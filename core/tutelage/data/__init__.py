"""Rows of a dataset become records, records become tokens with a mask of what is learnt, and those lie in a store.

`reading` finds files and yields rows; a `DataFormat` plugin turns a row into a record; `rendering` makes tokens of it;
`store` keeps them memory-mapped; `preparing` does all of this once, and `showing` lets a person look.
"""
