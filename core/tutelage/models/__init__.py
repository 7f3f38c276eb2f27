"""Finding, loading, saving, verifying, merging and running models."""
