"""Draws what a model writes in answer to dialogues that must fit its window."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tutelage.data.problems import RowProblems
from tutelage.data.rendering import Renderer
from tutelage.errors import TutelageError
from tutelage.models import sampling
from tutelage.models.prompts import soft_tokens
from tutelage_plugins.constitutions.revising import Messages

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


class Window:
    """What a model can see: a dialogue, and what is written after it.

    Args:
        size: in tokens; None where there is no end.
    Raises:
        TutelageError: when the model's tokenizer can't be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int | None) -> None:
        self.size = sys.maxsize if size is None else size
        try:
            self._renderer = Renderer(tokenizer)
        except ValueError as error:
            raise TutelageError.at("tokenizer", str(error)) from None

    def ids(self, dialogue: Messages | str) -> list[int]:
        """A dialogue as tokens, up to where the assistant begins.

        Raises:
            ValueError: with a sentence, when the chat template can't put it.
        """
        return self._renderer.prompted(dialogue)

    def fitting(self, dialogues: Sequence[tuple[str, Messages | str]], new: int, allowed: float) -> list[int]:
        """Which dialogues, each with its place, leave room for `new` tokens.

        Args:
            allowed: the share of them that may be lost.
        Raises:
            TutelageError: for those that can't be put to the model, and for those too long where they are too many.
        """
        wrong, long = RowProblems(), RowProblems()
        fit = []
        for number, (place, dialogue) in enumerate(dialogues):
            try:
                length = len(self.ids(dialogue))
            except ValueError as error:
                wrong.add(place, str(error))
                continue
            if length + new <= self.size:
                fit.append(number)
            else:
                said = f"its {length:,} tokens and {new:,} new ones are more than the model's window of {self.size:,}"
                long.add(place, said, "shorten it, draw fewer new tokens, or raise data.allow_loss to leave it out")
        wrong.raise_any("data")
        if not fit or long.count > allowed * len(dialogues):
            long.raise_any("data")
        return fit

    def fitted(self, dialogue: Callable[[int], Messages], parts: int, new: int) -> list[int] | None:
        """The tokens of a dialogue that leave room for `new` ones, with as many of its optional parts as possible.

        Args:
            dialogue: gives it without the first so many of its `parts`.
        Returns:
            None where even the least does not fit.
        """
        for skip in range(parts + 1):
            ids = self.ids(dialogue(skip))
            if len(ids) + new <= self.size:
                return ids
        return None


class Writer:
    """A model that writes in answer to dialogues.

    Raises:
        TutelageError: when the model's tokenizer can't be used.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float,
        top_p: float,
        batch_size: int,
    ) -> None:
        config: Any = model.config
        seen = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.model = model
        self.tokenizer = tokenizer
        self.window = Window(tokenizer, seen - soft_tokens(model) if isinstance(seen, int) else None)
        self._drawing: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "batch_size": batch_size}

    def draw(self, dialogues: list[list[int]], seeds: list[int], new: int) -> list[sampling.Sampled]:
        """Draw at most `new` tokens for each dialogue, given as tokens."""
        ends = sampling.ends_of(self.model, self.tokenizer)
        return sampling.sample(self.model, dialogues, max_new_tokens=new, seeds=seeds, **ends, **self._drawing)

    def text(self, sampled: sampling.Sampled) -> str:
        """What was drawn as text, without space around it."""
        return sampling.text(self.tokenizer, sampled).strip()
