"""The store: a database, read and written in short transactions by blocking calls (handlers run them in threads)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from tutelage.errors import TutelageError
from tutelage_server.store.tables import Job

PATIENCE = 60.0
"Seconds after which PostgreSQL ends a transaction of which nothing is heard any more."


class StoreUnavailable(TutelageError):
    """The database can't be reached or written now; nothing was changed, and the same call may be made again."""

    exit_code = 1


class Store:
    """A database by its address: SQLite (WAL) or PostgreSQL."""

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        """`patience` is how many seconds others on PostgreSQL wait for a transaction of which nothing is heard."""
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self.engine = _sqlite(url) if self.is_sqlite else _postgresql(url, patience)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads, on one snapshot.

        Raises:
            StoreUnavailable
        """
        with self._session() as session:
            yield session

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that commits at its end, or changes nothing when an exception leaves it. On SQLite it is the only
        writer from its start; on PostgreSQL rows are locked by those who read them to change them (`lock_job`).

        Raises:
            StoreUnavailable
        """
        with self._session(writes=True) as session:
            yield session
            session.commit()

    @contextlib.contextmanager
    def deciding(self, what: str) -> Iterator[Session]:
        """Like `writing`, and no other session decides on `what` at the same time, on whichever machine."""
        with self.writing() as session:
            if not self.is_sqlite:
                session.execute(text("select pg_advisory_xact_lock(hashtext(:what))"), {"what": f"tutelage {what}"})
            yield session

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextlib.contextmanager
    def _session(self, writes: bool = False) -> Iterator[Session]:
        try:
            with self._sessions() as session:
                if writes and self.is_sqlite:
                    session.connection(execution_options={"sqlite_begin": "BEGIN IMMEDIATE"})
                yield session
        except (OperationalError, DBAPIError) as error:
            if isinstance(error, OperationalError) or error.connection_invalidated:
                wrong = f"can't be used now: {str(error.orig).strip().splitlines()[0] if str(error.orig) else error}"
                raise StoreUnavailable.at("the database", wrong, "try again in a moment") from error
            if self.is_sqlite and type(error) is DatabaseError:  # no database at all, or no whole one
                damaged = f"{self.engine.url.database} is damaged: {error.orig}"
                raise StoreUnavailable.at("the database", damaged, "stop the server and put a copy back") from error
            raise


def lock_job(session: Session, job_id: str, tenant_id: str | None = None) -> Job | None:
    """A job, locked until the transaction ends; None when there is none (or it is another tenant's)."""
    wanted = select(Job).where(Job.id == job_id).with_for_update()
    if tenant_id is not None:
        wanted = wanted.where(Job.tenant_id == tenant_id)
    return session.scalars(wanted.execution_options(populate_existing=True)).one_or_none()


def _postgresql(url: str, patience: float) -> Engine:
    """A server that is not there is told in seconds; a process that was stopped, or cut off, amid a transaction loses
    its locks, for those of others wait for them."""
    timely = {"connect_timeout": 10, "tcp_user_timeout": int(1000 * patience)}
    chosen = make_url(url).query
    mine = {name: value for name, value in timely.items() if name not in chosen}
    engine = create_engine(url, pool_pre_ping=True, pool_size=20, connect_args=mine)

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.execute(f"set idle_in_transaction_session_timeout = {int(1000 * patience)}")
        connection.commit()

    return engine


def _sqlite(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False}, pool_size=20, max_overflow=40)

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction: `begin` below does
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine
