"""Migrations of the store: Alembic revisions that keep data."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from tutelage_server.store.store import Store

_FOLDER = Path(__file__).parent


def upgrade(store: Store, revision: str = "head") -> None:
    """Bring a store's tables up to date, or make them. Several servers may do so at once: one does, the others wait.

    Raises:
        StoreUnavailable
    """
    if store.is_sqlite and store.engine.url.database:
        Path(store.engine.url.database).parent.mkdir(parents=True, exist_ok=True)
    with store.deciding("migrations") as session:
        command.upgrade(config(session.connection()), revision)


def config(connection: object = None) -> Config:
    """Alembic's configuration, on an open connection."""
    made = Config(attributes={"connection": connection})
    made.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    return made
