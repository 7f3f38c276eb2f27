"""What Alembic runs: the revisions, on the connection and in the transaction that `upgrade` gives."""

from __future__ import annotations

from typing import Any

from advanced_alchemy.types import DateTimeUTC
from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import JSON

from tutelage_server.store.tables import Table


def render_item(kind: str, item: Any, autogenerate: AutogenContext) -> Any:
    """How a draft writes types that are not SQLAlchemy's own."""
    if kind == "type" and isinstance(item, DateTimeUTC):
        autogenerate.imports.add("from advanced_alchemy.types import DateTimeUTC")
        return "DateTimeUTC(timezone=True)"
    if kind == "type" and isinstance(item, JSON):
        autogenerate.imports.add("from sqlalchemy.dialects.postgresql import JSONB")
        return 'sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")'
    return False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Table.metadata,
    render_as_batch=True,
    compare_type=True,
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
