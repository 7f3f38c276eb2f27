"""What the project ships to train on: written by its generator alone, and held-out notes that training never shows."""

from __future__ import annotations

import datetime
import difflib
import importlib.util
import json
import re
from pathlib import Path

import pytest

from tutelage.config import read_file
from tutelage_advisor import advise

DEMO = Path(__file__).parents[2] / "examples" / "demo"
KEYS = ["payee", "amount", "currency", "date", "category"]


def rows(name: str) -> list[tuple[str, str]]:
    """(note, record) of every row."""
    lines = (DEMO / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [json.loads(line)["messages"] for line in lines]
    assert all([turn["role"] for turn in row] == ["system", "user", "assistant"] for row in messages)
    return [(row[1]["content"], row[2]["content"]) for row in messages]


def test_generator_writes_the_files_that_are_shipped(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_data", DEMO / "make_data.py")
    make_data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_data)
    monkeypatch.setattr(make_data, "HERE", tmp_path)
    make_data.main()
    for name in ("train.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_every_record_is_strict_and_says_what_its_note_says(name):
    for note, record in rows(name):
        pairs = json.loads(record, object_pairs_hook=list)
        assert [key for key, _ in pairs] == KEYS
        values = dict(pairs)
        assert values["payee"] in note
        assert f"{values['amount']:.2f}".removesuffix(".00") in note
        date = datetime.date.fromisoformat(values["date"])
        assert str(date.year) in note
        assert re.search(rf"\b{date.day}\b", note)
        assert f"{date:%b}" in note


def test_held_out_payees_amounts_dates_and_notes_are_new():
    train, held_out = rows("train"), rows("held_out")
    known = [json.loads(record) for _, record in train]
    for note, record in held_out:
        values = json.loads(record)
        for key in ("payee", "amount", "date"):
            assert values[key] not in {row[key] for row in known}
        words = note.split()
        alike = max(difflib.SequenceMatcher(None, words, other.split(), autojunk=False).ratio() for other, _ in train)
        assert alike <= 0.85, note


def test_notes_do_not_repeat():
    notes = [note for name in ("train", "held_out") for note, _ in rows(name)]
    assert len(set(notes)) == len(notes)


def test_the_situation_that_the_demo_asks_about_is_its_own():
    situation = read_file(DEMO / "situation.yaml")
    assert situation["examples"] == len(rows("train"))
    advice = advise(situation, draws=0)
    assert advice.approach == "fine-tune"
    assert advice.recipe["stages"][0]["adapter"]["kind"] == "lora"
