"""What people ask of a job: cancel, pause, resume. Where an attempt lives, the dispatcher carries it out."""

from __future__ import annotations

from typing import Literal

from tutelage_server.accounts.caller import Caller
from tutelage_server.jobs.events import append_event
from tutelage_server.jobs.states import (
    CANCELLED,
    CANCELLING,
    ON_A_MACHINE,
    PAUSED,
    PAUSING,
    QUEUED,
    TERMINAL,
    WAITING,
    NotAllowed,
    transition,
)
from tutelage_server.jobs.submitting import no_job
from tutelage_server.store.store import Store, lock_job
from tutelage_server.store.tables import Job

Verb = Literal["cancel", "pause", "resume"]
_AIMS = {"cancel": CANCELLED, "pause": PAUSED, "resume": QUEUED}
_WANTED = {"cancel": "cancel", "pause": "pause", "resume": "run"}


def steer(store: Store, caller: Caller, job_id: str, verb: Verb) -> Job:
    """Ask something of a job; what was asked already changes nothing.

    Raises:
        Refused: 404
        NotAllowed: when its state does not let it be.
    """
    with store.writing() as session:
        job = lock_job(session, job_id, caller.tenant_id)
        if job is None:
            raise no_job(job_id)
        by, aim = f"key:{caller.key_id}", _AIMS[verb]
        if job.state == aim or (job.state in ON_A_MACHINE and job.wanted == _WANTED[verb]):
            return job
        if job.state in TERMINAL:
            raise NotAllowed(job.id, job.state, aim)
        if verb != "cancel" and (job.state == CANCELLING or job.wanted == "cancel"):  # also before it is seen to
            raise NotAllowed(job.id, CANCELLING, aim)
        if job.state in (QUEUED, WAITING, PAUSED):
            transition(session, job, aim, reason=f"{verb} was asked for", by=by, wanted="run")
        elif verb == "resume" and job.state != PAUSING:
            return job
        else:
            job.wanted = _WANTED[verb]
            append_event(session, job, "asked", {"wanted": job.wanted, "by": by})
        return job
