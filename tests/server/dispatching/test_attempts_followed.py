"""Jobs on a simulated cluster: what becomes of them, whatever the cluster, the attempts and the dispatchers do."""

from __future__ import annotations

import json
import os
import time

import pytest
from clusters import Cluster, Service, until
from sqlalchemy import update

from tutelage.launcher import LauncherUnreachable, Resources, Status
from tutelage_server.jobs.events import append_event
from tutelage_server.jobs.states import TERMINAL, transition
from tutelage_server.jobs.tending import Pace
from tutelage_server.store.store import StoreUnavailable, lock_job
from tutelage_server.store.tables import Job, Tenant, Usage


@pytest.fixture
def service(tmp_path) -> Service:
    return Service(tmp_path)


def started(service: Service, **fields):
    """A job whose attempt has begun, with its dispatcher."""
    job = service.submit(**fields)
    dispatcher = service.dispatcher()
    dispatcher.step()
    attempt = service.cluster.of(job)
    assert service.cluster.begin(attempt)
    dispatcher.step()
    assert service.job(job).state == "running"
    return job, dispatcher, attempt


def test_a_job_runs_to_its_end(service):
    job, dispatcher, attempt = started(service)
    service.cluster.tell(attempt, "step", step=1, steps=2, loss=2.0, stage="tune")
    dispatcher.step()
    service.cluster.tell(attempt, "step", step=2, steps=2, loss=1.0, stage="tune")
    service.cluster.finish(attempt, 0)
    dispatcher.step()
    row = service.job(job)
    assert (row.state, row.ended_by, row.handle, row.lease) == ("succeeded", "run", "", "")
    assert row.progress["step"] == 2
    assert service.states(job) == ["starting", "running", "succeeded"]
    assert [event.data["loss"] for event in service.events(job) if event.kind == "step"] == [2.0, 1.0]
    assert [event.number for event in service.events(job)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("code", "fields", "state", "says"),
    [
        (1, {"reason": "the loss diverged"}, "failed", "the loss diverged"),
        (2, {"reason": "data.csv: has no rows"}, "failed", "mend"),
        (3, {"reason": "rank 20 pairs"}, "waiting", "rank 20 pairs"),
        (143, {}, "queued", "SIGTERM"),
        (137, {"signal": 9}, "queued", "memory"),
        (139, {"signal": 11}, "queued", "139"),
    ],
)
def test_what_an_exit_code_means(service, code, fields, state, says):
    job, dispatcher, attempt = started(service)
    service.cluster.finish(attempt, code, **fields)
    service.want(job, "run")
    dispatcher.lead = lambda: None  # nothing is scheduled anew
    dispatcher.step()
    assert service.job(job).state == state
    assert says in service.events(job)[-1].data["reason"]


def test_a_lost_node_is_retried_until_the_limit(service):
    job, dispatcher, attempt = started(service, max_retries=2)
    for _ in range(2):
        service.cluster.vanish(attempt)
        for _ in range(3):
            dispatcher.step()
        attempt = service.cluster.of(job)
        assert service.cluster.begin(attempt)
        dispatcher.step()
    service.cluster.vanish(attempt)
    for _ in range(3):
        dispatcher.step()
    row = service.job(job)
    assert (row.state, row.attempt, row.retries) == ("failed", 3, 2)
    assert "node was lost; 3 attempts" in row.reason


def test_retries_wait_longer_each_time(service):
    job, _, attempt = started(service)
    dispatcher = service.dispatcher(Pace(settle=0, absent=0, backoff=40))
    with service.store.writing() as session:
        session.execute(update(Job).values(retries=2, lease=""))
    service.cluster.vanish(attempt)
    for _ in range(3):
        dispatcher.step()
    row = service.job(job)
    assert row.state == "queued"
    assert 150 < (row.not_before - row.updated_at).total_seconds() <= 160
    dispatcher.step()
    assert service.job(job).state == "queued"


def test_nothing_of_an_old_attempt_lives_when_the_next_begins(service):
    """An outcome that asks for another attempt is acted on when the cluster says that nothing runs any more."""
    job, dispatcher, attempt = started(service)
    alive = attempt.status
    service.cluster.finish(attempt, 143, why="time-limit")
    attempt.status = alive
    service.cluster.tell(attempt, "checkpoint", step=3)
    dispatcher.step()
    assert (service.job(job).state, attempt.kills) == ("running", 1)
    dispatcher.step()
    assert service.states(job)[-1] == "queued"


