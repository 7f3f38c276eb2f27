"""The model card of an artifact: what it is, how plain libraries load it, how it was made."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tutelage._yaml import dump
from tutelage.report.blocks import Block, Code, Heading, Paragraph, Table
from tutelage.runs.words import number

if TYPE_CHECKING:
    from tutelage.runs.folder import RunRecord, StageRecord

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

_LOAD = {
    "adapter": """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
""",
    "model": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
""",
    "reward_adapter": """from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

model = AutoPeftModelForSequenceClassification.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
""",
    "reward_model": """from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
""",
}


def model_card(
    record: RunRecord,
    stage: StageRecord,
    recipe: dict[str, Any],
    *,
    kind: str = "",
    metrics: dict[str, float] | None = None,
) -> str:
    """README.md for an artifact's folder.

    `recipe` is the resolved one, as plain data. `kind` and `metrics` stand for the stage's own where the record does
    not have them yet, as while the artifact is being saved.
    """
    kind = kind or stage.kind
    figures = metrics or stage.metrics
    settings: dict[str, Any] = next((item for item in recipe["stages"] if item["name"] == stage.name), {})
    blocks: list[Block] = [
        Heading(f"{record.name}: {stage.name}", 1),
        Paragraph(_what(kind, stage, str(recipe["model"]))),
    ]
    if kind in _LOAD:
        blocks += [Heading("Loading it", 2), Code(_LOAD[kind], "python")]
    blocks += [Heading("How it was made", 2), Code(dump(settings), "yaml")]
    sources = record.data.get(stage.name, {})
    if sources:
        rows = [[source, fingerprint] for source, fingerprint in sources.items()]
        blocks += [Heading("Data", 2), Table(rows, ["source", "fingerprint"])]
    if figures:
        rows = [[name, number(value)] for name, value in figures.items()]
        blocks += [Heading("Figures", 2), Table(rows, ["metric", "value"])]
    blocks += [
        Heading("Limits", 2),
        Paragraph(
            "Nothing was measured beyond the figures given here. Licence and limits of the base model and of the data "
            "hold for this one too."
        ),
        Heading("Versions", 2),
        Table([[name, version] for name, version in {"tutelage": record.tutelage, **record.versions}.items()]),
    ]
    return _front_matter(kind, stage, str(recipe["model"])) + "\n\n".join(block.markdown() for block in blocks) + "\n"


def _what(kind: str, stage: StageRecord, base: str) -> str:
    thing = "An adapter for" if kind.endswith("adapter") else "A model made from"
    scores = " It gives a score to an answer, which is read at the answer's last token." if "reward" in kind else ""
    return f"{thing} {base}, by {stage.phase} with {stage.adapter}.{scores}"


def _front_matter(kind: str, stage: StageRecord, base: str) -> str:
    """What the hub reads; a base that is no hub name is left out, as the hub would refuse it."""
    facts: dict[str, Any] = {"library_name": "peft" if kind.endswith("adapter") else "transformers"}
    if _HUB_NAME.fullmatch(base):
        facts["base_model"] = base
    facts["pipeline_tag"] = "text-classification" if "reward" in kind else "text-generation"
    facts["tags"] = ["tutelage", stage.phase, stage.adapter]
    return f"---\n{dump(facts)}---\n\n"
