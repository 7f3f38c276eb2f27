"""`python -m tutelage_server.store.migrations MESSAGE`: draft the revision that leads to the tables as they are now.

Read the draft before it is kept: renamed columns look like a dropped and an added one, and data is not moved.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.script import ScriptDirectory

from tutelage_server.store.migrations import config, upgrade
from tutelage_server.store.store import Store


def main(message: str) -> None:
    """Write the draft beside the other revisions."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{Path(folder) / 'store.db'}")
        upgrade(store)
        count = len(list(ScriptDirectory.from_config(config()).walk_revisions()))
        with store.reading() as session:
            command.revision(
                config(session.connection()), message=message, autogenerate=True, rev_id=f"{count + 1:04d}"
            )
        store.close()


main(" ".join(sys.argv[1:]) or "changes")