class TestAClusterThatStartsAnAttemptAgain:
    """As Slurm does after a preemption, for which the former start saved, ended, and left its outcome."""

    @pytest.fixture
    def preempted(self, service):
        job, dispatcher, attempt = started(service)
        service.cluster.preempt(attempt)
        return job, dispatcher, attempt

    def test_it_is_left_alone_while_it_waits_and_when_it_runs(self, service, preempted):
        job, dispatcher, attempt = preempted
        for _ in range(3):
            dispatcher.step()
        assert service.cluster.begin(attempt)
        for _ in range(3):
            dispatcher.step()
        assert (service.job(job).state, service.job(job).attempt, attempt.kills) == ("running", 1, 0)
        service.cluster.finish(attempt, 0)
        dispatcher.step()
        assert service.job(job).state == "succeeded"

    def test_what_its_former_start_said_is_not_taken_for_the_end_of_the_last(self, service, preempted):
        job, dispatcher, attempt = preempted
        service.cluster.finish(attempt, 2, reason="of the former start", start=0)
        attempt.status = Status(state="pending")
        assert service.cluster.begin(attempt)
        service.cluster.vanish(attempt)
        dispatcher.lead = lambda: None  # nothing is scheduled anew
        for _ in range(3):
            dispatcher.step()
        assert service.states(job)[-1] == "queued"
        assert "node was lost" in service.events(job)[-1].data["reason"]

    def test_what_has_ended_is_never_started_again(self, service, preempted):
        """The cluster can't be asked: a cancelled job ends by what its attempt said, which is to begin again."""
        job, dispatcher, attempt = preempted
        service.cluster.unreachable = True
        service.want(job, "cancel")
        for _ in range(2):
            dispatcher.step()
        assert service.job(job).state == "cancelled"
        assert (attempt.folder / "closed.json").exists()


class TestALauncherWithAFault:
    """A third party's, say, which raises what no launcher may."""

    def test_a_job_that_it_can_not_launch_holds_no_other_up(self, service):
        broken, whole = service.submit(max_retries=0, priority=1), service.submit()
        launch = service.cluster.launch

        def faulty(one):
            if broken in one.name:
                raise KeyError("secret-detail")
            return launch(one)

        service.cluster.launch = faulty
        service.dispatcher().step()
        assert service.job(whole).handle
        row = service.job(broken)
        assert row.state == "failed"
        assert "its launcher failed (KeyError)" in row.reason
        assert "secret-detail" not in row.reason

    def test_a_job_that_it_can_not_find_holds_no_other_up(self, service):
        service.cluster.loses_answers = True
        jobs = [service.submit() for _ in range(2)]
        service.dispatcher().step()
        service.cluster.loses_answers = False
        find = service.cluster.find

        def faulty(one):
            if jobs[0] in one.name:
                raise KeyError
            return find(one)

        service.cluster.find = faulty
        with service.store.writing() as session:
            session.execute(update(Job).values(lease="", wanted="cancel"))
        dispatcher = service.dispatcher()
        for _ in range(3):
            dispatcher.step()
        assert service.job(jobs[1]).state == "cancelled"

    def test_outcomes_count_although_it_can_not_say_how_attempts_are(self, service):
        job, dispatcher, attempt = started(service)

        def faulty(attempts):
            raise KeyError

        service.cluster.statuses = faulty
        dispatcher.step()
        assert service.job(job).state == "running"
        service.cluster.finish(attempt, 0)
        dispatcher.step()
        assert service.job(job).state == "succeeded"
        assert [event.data["text"] for event in service.events(job) if event.kind == "notice"] == [
            "cluster can't be asked now, and this job is left as it is: its launcher failed (KeyError)"
        ]


