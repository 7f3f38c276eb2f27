"""Plain text."""

from __future__ import annotations

from typing import Any

from tutelage.formats import DataFormat, Text
from tutelage_plugins.formats._turns import text_field


class PlainText(DataFormat):
    """`text`: plain text, all of it learnt. A long document may be several rows, which say where it starts and ends."""

    name = "text"
    columns = ("text",)

    def matches(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get("text"), str)

    def convert(self, row: dict[str, Any]) -> Text:
        return Text(text_field(row, "text"), starts=row.get("starts") is not False, ends=row.get("ends") is not False)
