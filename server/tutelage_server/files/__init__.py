"""Files: streamed up and down, resumable, with their hashes."""
