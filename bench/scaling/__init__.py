"""What training costs from 1 to 1,024 GPUs: a model of step time and memory, held against published measurements.

    python -m bench.scaling [--out DIR] [--json]

docs/scaling.md says what the parts assume and how far off they are.
"""
