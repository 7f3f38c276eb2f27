"""What an unmodified OpenAI client calls."""