class TestMoney:
    """36 USD an hour; an attempt of sixteen minutes costs 9.60."""

    def after_its_time_limit(self, tmp_path, **fields):
        service = Service(tmp_path, hourly_usd=36.0, limits=fields.pop("limits", {}))
        job, dispatcher, attempt = started(service, resources=Resources(minutes=16), usd=9.6, **fields)
        service.cluster.tell(attempt, "checkpoint", step=1)
        return service, job, dispatcher, attempt

    def end(self, service, attempt, **fields):
        os.utime(attempt.folder / "claimed-0.json", (time.time() - 960,) * 2)
        service.cluster.finish(attempt, 143, **fields)

    @pytest.mark.parametrize(
        "fields", [{"limits": {"job_usd": 10.0}}, {"estimate": {"limit_usd": 19.0}}, {"limits": {"job_usd": 19.0}}]
    )
    def test_a_job_goes_on_after_its_time_limit_only_as_far_as_its_money_reaches(self, tmp_path, fields):
        service, job, dispatcher, attempt = self.after_its_time_limit(tmp_path, **fields)
        self.end(service, attempt, why="time-limit")
        dispatcher.step()
        row = service.job(job)
        assert (row.state, row.attempt) == ("failed", 1)
        assert row.usd == pytest.approx(9.6, abs=0.1)
        assert row.reason.startswith("its time limit of 16 minutes was reached; it has cost 9.6")
        assert row.reason.endswith("retry it to go on from its checkpoint")

    @pytest.mark.parametrize("fields", [{}, {"limits": {"job_usd": 20.0}}])
    def test_it_goes_on_where_there_is_money(self, tmp_path, fields):
        service, job, dispatcher, attempt = self.after_its_time_limit(tmp_path, **fields)
        self.end(service, attempt, why="time-limit")
        dispatcher.step()
        assert service.states(job)[-1] == "queued"

    def test_a_machines_failure_stops_it_only_when_the_money_is_spent(self, tmp_path):
        service, job, dispatcher, attempt = self.after_its_time_limit(tmp_path, limits={"job_usd": 15.0})
        self.end(service, attempt)
        dispatcher.step()
        assert service.states(job)[-1] == "queued"
        dispatcher.step()
        attempt = service.cluster.of(job)
        service.cluster.begin(attempt)
        dispatcher.step()
        self.end(service, attempt)
        dispatcher.step()
        assert service.job(job).state == "failed"
        assert "it has cost 19.2" in service.job(job).reason


def test_a_time_limit_goes_on_only_from_something_saved(service):
    job, dispatcher, attempt = started(service, resources=Resources(minutes=5))
    assert json.loads((attempt.folder / "attempt.json").read_text())["time_limit"] == 5
    service.cluster.tell(attempt, "checkpoint", step=3)
    service.cluster.finish(attempt, 143, why="time-limit")
    dispatcher.step()
    assert service.states(job)[-1] == "queued"
    dispatcher.step()
    attempt = service.cluster.of(job)
    service.cluster.begin(attempt)
    service.cluster.tell(attempt, "step", step=4)
    service.cluster.finish(attempt, 143, why="time-limit")
    dispatcher.step()
    row = service.job(job)
    assert (row.state, row.retries) == ("failed", 0)
    assert "5 minutes" in row.reason
    assert "checkpoint_every" in row.reason


def test_the_run_s_record_speaks_for_an_attempt_killed_after_its_run(service):
    job, dispatcher, attempt = started(service)
    attempt.run.mkdir()
    (attempt.run / "run.json").write_text('{"name": "x", "state": "succeeded"}')
    service.cluster.vanish(attempt, "killed")
    dispatcher.step()
    dispatcher.step()
    assert service.job(job).state == "succeeded"


def test_an_outcome_beats_what_the_cluster_says(service):
    job, dispatcher, attempt = started(service)
    service.cluster.finish(attempt, 0)
    service.cluster.vanish(attempt)
    dispatcher.step()
    assert service.job(job).state == "succeeded"


