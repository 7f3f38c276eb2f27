"""Records become token ids and a mask of which of them are learnt.

In a conversation, what comes before a learnt turn (`chat` finds where) has exactly the tokens that inference sees.
The token that ends a turn is always learnt, and what a template writes after it never is (but a further end token).
Nothing is masked by its id, so a pad token that is also the end token does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from tutelage.data.chat import ChatTemplate, Messages, Span
from tutelage.formats import NAMES, Continuation, Conversation, Prompt, Record, Text

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

LearnFrom = Literal["assistant", "last", "all"]
Flags = npt.NDArray[np.bool_]

_CACHED_HEADERS = 4096
_LONGEST_HEADER = 256


class Tokens(msgspec.Struct, eq=False):
    """An example: token ids (int32) and which of them are learnt (bool), both of shape (length,).

    It may hold several sequences one after another, such as the answers to one prompt.
    """

    ids: npt.NDArray[np.int32]
    learn: npt.NDArray[np.bool_]
    parts: npt.NDArray[np.int32] | None = None
    "Lengths of its sequences, (sequences,); None where it is one."
    values: npt.NDArray[np.float32] | None = None
    "What a phase has to say of each sequence, (sequences, columns), such as its rank."

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Lengths of its sequences, (sequences,)."""
        return np.array([len(self.ids)], dtype=np.int32) if self.parts is None else self.parts

    @property
    def targets(self) -> npt.NDArray[np.bool_]:
        """Which tokens are learnt and can be predicted: all but the first of a sequence, which nothing comes before."""
        targets = np.array(self.learn, dtype=bool)
        targets[np.cumsum(self.lengths) - self.lengths] = False
        return targets

    @property
    def weight(self) -> int:
        """How many learnt tokens can be predicted."""
        return int(self.targets.sum())

    def sequences(self) -> list[Tokens]:
        """Each of its sequences by itself, without values."""
        ends = np.cumsum(self.lengths)
        return [
            Tokens(self.ids[end - length : end], self.learn[end - length : end])
            for end, length in zip(ends, self.lengths, strict=True)
        ]


def together(sequences: Sequence[Tokens], values: Sequence[Sequence[float]]) -> Tokens:
    """One example of several sequences, with a row of values for each."""
    return Tokens(
        np.concatenate([part.ids for part in sequences]),
        np.concatenate([part.learn for part in sequences]),
        np.array([len(part) for part in sequences], dtype=np.int32),
        np.array(values, dtype=np.float32).reshape(len(sequences), -1),
    )


class _Encoded:
    """A text as tokens: of the whole, or of parts, each with the number of characters before it."""

    def __init__(self, parts: list[tuple[Encoding, int]]) -> None:
        self.ids = np.array([token for encoding, _ in parts for token in encoding.ids], dtype=np.int32)
        self.first_length = len(parts[0][0])
        self._parts = parts

    def chars(self, token: int) -> tuple[int, int]:
        """Where a token starts and ends in the text, in characters."""
        if token < self.first_length:
            return self._parts[0][0].token_to_chars(token) or (0, 0)
        encoding, before = self._parts[1]
        start, end = encoding.token_to_chars(token - self.first_length) or (0, 0)
        return start + before, end + before


class _Draft(msgspec.Struct):
    """A record whose texts are still to be tokenised, and what makes tokens of them then."""

    texts: list[str]
    finish: Callable[..., Tokens]


