"""Writes docs/recipes.md, the reference of all that a recipe can say, from the JSON Schema.

python docs/make_reference.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tutelage_plugins
from tutelage.plugins import Host
from tutelage.schema import recipe_schema

PAGE = Path(__file__).with_name("recipes.md")
INTRODUCTION = """# What a recipe can say

A recipe is a YAML, TOML or JSON file. `phase: sft` is short for `phase: {kind: sft}`, `adapter: lora` for
`adapter: {kind: lora}`, and `data: rows.jsonl` for `data: {train: rows.jsonl}`. `--set stages.NAME.trainer.seed=1`
overrides any field. `tutelage schema` prints the same for machines, with what your own plugins add.

This page is written by `docs/make_reference.py`.
"""
HEADINGS = {
    "Recipe": "The recipe",
    "Stage": "`stages`, each",
    "Data": "`stages.NAME.data`",
    "Source": "`stages.NAME.data.mix`, each",
    "Trainer": "`stages.NAME.trainer`",
    "Tokens": "`tokenizer`",
}


def page() -> str:
    """The page, as the built-in plugins make it."""
    host = Host()
    host.register(tutelage_plugins, "builtin")
    definitions = recipe_schema(host)["$defs"]
    parts = [INTRODUCTION]
    for name, definition in definitions.items():
        kind, _, plugin = name.partition(".")
        heading = HEADINGS.get(name) or f"{kind}: `{plugin}`"
        parts.append(f"## {heading}\n\n{definition.get('description', '')}\n\n{_table(definition)}")
    return "\n".join(parts).replace("\n\n\n", "\n\n")


def _table(definition: dict[str, Any]) -> str:
    fields = {name: field for name, field in definition["properties"].items() if name != "kind"}
    if not fields:
        return ""
    required = definition.get("required", [])
    lines = ["| field | values | default | |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = "required" if name in required else _default(field)
        cells = [f"`{name}`", _values(field), default, field.get("description", "")]
        lines.append("| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(field: dict[str, Any]) -> str:
    default = field.get("default", "")
    return "" if default == "" else f"`{json.dumps(default)}`"


def _values(field: dict[str, Any]) -> str:
    """What a field may hold, in few words."""
    if "$ref" in field:
        return "mapping (below)"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"] if value != "")
    for union in ("anyOf", "oneOf"):
        if union in field:
            choices = [_values(choice) for choice in field[union]]
            return " or ".join(dict.fromkeys(choice for choice in choices if choice))
    kind = field.get("type", "")
    if kind == "array":
        return f"list of {_values(field['items'])}" if isinstance(field.get("items"), dict) else "list"
    if kind in ("integer", "number"):
        return f"{kind}{_bounds(field)}"
    return {"string": "text", "boolean": "true or false", "null": "null", "object": "mapping"}.get(kind, "")


def _bounds(field: dict[str, Any]) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    told = [f"{sign} {field[word]}" for word, sign in words.items() if word in field]
    return f" {', '.join(told)}" if told else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