class TestWhatPeopleWant:
    @pytest.mark.parametrize(
        ("wanted", "between", "end"), [("pause", "pausing", "paused"), ("cancel", "cancelling", "cancelled")]
    )
    def test_a_running_job_is_asked_to_save(self, service, wanted, between, end):
        job, dispatcher, attempt = started(service)
        service.want(job, wanted)
        dispatcher.step()
        assert service.job(job).state == between
        assert attempt.asked_to_stop == 1
        service.cluster.finish(attempt, 143)
        dispatcher.step()
        assert service.job(job).state == end
        assert attempt.kills == 0

    def test_one_that_does_not_stop_is_killed(self, service):
        job, dispatcher, attempt = started(service)
        dispatcher = service.dispatcher(Pace(settle=0, cancelling=0, again=0, absent=0))
        with service.store.writing() as session:
            session.execute(update(Job).values(lease=""))
        service.want(job, "cancel")
        for _ in range(4):
            dispatcher.step()
        assert attempt.kills
        assert service.job(job).state == "cancelled"

    @pytest.mark.parametrize(("wanted", "end"), [("pause", "paused"), ("cancel", "cancelled")])
    def test_one_that_has_not_begun_never_begins(self, service, wanted, end):
        job = service.submit()
        dispatcher = service.dispatcher()
        dispatcher.step()
        attempt = service.cluster.of(job)
        service.want(job, wanted)
        for _ in range(3):
            dispatcher.step()
        assert service.job(job).state == end
        assert not service.cluster.begin(attempt)

    def test_one_whose_launch_was_not_answered_never_begins(self, service):
        service.cluster.loses_answers = True
        job = service.submit()
        service.dispatcher().step()
        service.want(job, "cancel")
        with service.store.writing() as session:
            session.execute(update(Job).values(lease=""))
        other = service.dispatcher()
        for _ in range(3):
            other.step()
        assert service.job(job).state == "cancelled"
        assert not service.cluster.begin(service.cluster.of(job))

    def test_who_asked_is_who_ended_it(self, service):
        job, dispatcher, attempt = started(service)
        with service.store.writing() as session:
            row = lock_job(session, job)
            row.wanted = "cancel"
            append_event(session, row, "asked", {"wanted": "cancel", "by": "key:7"})
        dispatcher.step()
        service.cluster.finish(attempt, 143)
        dispatcher.step()
        assert (service.job(job).state, service.job(job).ended_by) == ("cancelled", "key:7")

    def test_success_counts_although_it_was_to_be_cancelled(self, service):
        job, dispatcher, attempt = started(service)
        service.want(job, "cancel")
        dispatcher.step()
        service.cluster.finish(attempt, 0)
        dispatcher.step()
        assert service.job(job).state == "succeeded"

    def test_a_pausing_job_may_be_cancelled_and_may_go_on(self, service):
        job, dispatcher, attempt = started(service)
        service.want(job, "pause")
        dispatcher.step()
        service.want(job, "run")
        service.cluster.finish(attempt, 143)
        dispatcher.step()
        assert service.states(job)[-3:] == ["pausing", "paused", "queued"]
        dispatcher.step()
        service.want(job, "pause")
        dispatcher.step()
        service.want(job, "cancel")
        dispatcher.step()
        dispatcher.step()
        assert service.states(job)[-2:] == ["cancelling", "cancelled"]

    def test_a_paused_job_goes_on_in_a_new_attempt(self, service):
        job, dispatcher, attempt = started(service)
        service.want(job, "pause")
        dispatcher.step()
        service.cluster.finish(attempt, 143)
        dispatcher.step()
        with service.store.writing() as session:
            row = lock_job(session, job)
            transition(session, row, "queued", by="key:1")
        dispatcher.step()
        assert service.job(job).state == "starting"
        assert service.job(job).attempt == 2


class TestClusterThatCanNotBeAsked:
    def test_nothing_changes_but_one_notice(self, service):
        job, dispatcher, attempt = started(service)
        before = service.job(job)
        service.cluster.vanish(attempt)
        service.cluster.unreachable = True
        for _ in range(3):
            dispatcher.step()
        after = service.job(job)
        assert (after.state, after.handle) == (before.state, before.handle)
        assert [event.kind for event in service.events(job)][-2:] == ["state", "notice"]

    def test_the_run_is_followed_all_the_same(self, service):
        job, dispatcher, attempt = started(service)
        service.cluster.unreachable = True
        service.cluster.tell(attempt, "step", step=1)
        service.cluster.finish(attempt, 0)
        dispatcher.step()
        assert service.job(job).state == "succeeded"

    def test_a_lost_answer_starts_nothing_twice(self, service):
        job = service.submit()
        dispatcher = service.dispatcher()
        service.cluster.loses_answers = True
        dispatcher.step()
        service.cluster.loses_answers = False
        dispatcher.step()
        assert len(service.cluster.attempts) == 1
        assert service.job(job).handle

    def test_one_that_takes_no_jobs_now_is_asked_about_those_that_it_has(self, service):
        """As an overloaded controller does, whose answers to a submission take too long."""
        job, dispatcher, attempt = started(service)

        def busy(launch):
            raise LauncherUnreachable.at("slurm", "sbatch gave no answer in 30 seconds")

        launch, service.cluster.launch = service.cluster.launch, busy
        new = service.submit()
        service.want(job, "pause")
        dispatcher.step()
        assert (service.job(job).state, attempt.asked_to_stop) == ("pausing", 1)
        assert (service.job(new).state, service.job(new).handle) == ("starting", "")
        service.cluster.launch = launch
        dispatcher.step()
        assert service.job(new).handle

    def test_it_is_asked_once_for_all_jobs(self, service):
        for _ in range(5):
            service.submit()
        dispatcher = service.dispatcher()
        dispatcher.step()
        service.cluster.questions = 0
        dispatcher.step()
        assert service.cluster.questions == 1


