"""Documentation that is written by a program says what the program says now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_reference_of_recipes_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    make_reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_reference)
    told = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert told == make_reference.page(), "write it again: python docs/make_reference.py"
