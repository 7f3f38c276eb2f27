"""Migrations make the tables that the code expects, and keep data."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import BigInteger, Boolean, DateTime, Float, Integer, MetaData, inspect, select, text

from tutelage_server.store.migrations import config, upgrade
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Event, Job, Key, StoredFile, Table, Tenant, new_id


def revisions():
    return [each.revision for each in ScriptDirectory.from_config(config()).walk_revisions()][::-1]


@pytest.fixture
def store(database):
    store = Store(database)
    yield store
    store.close()


def test_the_migrated_tables_are_those_of_the_code(store):
    upgrade(store)
    with store.reading() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        different = list(compare_metadata(context, Table.metadata))
    assert different == [], "draft a revision: python -m tutelage_server.store.migrations MESSAGE"


def test_revisions_follow_one_another_and_each_one_stands_alone():
    assert revisions() == [f"{number + 1:04d}" for number in range(len(revisions()))]
    for revision in ScriptDirectory.from_config(config()).walk_revisions():
        assert "tutelage_server" not in Path(revision.path).read_text(), "a revision names no table class: those change"


def value_for(column: Any, number: int) -> Any:
    """A value that a column of this type takes, and that differs from row to row."""
    kind = column.type
    if isinstance(kind, Boolean):
        return number % 2 == 0
    if isinstance(kind, Integer | BigInteger):
        return number + 1
    if isinstance(kind, Float):
        return number + 0.5
    if isinstance(kind, DateTime) or "DateTime" in type(kind).__name__:
        return datetime(2026, 1, number + 1, tzinfo=UTC)
    if "JSON" in type(kind).__name__:
        return {"number": [number, "é", None]}
    return f"é{number}"


def fill(connection: Any) -> dict[str, list[Any]]:
    """Three rows in every table there is; what they hold."""
    metadata = MetaData()
    metadata.reflect(connection)
    rows: dict[str, list[Any]] = {}
    for table in metadata.sorted_tables:
        if table.name == "alembic_version":
            continue
        for number in range(3):
            row = {column.name: value_for(column, number) for column in table.columns}
            for key in table.foreign_keys:
                row[key.parent.name] = rows[key.column.table.name][number][key.column.name]
            connection.execute(table.insert().values(**row))
            rows.setdefault(table.name, []).append(row)
    return rows


DROPPED: dict[str, str] = {}
"Columns (`table.name`) that a revision takes away on purpose, and where what they held is now."


def lost(before: dict[str, list[dict[str, Any]]], after: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What tables held that they hold no more: every table, row and value but those of DROPPED."""
    found = []
    for table, rows in before.items():
        names = [name for name in rows[0] if f"{table}.{name}" not in DROPPED]
        held = [{name: row[name] for name in names} for row in rows]
        left = [{name: row[name] for name in names if name in row} for row in after.get(table, [])]
        found += [f"{table}: {row}" for row in held if row not in left]
    return found


@pytest.mark.parametrize("revision", revisions())
def test_upgrading_from_every_revision_keeps_data(store, revision):
    upgrade(store, revision)
    with store.writing() as session:
        filled = fill(session.connection())
        before = everything(session.connection())
    assert {table: len(rows) for table, rows in before.items()} == dict.fromkeys(filled, 3)
    upgrade(store)
    with store.reading() as session:
        assert lost(before, everything(session.connection())) == []


@pytest.mark.parametrize(
    "loss",
    [
        "alter table usage drop column usd",
        "delete from event where number = 1",
        "drop table audit",
        "update job set reason = ''",
        "update tenant set limits = '{}'",
    ],
)
def test_a_revision_that_loses_something_would_be_seen(store, loss):
    upgrade(store)
    with store.writing() as session:
        fill(session.connection())
        before = everything(session.connection())
        session.execute(text(loss))
        after = everything(session.connection())
    assert lost(before, before) == []
    assert lost(before, after)


def everything(connection: Any) -> dict[str, list[dict[str, Any]]]:
    names = [name for name in inspect(connection).get_table_names() if name != "alembic_version"]
    return {
        name: [dict(row) for row in connection.execute(text(f'select * from "{name}" order by 1, 2')).mappings()]
        for name in names
    }


def test_upgrading_again_changes_nothing(store):
    upgrade(store)
    with store.writing() as session:
        session.add(Tenant(id="t", name="one", limits={"active_jobs": 1}))
    upgrade(store)
    with store.reading() as session:
        assert session.scalars(select(Tenant)).one().limits == {"active_jobs": 1}
        assert session.scalar(text("select version_num from alembic_version")) == revisions()[-1]


def test_servers_that_start_at_once_upgrade_once(database):
    ready, wrong = threading.Barrier(4), []

    def start():
        store = Store(database)
        ready.wait()
        try:
            upgrade(store)
        except Exception as error:
            wrong.append(error)
        store.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_rows_come_back_as_they_were_stored(store):
    upgrade(store)
    at = datetime(2026, 11, 25, 12, 30, 15, 123456, tzinfo=UTC)
    with store.writing() as session:
        session.add(Tenant(id="t", name="one", limits={}))
        session.flush()
        session.add(Key(id="k", tenant_id="t", name="é", lookup="l", hash="h", scopes=["read"], expires_at=at))
        session.add(StoredFile(id="f", tenant_id="t", name="ü.jsonl", bytes=2**40, received=2**40))
        session.flush()
        job = Job(id=new_id("job"), tenant_id="t", key_id="k", name="x", state="queued", launcher="local", recipe={"a": [1, {"b": None}]}, run_offset=2**40)  # fmt: skip
        session.add(job)
        session.flush()
        session.add(Event(job_id=job.id, number=1, kind="state", data={"loss": 1.5, "é": True}))
    with store.reading() as session:
        assert session.get_one(Key, "k").expires_at == at
        assert session.get_one(Key, "k").scopes == ["read"]
        assert session.get_one(StoredFile, "f").bytes == 2**40
        found = session.scalars(select(Job)).one()
        assert (found.recipe, found.run_offset, found.progress) == ({"a": [1, {"b": None}]}, 2**40, {})
        assert session.get_one(Event, (found.id, 1)).data == {"loss": 1.5, "é": True}
