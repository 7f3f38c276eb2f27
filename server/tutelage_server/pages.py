"""Lists in pages: newest first, each page naming where the next begins."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

T = TypeVar("T")


def page(
    session: Session, query: Select[T], column: InstrumentedAttribute[Any], limit: int, cursor: Any = None
) -> tuple[list[T], Any]:
    """The rows of a query below `cursor` by a column that is unique and grows with age, newest first.

    Returns:
        at most `limit` rows, and the cursor of the next page or None.
    """
    query = query.order_by(column.desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(column < cursor)
    rows = list(session.scalars(query))
    more = len(rows) > limit
    return rows[:limit], getattr(rows[limit - 1], column.key) if more else None
