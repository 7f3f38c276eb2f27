"""What the schedule promises."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from clusters import Cluster, Service
from databases import database, postgres, postgres_cluster  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st

from tutelage.launcher import Capacity, Resources
from tutelage_server.jobs.scheduling import MOST_STARTING, PATIENCE, Busy, Queued, decayed, plan

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def queued(name: str, tenant: str = "a", minutes: float = 0, **fields) -> Queued:
    """A job that was queued so many minutes ago."""
    resources = Resources(**{key: fields.pop(key) for key in ("gpus", "cpus", "memory_gib") if key in fields})
    fields = {"key": f"{tenant}-key", "launcher": "here", "since": NOON - timedelta(minutes=minutes), **fields}
    return Queued(id=name, tenant=tenant, resources=resources, **fields)


def starts(jobs, busy=(), cpus=8, gpus=0, memory=64.0, used=None) -> list[str]:
    capacities = {"here": Capacity(cpus=cpus, gpus=gpus, memory_gib=memory)}
    return [start.job for start in plan(jobs, busy, capacities, used or {}, NOON)]


def test_higher_priorities_come_first_then_older_ones():
    jobs = [
        queued("new"),
        queued("old", minutes=5),
        queued("urgent", priority=1),
        queued("idle", priority=-1, minutes=9),
    ]
    assert starts(jobs) == ["urgent", "old", "new", "idle"]


def test_tenants_take_turns():
    jobs = [queued(f"a{n}", "a", minutes=9 - n) for n in range(3)] + [queued(f"b{n}", "b") for n in range(2)]
    assert starts(jobs) == ["a0", "b0", "a1", "b1", "a2"]


def test_who_runs_something_comes_after_who_runs_nothing():
    busy = [Busy(tenant="a", key="a-key", launcher="here", resources=Resources())]
    assert starts([queued("a", "a", minutes=9), queued("b", "b")], busy, cpus=2) == ["b"]


def test_who_used_much_of_late_comes_last():
    assert starts([queued("a", "a", minutes=9), queued("b", "b")], used={"a": 1000.0, "b": 10.0}) == ["b", "a"]


def test_keys_of_a_tenant_take_turns():
    jobs = [queued("x1", key="x", minutes=9), queued("x2", key="x", minutes=8), queued("y1", key="y")]
    assert starts(jobs) == ["x1", "y1", "x2"]


def test_a_job_that_does_not_fit_holds_nobody_up():
    jobs = [queued("large", cpus=4, minutes=20, priority=5), queued("small")]
    assert starts(jobs, cpus=3) == ["small"]


def test_a_large_job_is_not_starved():
    busy = [Busy(tenant="z", key="z", launcher="here", resources=Resources(cpus=2))]
    late = (PATIENCE + timedelta(minutes=1)).total_seconds() / 60
    assert starts([queued("large", cpus=4, minutes=late), queued("small")], busy, cpus=4) == []
    assert starts([queued("impossible", cpus=9, minutes=late), queued("small")], busy, cpus=4) == ["small"]


def test_a_cluster_with_a_queue_of_its_own_gets_some_at_a_time():
    jobs = [queued(f"{n:03}") for n in range(100)]
    assert len(plan(jobs, [], {"here": None}, {}, NOON)) == MOST_STARTING


def test_what_was_used_halves_every_day():
    assert decayed(800.0, NOON - timedelta(days=3), NOON) == pytest.approx(100.0)
    assert decayed(800.0, NOON + timedelta(days=3), NOON) == 800.0


jobs_of_any_kind = st.lists(
    st.builds(
        lambda tenant, gpus, cpus, memory, priority, minutes: (tenant, gpus, cpus, memory, priority, minutes),
        st.sampled_from("abc"),
        st.integers(0, 4),
        st.integers(1, 6),
        st.sampled_from([None, 1.0, 8.0, 30.0]),
        st.integers(-2, 2),
        st.integers(0, 29),
    ),
    max_size=30,
)


@given(jobs_of_any_kind, st.integers(1, 8), st.integers(0, 4), st.lists(st.integers(0, 3), unique=True, max_size=2))
def test_laws_of_the_plan(drawn, cpus, gpus, taken):
    jobs = {
        str(number): queued(str(number), tenant, minutes, gpus=gpu, cpus=cpu, memory_gib=memory, priority=priority)
        for number, (tenant, gpu, cpu, memory, priority, minutes) in enumerate(drawn)
    }
    busy = [Busy(tenant="z", key="z", launcher="elsewhere", resources=Resources(gpus=len(taken)), devices=taken)]
    decided = plan(jobs.values(), busy, {"here": Capacity(cpus=cpus, gpus=gpus, memory_gib=40)}, {}, NOON)
    chosen = [jobs[start.job] for start in decided]
    devices = [device for start in decided for device in start.devices]
    assert len(set(devices)) == len(devices)
    assert set(devices) <= set(range(gpus)) - set(taken)
    assert all(len(start.devices) == jobs[start.job].resources.gpus for start in decided)
    assert sum(job.resources.cpus for job in chosen) <= cpus
    assert sum(job.resources.memory_gib or 0 for job in chosen) <= 40
    free_cpus = cpus - sum(job.resources.cpus for job in chosen)
    free_gpus = len(set(range(gpus)) - set(taken) - set(devices))
    free_memory = 40 - sum(job.resources.memory_gib or 0 for job in chosen)
    for job in jobs.values():
        if job not in chosen:  # nothing is left lying that would fit
            wanted = job.resources
            assert wanted.cpus > free_cpus or wanted.gpus > free_gpus or (wanted.memory_gib or 0) > free_memory


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(1, 15))
def test_shares_of_equals_differ_by_one_at_most(tenants, cpus):
    """Among tenants who still want something, none gets two jobs more than another."""
    jobs = [queued(f"{number:02}", tenant) for number, tenant in enumerate(tenants)]
    got = Counter(jobs[int(name)].tenant for name in starts(jobs, cpus=cpus))
    wanted = Counter(tenants)
    for one in wanted:
        for other in wanted:
            assert got[one] >= min(wanted[one], got[other] - 1)


class TestDependencies:
    def test_a_job_waits_for_all_that_it_comes_after(self, tmp_path):
        service = Service(tmp_path)
        first, second = service.submit(), service.submit()
        third = service.submit(after=[first, second])
        dispatcher = service.dispatcher()
        for job in (first, second):
            dispatcher.step()
            assert service.job(third).state == "queued"
            service.cluster.begin(service.cluster.of(job))
            service.cluster.finish(service.cluster.of(job), 0)
        dispatcher.step()
        dispatcher.step()
        assert service.job(third).state == "starting"

    @pytest.mark.parametrize(("code", "wanted", "state"), [(1, "run", "failed"), (143, "cancel", "cancelled")])
    def test_it_ends_as_they_do(self, tmp_path, code, wanted, state):
        service = Service(tmp_path)
        first = service.submit()
        second = service.submit(after=[first])
        third = service.submit(after=[second])
        dispatcher = service.dispatcher()
        dispatcher.step()
        service.want(first, wanted)
        service.cluster.begin(service.cluster.of(first))
        service.cluster.finish(service.cluster.of(first), code)
        for _ in range(3):
            dispatcher.step()
        assert [service.job(job).state for job in (first, second, third)] == [state] * 3
        assert first in service.job(second).reason
        assert len(service.cluster.attempts) == 1


def test_two_dispatchers_give_a_device_once(tmp_path, database):  # noqa: F811
    """Both decide at once, from threads, on either database."""
    import threading

    service = Service(tmp_path, database, Cluster(Capacity(cpus=100, gpus=3, memory_gib=1000)))
    jobs = [service.submit(resources=Resources(gpus=1)) for _ in range(8)]
    dispatchers = [service.dispatcher() for _ in range(4)]
    threads = [threading.Thread(target=dispatcher.lead) for dispatcher in dispatchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running = [service.job(job) for job in jobs if service.job(job).state == "starting"]
    assert sorted(device for job in running for device in job.devices) == [0, 1, 2]
    assert all(job.attempt == 1 for job in running)


def test_a_thousand_queued_jobs_are_one_question(tmp_path):
    """A look at a full machine reads the queue once and writes nothing."""
    from sqlalchemy import event

    service = Service(tmp_path, cluster=Cluster(Capacity(cpus=1, gpus=0, memory_gib=1)))
    for _ in range(50):
        service.submit()
    dispatcher = service.dispatcher()
    dispatcher.step()
    said: list[str] = []
    event.listen(service.store.engine, "before_cursor_execute", lambda *given: said.append(given[2]))
    dispatcher.step()
    assert len([text for text in said if text.startswith("SELECT")]) <= 6
    assert not [text for text in said if text.startswith(("UPDATE", "INSERT"))]
