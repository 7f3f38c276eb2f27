"""People's rankings of answers: which questions they get, what they said, how far they agree, and what it makes."""
