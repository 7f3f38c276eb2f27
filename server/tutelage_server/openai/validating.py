"""Is a file fit to tune with? The sentences are those that programs written for OpenAI's service look for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

NOT_JSONL = "Expected file to have JSONL format, where every line is a valid JSON dictionary."
LEAST_EXAMPLES = 10
LONGEST_LINE = 8 * 2**20
"Bytes of a line; no example is as long."

METHODS = {"chat": "supervised", "preference": "dpo"}
"By which method what kind of examples is learnt from."

Kind = Literal["chat", "preference"]


class NotJsonl(ValueError):
    """A file is not what its purpose asks for."""


class Unfit(ValueError):
    """A file can't be tuned with; becomes the `error` of a job."""

    def __init__(self, code: str, message: str, param: str) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


class Examples(msgspec.Struct):
    """What a file of examples holds."""

    count: int = 0
    bytes: int = 0
    "Of all lines, with the JSON around the text."

    @property
    def mean_tokens(self) -> float:
        """About how many tokens an example has: English text has some four bytes a token."""
        return max(8.0, self.bytes / max(1, self.count) / 4)


def check_jsonl(lines: Iterable[bytes]) -> int:
    """The number of examples in a file.

    Raises:
        NotJsonl: when a line is no JSON object, or there is none.
    """
    count = 0
    for number, row in _rows(lines):
        if not isinstance(row, dict):
            raise NotJsonl(f"{NOT_JSONL} Line {number} is not.")
        count += 1
    if not count:
        raise NotJsonl(f"{NOT_JSONL} It has no line.")
    return count


def examine(lines: Iterable[bytes], method: str, param: str, least: int = LEAST_EXAMPLES) -> Examples:
    """Look at every example of a file that a job wants to learn from (or to be measured by).

    Args:
        param: `training_file` or `validation_file`.
    Raises:
        Unfit: naming the first example that is wrong, or that there are too few.
    """
    found = Examples()
    for number, row in _rows(lines):
        if not isinstance(row, dict):
            raise _invalid(param, f"{NOT_JSONL} Line {number} is not.")
        found.count += 1
        found.bytes += len(msgspec.json.encode(row))
        kind: Kind = "preference" if "preferred_output" in row or "non_preferred_output" in row else "chat"
        if METHODS[kind] != method:
            shape = {"chat": "fine-tune-chat", "preference": "fine-tune-preference"}[kind]
            wrong = f"is in the {shape} format, but the specified fine-tuning job is not using '{METHODS[kind]}'"
            raise _invalid(param, f"The file {wrong} (provided method={method}).")
        place = f"Invalid file format. Example {found.count}"
        if wrong := _wrong_chat(row) if kind == "chat" else _wrong_preference(row):
            raise _invalid(param, f"{place}, {wrong}")
    if found.count < least:
        name = {"training_file": "Training", "validation_file": "Validation"}[param]
        wrong = f"{name} file has {found.count} example(s), but must have at least {least} examples"
        raise Unfit("invalid_n_examples", wrong, param)
    return found


def _rows(lines: Iterable[bytes]) -> Iterable[tuple[int, Any]]:
    """Line numbers and what each line that is not blank holds; None where that is no JSON."""
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            yield number, msgspec.json.decode(line) if len(line) <= LONGEST_LINE else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            yield number, None


def _wrong_chat(row: dict[str, Any]) -> str:
    """What is wrong with a supervised example, or ''."""
    messages = row.get("messages")
    if wrong := _wrong_messages(messages, "messages"):
        return wrong
    if not any(turn["role"] == "assistant" for turn in messages or []):
        return "messages: there must be at least one message from the assistant"
    return ""


def _wrong_preference(row: dict[str, Any]) -> str:
    """What is wrong with a preference example, or ''."""
    asked = row.get("input")
    if not isinstance(asked, dict):
        return "Field 'input' must be an object with messages"
    if wrong := _wrong_messages(asked.get("messages"), "input.messages"):
        return wrong
    for field in ("preferred_output", "non_preferred_output"):
        if wrong := _wrong_messages(row.get(field), field):
            return wrong
        if row[field][-1]["role"] != "assistant":
            return f"{field}: its last message must be the assistant's"
    return ""


def _wrong_messages(messages: Any, field: str) -> str:
    if not isinstance(messages, list) or not messages:
        return f"Field '{field}' must be a list with at least one message"
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, dict):
            return f"message {number} must be an object"
        if "role" not in turn:
            return f"message {number} Discriminator 'role' is missing in value"
        if turn["role"] not in ("system", "developer", "user", "assistant", "tool"):
            return f"message {number} Role {turn['role']!r} is not known"
        if turn.get("content") is None and not turn.get("tool_calls"):
            return f"message {number} Field 'content' is missing in value"
    return ""


def _invalid(param: str, wrong: str) -> Unfit:
    which = {"training_file": "training", "validation_file": "validation"}[param]
    message = f"The job failed due to an invalid {which} file. {wrong}"
    return Unfit(f"invalid_{which}_file", message, param)
