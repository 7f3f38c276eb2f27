"""A dataset to review, with the built-in checks registered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TOPICS = ("bread", "violins", "glaciers", "ferries", "beetles", "mortgages")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """240 rows on six topics; rows 11 and 12 repeat row 10, and row 20 refuses."""
    path = tmp_path / "data.jsonl"
    rows = []
    for number in range(1, 241):
        topic = TOPICS[number % 6]
        rows.append(
            {
                "prompt": f"Tell me fact {number} about {topic} and {topic} again",
                "completion": f"Fact {number}: {topic} are old.",
            }
        )
    rows[10] = rows[11] = rows[9]
    rows[19] = {"prompt": "Tell me of beetles", "completion": "I'm sorry, but I can't help with that."}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