class Renderer:
    """Turns records into tokens with one model's tokenizer and chat template.

    Args:
        tokenizer: of the model; it must be a fast one (of the tokenizers library).
        learn_from: every assistant turn, the last one only, or every token.
        end_ids: ids at which generation stops besides the tokenizer's EOS (`eos_token_id` of the generation config).

    Raises:
        ValueError: when the tokenizer is not a fast one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        learn_from: LearnFrom = "assistant",
        end_ids: frozenset[int] = frozenset(),
    ) -> None:
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} is no fast tokenizer; save the model with a tokenizer.json")
        self.tokenizer: Any = tokenizer
        # A tokenizer.json may ask for both, and texts would be cut or padded silently.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.learn_from = learn_from
        eos = tokenizer.eos_token_id
        self.given_ends = sorted(end_ids | ({eos} if eos is not None else set()))
        self._template = ChatTemplate(tokenizer)
        self._headers: dict[str, list[int]] = {}

    def render(self, record: Record) -> Tokens:
        """Turn a record into tokens.

        Raises:
            ValueError: with a sentence, when it can't be learnt from as it is.
        """
        result = self.render_many([record])[0]
        if isinstance(result, ValueError):
            raise result
        return result

    def render_many(self, records: Sequence[Record]) -> list[Tokens | ValueError]:
        """Like `render`, for many records, which are tokenised in parallel; a refusal takes the place of its tokens."""
        drafts = [_attempt(self._draft, record) for record in records]
        encoded = iter(self._encode([text for draft in drafts if isinstance(draft, _Draft) for text in draft.texts]))
        return [
            _attempt(draft.finish, *islice(encoded, len(draft.texts))) if isinstance(draft, _Draft) else draft
            for draft in drafts
        ]

    def answered(self, prompt: Prompt, answer: str) -> Tokens:
        """A prompt and an answer to it, of which only the answer is learnt.

        Raises:
            ValueError: with a sentence, when it can't be learnt from as it is.
        """
        if not answer.strip():
            raise ValueError("an answer is empty")
        asked, self.learn_from = self.learn_from, "last"
        try:
            if isinstance(prompt, str):
                return self.render(Continuation(prompt, answer))
            return self.render(Conversation([*prompt, {"role": "assistant", "content": answer}]))
        finally:
            self.learn_from = asked

    def prompted(self, prompt: Prompt) -> list[int]:
        """The ids that a model is given to answer a prompt: up to where the assistant begins.

        Raises:
            ValueError: with a sentence, when there are none.
        """
        if isinstance(prompt, str) and not self.tokenizer.chat_template:
            return [*self._opening, *self._encode([prompt])[0].ids]
        if not self.tokenizer.chat_template:
            raise ValueError("the model has no chat template, so it can't answer messages; give plain text")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        self._template.check(messages, None)
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self._encode([text])[0].ids
        if not ids:
            raise ValueError("the prompt is empty")
        return ids

    def text_bytes(self, rows: list[npt.NDArray[np.int32]]) -> int:
        """The bytes (UTF-8) of the text that rows of ids stand for, special tokens left out."""
        backend: Any = self.tokenizer.backend_tokenizer
        texts = backend.decode_batch([row.tolist() for row in rows], skip_special_tokens=True)
        return sum(len(text.encode()) for text in texts)

    def ends_learnt(self, tokens: Tokens) -> bool:
        """Whether every run of learnt tokens has one that ends a turn or a text, so that the model learns to stop."""
        if tokens.parts is not None:
            return all(self.ends_learnt(part) for part in tokens.sequences() if part.learn.any())
        learn = tokens.learn
        starts = np.flatnonzero(learn & ~np.concatenate(([False], learn[:-1])))
        if len(starts) == 0:
            return False
        ends = self._ends[tokens.ids] & learn
        return bool(np.logical_or.reduceat(ends, starts).all())

    def _draft(self, record: Record) -> _Draft | Tokens:
        if isinstance(record, Text):
            return _Draft([record.text], partial(self._text, record))
        if isinstance(record, Continuation):
            if not self.tokenizer.chat_template:
                prompt = record.prompt + record.gap
                return _Draft([prompt, prompt + record.completion], partial(self._continuation, record.completion))
            turns = [{"role": "user", "content": record.prompt}, {"role": "assistant", "content": record.completion}]
            record = Conversation(turns)
        if not isinstance(record, Conversation):
            raise ValueError(f"is {NAMES[type(record)]}, which no text can be made of as it is")
        return self._conversation(record)

    # Plain text

    def _text(self, record: Text, encoded: Encoding) -> Tokens:
        ids, _ = self._closed(encoded.ids, starts=record.starts, ends=record.ends)
        return Tokens(ids, np.ones(len(ids), dtype=bool))

    def _continuation(self, completion: str, prompt: Encoding, whole: Encoding) -> Tokens:
        """The prompt's tokens are those that inference sees; only what comes after them is the completion's."""
        head, ids = prompt.ids, whole.ids
        if ids[: len(head)] != head:
            ids = head + self._encode([completion])[0].ids
            if self._decode(ids) != self._decode(whole.ids):
                raise ValueError(
                    "the prompt ends within a token; move the spaces from the end of the prompt to the completion"
                )
        closed, opening = self._closed(ids)
        start = opening + len(head)
        if np.isin(closed[start:-1], self.given_ends).any():
            raise ValueError("the completion holds the end-of-text token before its end; remove it from the text")
        learn = np.ones(len(closed), dtype=bool)
        if self.learn_from != "all":
            learn[:start] = False
        return Tokens(closed, learn)

    def _closed(self, ids: list[int], *, starts: bool = True, ends: bool = True) -> tuple[npt.NDArray[np.int32], int]:
        """Put what the tokenizer writes before a text (BOS, if any) in front and EOS at the end, neither of them twice.

        Args:
            starts: whether the text starts here, so that anything is put in front.
            ends: whether it ends here, so that anything is put at the end.

        Returns:
            the ids, and how many were put in front.
        """
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ValueError("the tokenizer has no end-of-text token (eos_token), so the model could not learn to stop")
        opening = self._opening if starts and ids[: len(self._opening)] != self._opening else []
        closing = [eos] if ends and ids[-1:] != [eos] else []
        return np.array([*opening, *ids, *closing], dtype=np.int32), len(opening)

    @cached_property
    def _opening(self) -> list[int]:
        """The ids that the tokenizer adds before a text."""
        bare: list[int] = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full: list[int] = self.tokenizer("a")["input_ids"]
        starts = (start for start in range(len(full)) if full[start : start + len(bare)] == bare)
        return full[: next(starts, 0)]

    # Chat

    def _conversation(self, record: Conversation) -> _Draft | Tokens:
        messages, tools = record.messages, record.tools
        turns = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
        if not turns:
            raise ValueError("has no assistant turn; there is nothing to learn")
        self._template.check(messages, tools)
        if self.learn_from != "assistant":
            turns = turns[-1:]
        learnt = [index for index in turns if messages[index].get("weight", 1)]
        if not learnt:
            raise ValueError("nothing in it is learnt: its assistant turns have weight 0")
        if self._template.marks(tools):
            return self._by_marks(messages, tools, turns, learnt)
        whole = self._template.text(messages, tools)
        spans = [self._template.span(messages, tools, whole, index) for index in learnt]
        return _Draft([whole], partial(self._by_prefix, whole, spans))

    def _by_prefix(self, whole: str, spans: list[Span], encoding: Encoding) -> Tokens:
        encoded = _Encoded([(encoding, 0)])
        starts = [self._start(whole, span, encoded) for span in spans]
        if starts[-1] is None:
            encoded = self._split(whole, spans[-1])
            starts = [self._start(whole, span, encoded) for span in spans[:-1]] + [encoded.first_length]
        ids = encoded.ids
        learn = np.full(len(ids), self.learn_from == "all")
        ends = np.flatnonzero(self._ends[ids]).tolist()
        for span, start in zip(spans, starts, strict=True):
            if start is None:
                raise ValueError(
                    f"the first token of turn {span.turn + 1} would also hold the end of what prompts it, so inference "
                    "would see other tokens; remove spaces and newlines at the start of the answer, or set "
                    "data.learn_from to last"
                )
            reached = [end for end in ends if end >= start and encoded.chars(end)[0] <= span.limit]
            if not reached:
                raise ValueError(_endless(span.turn))
            self._check_end(span.turn, ids[reached[0]], span.after[encoded.chars(reached[0])[1] :])
            learn[start : reached[0] + 1] = True
            learn[[end for end in reached[1:] if encoded.chars(end)[1] <= span.limit]] = True
        return Tokens(ids, learn)

    def _start(self, whole: str, span: Span, encoded: _Encoded) -> int | None:
        """How many tokens the text before a turn has, if they are exactly the ones that inference sees, else None.

        Text between special tokens is tokenised independently of what is around it, so only what follows the last
        special token before the turn (nearly always the same header) is tokenised again.
        """
        ids, anchor, start = encoded.ids, 0, 0
        for index in np.flatnonzero(self._added[ids])[::-1].tolist():
            first, end = encoded.chars(index)
            if end <= span.before:
                anchor, start = index, first
                break
        header = whole[start : span.before]
        expected = self._headers.get(header)
        if expected is None:
            expected = self._encode([header])[0].ids
            if len(self._headers) < _CACHED_HEADERS and len(header) < _LONGEST_HEADER:
                self._headers[header] = expected
        length = anchor + len(expected)
        return length if ids[anchor:length].tolist() == expected else None

    def _split(self, whole: str, span: Span) -> _Encoded:
        """Tokenise a conversation in two, before and after the start of its last learnt turn, as inference does."""
        prompt, answer = self._encode([whole[: span.before], whole[span.before :]])
        encoded = _Encoded([(prompt, 0), (answer, span.before)])
        if self._decode(encoded.ids.tolist()) != self._decode(self._encode([whole])[0].ids):
            raise ValueError(
                f"turn {span.turn + 1} starts within a token; remove the spaces at the start of the answer"
            )
        return encoded

    def _by_marks(
        self, messages: Messages, tools: list[dict[str, Any]] | None, turns: list[int], learnt: list[int]
    ) -> Tokens:
        """By a template that says itself what is generated."""
        marked, runs = self._template.marked(messages, tools, learnt)
        if self.learn_from != "assistant":
            runs = runs[-1:]
        elif learnt != turns:
            if len(runs) != len(turns):
                raise ValueError("has turns of weight 0, but the chat template doesn't mark its turns one by one")
            runs = [run for turn, run in zip(turns, runs, strict=True) if turn in learnt]
        ids = np.array(marked, dtype=np.int32)
        learn = np.full(len(ids), self.learn_from == "all")
        for number, (start, limit) in enumerate(runs):
            reached = np.flatnonzero(self._ends[ids[start : limit + 1]])
            if len(reached) == 0:
                raise ValueError(_endless(turns[min(number, len(turns) - 1)]))
            end = start + int(reached[0])
            self._check_end(turns[min(number, len(turns) - 1)], ids[end], self._decode(ids[end + 1 : limit].tolist()))
            learn[start : end + 1] = True
            learn[start + reached] = True
        return Tokens(ids, learn)

    def _check_end(self, turn: int, end: np.int32, rest: str) -> None:
        """Refuse a turn that goes on after the token that ends it: `rest` may hold nothing but special tokens."""
        if self._added_text.sub("", rest).strip():
            token = self.tokenizer.convert_ids_to_tokens(int(end))
            raise ValueError(
                f"turn {turn + 1} holds {token}, which ends a turn, in its middle; remove it from the text"
            )

    @cached_property
    def _ends(self) -> Flags:
        """Which ids end a turn: EOS, those of the generation config, and the special token that the template writes."""
        ends = set(self.given_ends)
        answer = "An answer."
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": "A question."}, {"role": "assistant", "content": answer}]
            try:
                rest = self._template.text(turns).rpartition(answer)[2]
            except ValueError:
                rest = ""
            known = self.tokenizer.added_tokens_decoder
            special = [i for i in self._encode([rest])[0].ids if i in known and known[i].special]
            ends.update(special[:1])
        return self._flags(ends)

    @cached_property
    def _added(self) -> Flags:
        """Which ids are special tokens, or others that were added to the vocabulary whole."""
        return self._flags(self.tokenizer.added_tokens_decoder)

    @cached_property
    def _added_text(self) -> re.Pattern[str]:
        """Matches these tokens in text."""
        contents = sorted((str(token) for token in self.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, contents)) or r"(?!)")

    def _flags(self, ids: Iterable[int]) -> Flags:
        """A table of all ids that is true at those given."""
        flags = np.zeros(max(len(self.tokenizer), *ids, 0) + 1, dtype=bool)
        flags[list(ids)] = True
        return flags

    def _encode(self, texts: list[str]) -> list[Encoding]:
        encoded: list[Encoding] = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return encoded

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
        return text


def _endless(turn: int) -> str:
    return (
        f"no end-of-turn token follows turn {turn + 1}, so the model would not learn to stop; "
        "give a chat template that writes one after every assistant turn"
    )


def _attempt(make: Callable[..., Any], *arguments: Any) -> Any:
    """What `make` returns, or the ValueError that it raises."""
    try:
        return make(*arguments)
    except ValueError as error:
        return error
