"""Constitutions and templates whose requests are short enough for the tiny models' window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from training import WORDS


def write_constitution(path: Path, count: int = 3) -> Path:
    """Principles named p0, p1 …, each with requests of its own."""
    principles = [
        {
            "id": f"p{number}",
            "text": f"Principle {WORDS[number]}.",
            "critique": f"{WORDS[number]} wrong?",
            "revision": f"{WORDS[number]} again.",
            "preference": f"{WORDS[number]} better?",
        }
        for number in range(count)
    ]
    path.write_text(yaml.safe_dump({"name": "tiny", "principles": principles}))
    return path


def write_revising(path: Path, examples: int = 1) -> Path:
    """A template for critique_revision."""
    example = {
        "prompt": "a cat", "answer": "sat", "critique_request": "wrong?", "critique": "on", "revision_request": "again.",
        "revision": "a mat",
    }  # fmt: skip
    words = {"critique": "{prompt}|{answer}|{request}", "revision": "{prompt}|{answer}|{critique}|{request}"}
    path.write_text(yaml.safe_dump({**words, "examples": [example] * examples}))
    return path


def write_asking(path: Path) -> Path:
    """A template for ai_feedback."""
    words = {"question": "{prompt} (A) {first} (B) {second} {request}", "answer": "It is", "reasoning": "So "}
    path.write_text(yaml.safe_dump(words))
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_comparisons(path: Path, rows: int = 6, answers: int = 2) -> Path:
    """Prompts with answers, as the phase comparisons leaves them."""
    made = [
        {"prompt": f"{WORDS[row]} {row}", "answers": [f"{WORDS[row + 1]} {WORDS[number]}" for number in range(answers)]}
        for row in range(rows)
    ]
    return write_rows(path, made)


def stage(name: str, phase: dict[str, Any], data: Path | str, **trainer: Any) -> dict[str, Any]:
    """A stage that makes data, exact in float32."""
    settings = {"precision": "fp32", "accelerator": "cpu", "devices": 1, **trainer}
    return {"name": name, "phase": phase, "data": str(data), "trainer": settings}
