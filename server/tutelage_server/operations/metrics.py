"""The server's metrics, as Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from tutelage_server.jobs.states import ALLOWED, TERMINAL
from tutelage_server.refusals import status_of
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Job, StoredFile, now

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """What is counted while the server runs, and what the store knows when it is asked."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_StoreCollector(store))
        self.seconds = Histogram(
            "tutelage_request_seconds",
            "From a request's arrival to the first byte of its answer.",
            ("method", "path"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.requests = Counter(
            "tutelage_requests", "Requests by answer.", ("method", "path", "status"), registry=self.registry
        )
        self.open = Gauge(
            "tutelage_requests_open", "Requests that are being answered, streams too.", registry=self.registry
        )


class _StoreCollector(Collector):
    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering asks no store."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Jobs by state, how long the oldest waits, and files."""
        with self._store.reading() as session:
            counts = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).tuples().all())
            oldest = session.scalar(select(func.min(Job.created_at)).where(Job.state == "queued"))
            files, size = session.execute(
                select(func.count(), func.coalesce(func.sum(StoredFile.bytes), 0)).select_from(StoredFile)
            ).one()
        jobs = GaugeMetricFamily("tutelage_jobs", "Jobs by state.", labels=["state"])
        for state in ALLOWED:
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        active = sum(count for state, count in counts.items() if state not in TERMINAL)
        yield GaugeMetricFamily("tutelage_jobs_active", "Jobs that have not ended.", value=active)
        waits = (now() - oldest).total_seconds() if oldest else 0.0
        yield GaugeMetricFamily("tutelage_queue_oldest_seconds", "How long the oldest queued job waits.", value=waits)
        yield GaugeMetricFamily("tutelage_files", "Files.", value=files)
        yield GaugeMetricFamily("tutelage_files_bytes", "What the files take.", value=int(size))


class Measured(ASGIMiddleware):
    """Counts requests and their durations by path template, which no client can make many of."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Go on, and count."""
        begun, method, path = time.perf_counter(), scope["method"], scope["path_template"]  # type: ignore[typeddict-item]

        def count(status: int) -> None:
            self._metrics.seconds.labels(method, path).observe(time.perf_counter() - begun)
            self._metrics.requests.labels(method, path, str(status)).inc()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        with self._metrics.open.track_inprogress():
            try:
                await next_app(scope, receive, counting)
            except Exception as error:  # refused before its handler
                count(status_of(error))
                raise