def test_what_can_not_be_started_is_tried_again_and_then_fails(service):
    job = service.submit(max_retries=1)
    service.cluster.refuses = "no such partition"
    dispatcher = service.dispatcher()
    for _ in range(3):
        dispatcher.step()
    row = service.job(job)
    assert (row.state, row.attempt) == ("failed", 2)
    assert "no such partition" in row.reason


def test_secrets_reach_the_attempt_and_nothing_else(service):
    job = service.submit(secrets=["TOKEN"], environment={"A": "b"})
    (service.settings.folder / "jobs" / job / "secrets.json").write_text('{"TOKEN": "hush"}')
    service.dispatcher().step()
    launch = service.cluster.of(job).launch
    assert launch.environment == {"A": "b", "TOKEN": "hush", "TUTELAGE_ATTEMPT": f"tutelage-{job}-1"}
    assert "hush" not in (launch.folder / "attempt.json").read_text()


def test_an_attempt_launched_twice_is_followed_where_it_runs(service):
    """A launch of a dispatcher that died arrives late: the second of two jobs of the cluster ends at once."""
    job = service.submit()
    service.dispatcher().step()
    winner = service.cluster.of(job)
    late = service.cluster.launch(winner.launch)
    with service.store.writing() as session:
        session.execute(update(Job).values(handle=late))
    assert service.cluster.begin(winner)
    assert not service.cluster.begin(service.cluster.attempts[late])
    dispatcher = service.dispatcher()
    with service.store.writing() as session:
        session.execute(update(Job).values(lease=""))
    dispatcher.step()
    dispatcher.step()
    assert service.job(job).state == "running"
    assert service.cluster.attempts[service.job(job).handle] is winner
    assert winner.kills == 0


class TestSeveralDispatchers:
    def test_a_job_is_followed_by_one(self, service):
        job, first, attempt = started(service)
        second = service.dispatcher()
        service.cluster.tell(attempt, "step", step=1)
        second.step()
        assert not [event for event in service.events(job) if event.kind == "step"]
        first.step()
        assert [event.kind for event in service.events(job)][-1] == "step"

    def test_a_released_job_is_taken_over(self, service):
        job, first, attempt = started(service)
        first.release()
        second = service.dispatcher()
        service.cluster.finish(attempt, 0)
        second.step()
        assert service.job(job).state == "succeeded"

    def test_one_that_was_held_up_overwrites_nothing(self, service):
        job, first, attempt = started(service)
        jobs = first._jobs("cluster")
        first.release()
        second = service.dispatcher()
        service.cluster.finish(attempt, 0)
        second.step()
        first._jobs = lambda name: jobs
        service.cluster.vanish(attempt)
        (attempt.folder / "outcome.json").unlink()
        for _ in range(3):
            first.follow("cluster")
        assert service.job(job).state == "succeeded"

    def test_a_dead_process_s_jobs_are_taken_over_at_once(self, service):
        job, first, _ = started(service)
        place, _, _, rest = first.token.split("-")
        with service.store.writing() as session:
            session.execute(update(Job).values(lease=f"{place}-999999999-1-{rest}"))
        second = service.dispatcher()
        second.step()
        assert service.job(job).lease == second.token

    def test_local_jobs_are_left_to_their_machine(self, tmp_path):
        service = Service(tmp_path, cluster=Cluster(local=True))
        job = service.submit()
        here = service.dispatcher(machine="here")
        here.step()
        assert service.job(job).machine == "here"
        here.release()
        there = service.dispatcher(machine="there")
        there.step()
        assert service.job(job).lease == ""
        service.dispatcher(machine="here").step()
        assert service.job(job).lease

    def test_what_a_machine_left_queued_goes_on_wherever_its_folder_is(self, tmp_path):
        service = Service(tmp_path, cluster=Cluster(local=True))
        job = service.submit()
        here = service.dispatcher(machine="here")
        here.step()
        attempt = service.cluster.of(job)
        service.cluster.begin(attempt)
        here.step()
        service.cluster.vanish(attempt, "killed")
        here.lead = lambda: None  # the machine goes away before it starts the next attempt
        for _ in range(2):
            here.step()
        assert (service.job(job).state, service.job(job).machine) == ("queued", "here")
        elsewhere = service.dispatcher(machine="elsewhere")
        elsewhere._scheduler._is_here = lambda job_id: False
        elsewhere.step()
        assert service.job(job).state == "queued"
        service.dispatcher(machine="there").step()
        assert (service.job(job).state, service.job(job).machine) == ("starting", "there")


