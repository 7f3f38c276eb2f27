"""Jobs: their states, events, schedule, and what follows them."""
