"""A POST that is sent again creates nothing twice."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from serving import make_key, make_store
from sqlalchemy import func, select, update

from tutelage_server.accounts.caller import Caller
from tutelage_server.accounts.idempotency import KEPT, forget_old, once
from tutelage_server.accounts.keys import tenant_named
from tutelage_server.problems import Refused
from tutelage_server.store.tables import Idempotency, StoredFile, new_id, now


@pytest.fixture
def store(tmp_path, database):
    store = make_store(tmp_path, database)
    yield store
    store.close()


def caller_of(store, name="one"):
    make_key(store, name)
    with store.writing() as session:
        return Caller("key-1", tenant_named(session, name).id, frozenset())


def maker(caller):
    def make(session):
        file = StoredFile(id=new_id("file"), tenant_id=caller.tenant_id, name="a", bytes=1)
        session.add(file)
        session.flush()
        return 201, {"id": file.id}

    return make


def count(store):
    with store.reading() as session:
        return session.scalar(select(func.count()).select_from(StoredFile))


def test_the_same_request_gets_the_same_answer_and_creates_once(store):
    caller = caller_of(store)
    first = once(store, caller, "k", "hash", maker(caller))
    again = once(store, caller, "k", "hash", maker(caller))
    assert (first.replayed, again.replayed) == (False, True)
    assert (first.status, first.body) == (again.status, again.body)
    assert count(store) == 1


def test_another_request_with_the_same_key_is_refused(store):
    caller = caller_of(store)
    once(store, caller, "k", "hash", maker(caller))
    with pytest.raises(Refused) as refusal:
        once(store, caller, "k", "other", maker(caller))
    assert (refusal.value.status, refusal.value.code) == (422, "idempotency_key_reused")
    assert count(store) == 1


def test_keys_of_tenants_are_their_own(store):
    one, two = caller_of(store, "one"), caller_of(store, "two")
    first = once(store, one, "k", "hash", maker(one))
    second = once(store, two, "k", "hash", maker(two))
    assert not second.replayed
    assert first.body != second.body


def test_without_a_key_nothing_is_remembered(store):
    caller = caller_of(store)
    assert (
        once(store, caller, None, "hash", maker(caller)).body != once(store, caller, None, "hash", maker(caller)).body
    )
    assert count(store) == 2


def test_a_request_that_failed_may_be_sent_again(store):
    caller = caller_of(store)

    def fail(session):
        maker(caller)(session)
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        once(store, caller, "k", "hash", fail)
    assert count(store) == 0
    assert not once(store, caller, "k", "hash", maker(caller)).replayed


def test_many_at_once_create_one(store):
    caller = caller_of(store)
    ready, answers = threading.Barrier(8), []

    def ask():
        ready.wait()
        answers.append(once(store, caller, "k", "hash", maker(caller)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.body["id"] for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 7
    assert count(store) == 1


def test_an_answer_is_kept_for_a_time(store):
    caller = caller_of(store)
    once(store, caller, "k", "hash", maker(caller))
    with store.writing() as session:
        session.execute(update(Idempotency).values(created_at=now() - KEPT + timedelta(minutes=1)))
    forget_old(store)
    assert once(store, caller, "k", "hash", maker(caller)).replayed
    assert not once(store, caller, "k", "other", maker(caller), kept=timedelta(minutes=10)).replayed
    with store.writing() as session:
        session.execute(update(Idempotency).values(created_at=now() - KEPT - timedelta(minutes=1)))
    forget_old(store)
    with store.reading() as session:
        assert session.scalars(select(Idempotency)).all() == []
