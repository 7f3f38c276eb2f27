"""Examples as a person can check them: the text that the model sees, with what is learnt told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.text import Text

from tutelage.data.rendering import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEARNT, SEEN = "bold green", "dim"


def segments(tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """The example as stretches of text, each with whether it is learnt; special tokens are written out."""
    changes = np.flatnonzero(np.diff(tokens.learn)) + 1
    return [
        (_decode(tokenizer, ids.tolist()), bool(learn[0]))
        for ids, learn in zip(np.split(tokens.ids, changes), np.split(tokens.learn, changes), strict=True)
        if len(ids)
    ]


def print_examples(examples: list[tuple[str, Tokens]], tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    """Print examples, each given with its place. Where there is no colour, ⟦ and ⟧ stand around what is learnt."""
    plain = console.color_system is None
    for place, tokens in examples:
        console.rule(f"{place}: {len(tokens):,} tokens, {tokens.weight:,} learnt", align="left")
        text = Text()
        for piece, learnt in segments(tokens, tokenizer):
            text.append(f"⟦{piece}⟧" if plain and learnt else piece, style=LEARNT if learnt else SEEN)
        console.print(text, soft_wrap=True)
    legend = "⟦learnt⟧ seen" if plain else Text.assemble(("learnt", LEARNT), " ", ("seen", SEEN))
    console.print(legend, markup=False)


def as_json(examples: list[tuple[str, Tokens]], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The same for a script: place, counts, segments of text, and every token's id and whether it is learnt."""
    return [
        {
            "place": place,
            "tokens": len(tokens),
            "learnt": tokens.weight,
            "segments": [{"text": text, "learnt": learnt} for text, learnt in segments(tokens, tokenizer)],
            "ids": tokens.ids.tolist(),
            "learn": tokens.learn.tolist(),
        }
        for place, tokens in examples
    ]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
