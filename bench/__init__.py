"""Measurements of Tutelage beside what people would use instead: `python -m bench --help`, docs/benchmarks.md."""
