"""Leases: which dispatcher follows a job, so that two on one database never follow it at once.

A lease is a dispatcher's token and a time. It is renewed while the dispatcher lives, and every write checks it in its
own transaction, so that one that was held up writes nothing late. Others take a job over when its lease has run out, or
at once when the dispatcher's process is dead for sure: that is known of processes of the same machine alone.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from datetime import timedelta

from sqlalchemy import or_, select, update

from tutelage.runs.attempt import boot_id, started_at
from tutelage_server.jobs.states import ON_A_MACHINE
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Job, now


def new_token() -> str:
    """A token for a dispatcher of this process: where it lives, its process id and start, and something of its own."""
    return f"{_place()}-{os.getpid()}-{started_at(os.getpid())}-{secrets.token_hex(4)}"


def is_dead(token: str) -> bool:
    """Whether the process of a token is dead for sure."""
    place, pid, started, _ = token.split("-")
    return place == _place() and str(started_at(int(pid))) != started


def renew(store: Store, token: str, launchers: list[str], machine: str, seconds: float) -> None:
    """Take every job on a machine that nobody follows, and keep those that are followed already.

    Jobs of this machine's processes are marked with its name; those of another machine are left to it.

    Raises:
        StoreUnavailable
    """
    clock = now()
    until = clock + timedelta(seconds=seconds)
    soon = clock + timedelta(seconds=seconds / 2)
    with store.reading() as session:
        found = session.execute(
            select(Job.id, Job.lease, Job.leased_until).where(
                Job.state.in_(ON_A_MACHINE), Job.launcher.in_(launchers), Job.machine.in_(("", machine))
            )
        ).all()
    gone = {lease for lease in {row.lease for row in found} if lease and lease != token and is_dead(lease)}
    mine = [row.id for row in found if row.lease == token and (row.leased_until is None or row.leased_until < soon)]
    free = [
        row.id
        for row in found
        if row.lease != token and (row.lease in {"", *gone} or row.leased_until is None or row.leased_until < clock)
    ]
    for start in range(0, len(wanted := mine + free), 500):
        still = or_(Job.lease.in_({token, "", *gone}), Job.leased_until.is_(None), Job.leased_until < clock)
        some = Job.id.in_(wanted[start : start + 500])
        with store.writing() as session:
            session.execute(
                update(Job).where(some, still, Job.state.in_(ON_A_MACHINE)).values(lease=token, leased_until=until),
                execution_options={"synchronize_session": False},
            )


def _place() -> str:
    """This machine since it booted, and where process ids mean the same."""
    where = f"{socket.gethostname()} {boot_id()} {os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    return hashlib.sha256(where.encode()).hexdigest()[:16]
