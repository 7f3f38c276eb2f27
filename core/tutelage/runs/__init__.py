"""Run folders: what a run knew, what it did and what it made. Nothing here imports torch."""
