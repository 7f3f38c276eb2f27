"""Whether an answer is JSON."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Any

import msgspec
from msgspec import Meta

import tutelage

_UNREADABLE = object()


class Json(tutelage.Reward):
    """1 for an answer that is valid JSON (RFC 8259) with what is required of it, 0 for any other."""

    name = "json"

    class Config(tutelage.Config):
        """What is required beyond being valid."""

        keys: Annotated[list[str], Meta(description="Keys that it must have; it must then be an object.")] = []
        schema: Annotated[
            dict[str, Any],
            Meta(
                description="A JSON Schema that it must meet (needs the package jsonschema); references to other "
                "addresses are not followed."
            ),
        ] = {}
        fenced: Annotated[bool, Meta(description="Take JSON in a Markdown code fence too.")] = True
        valid: Annotated[float, Meta(description="The score of an answer that is as it should be.")] = 1.0
        invalid: Annotated[float, Meta(description="The score of any other.")] = 0.0

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._validator: Any = None

    def missing(self) -> str:
        if not self.config.schema:
            return ""
        if not find_spec("jsonschema"):
            return "a schema needs the package jsonschema, which is not installed: pip install 'tutelage[rewards]'"
        import jsonschema

        try:
            jsonschema.validators.validator_for(self.config.schema).check_schema(self.config.schema)
        except jsonschema.SchemaError as error:
            return f"schema is no JSON Schema: {error.message}"
        return ""

    def score(self, prompts: Sequence[tutelage.Prompted], answers: Sequence[str]) -> list[float]:
        return [self.config.valid if self._is_right(answer) else self.config.invalid for answer in answers]

    def _is_right(self, answer: str) -> bool:
        value = self._value(answer)
        if value is _UNREADABLE:
            return False
        if self.config.keys and not (isinstance(value, dict) and all(key in value for key in self.config.keys)):
            return False
        return not self.config.schema or self._meets_schema(value)

    def _value(self, answer: str) -> Any:
        text = answer.strip()
        if self.config.fenced and text.startswith("```") and text.endswith("```") and "\n" in text:
            text = text[text.index("\n") : -3]
        try:
            return msgspec.json.decode(text)
        except (ValueError, RecursionError):
            return _UNREADABLE

    def _meets_schema(self, value: Any) -> bool:
        import jsonschema
        import referencing

        if self._validator is None:
            kind = jsonschema.validators.validator_for(self.config.schema)
            self._validator = kind(self.config.schema, registry=referencing.Registry())
        try:
            return bool(self._validator.is_valid(value))
        except RecursionError:
            return False