class TestEvents:
    def test_a_torn_line_waits(self, service):
        job, dispatcher, attempt = started(service)
        attempt.run.mkdir()
        file = attempt.run / "events.jsonl"
        file.write_bytes(b'{"event": "step", "step": 1}\n{"event": "st')
        dispatcher.step()
        with file.open("ab") as more:
            more.write(b'ep", "step": 2}\nno json\n{"event": "notice", "text": "a\\u0000b"}\n')
        dispatcher.step()
        told = [(event.kind, event.data) for event in service.events(job)][2:]
        assert told[:2] == [("step", {"step": 1}), ("step", {"step": 2})]
        assert told[2][0] == "notice"
        assert "\0" not in told[2][1]["text"]

    def test_a_line_without_end_does_not_stop_the_others(self, service):
        job, dispatcher, attempt = started(service)
        attempt.run.mkdir()
        line = b'{"event": "step", "text": "' + b"x" * 3_000_000 + b'"}\n'
        (attempt.run / "events.jsonl").write_bytes(line + b'{"event": "step", "step": 2}\n')
        dispatcher.step()
        assert [event.kind for event in service.events(job)][2:] == ["notice", "step"]

    def test_a_run_can_not_pretend_to_be_the_service(self, service):
        job, dispatcher, attempt = started(service)
        service.cluster.tell(attempt, "state", to="succeeded")
        dispatcher.step()
        assert service.states(job)[-1] == "running"

    def test_paths_of_the_server_are_not_told(self, service):
        job, dispatcher, attempt = started(service)
        service.cluster.tell(attempt, "run_started", run=str(attempt.run), path=f"{attempt.run}/stages/a")
        dispatcher.step()
        assert service.events(job)[-1].data["path"] == "run/stages/a"
        assert str(service.settings.folder) not in json.dumps(service.events(job)[-1].data)


def test_what_an_attempt_used_is_counted_once(tmp_path):
    service = Service(tmp_path, hourly_usd=36.0)
    job, dispatcher, attempt = started(service, resources=Resources(gpus=2, nodes=3))
    service.cluster.finish(attempt, 0)
    os.utime(attempt.folder / "claimed-0.json", (time.time() - 100, time.time() - 100))
    dispatcher.step()
    dispatcher.step()
    with service.store.reading() as session:
        usage = session.query(Usage).one()
        tenant = session.query(Tenant).one()
    assert usage.gpu_seconds == pytest.approx(600, rel=0.02)
    assert usage.usd == service.job(job).usd == pytest.approx(6.0, rel=0.02)
    assert tenant.used == pytest.approx(600, rel=0.02)


def test_a_store_that_is_gone_is_waited_for(service):
    import threading

    job = service.submit()
    dispatcher = service.dispatcher(Pace(interval=0.01))
    lead, calls = dispatcher.lead, []

    def failing() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise StoreUnavailable.at("the database", "is gone")
        lead()

    dispatcher.lead = failing
    stop = threading.Event()
    thread = threading.Thread(target=dispatcher.run, args=(stop,))
    thread.start()
    try:
        until(lambda: service.job(job).state == "starting")
    finally:
        stop.set()
        thread.join()
    assert service.job(job).lease == ""
    assert service.job(job).state not in TERMINAL
