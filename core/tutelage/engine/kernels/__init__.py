"""What a training step computes most, in fewer passes over memory than the libraries take: each equals the plain way.

Nothing here asks for a model by name: what a kernel needs is looked for on the model, and where it lacks, the plain
way is taken. `tests/core/engine/test_kernels.py` holds each against that way.
"""
