"""What a busy server answers: advice while 1,000 jobs are queued and 200 event streams are open, on one core.

    python bench/service_load.py [--jobs 1000] [--streams 200] [--requests 36000] [--out results.json]

The server (with its dispatcher) is held to the first core, the load comes from another. The jobs wait for one that is
paused, so that none trains beside the measurement, and the dispatcher looks at all of them in every loop. Afterwards
every job must still be queued, and every stream must have told its events without a gap.

36,000 requests are an hour's at ten a second; the server's memory is read before, halfway and after.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import httpx
import psutil

SITUATION = {
    "task": "Answer customers' questions about invoices, always as JSON",
    "examples": 2000,
    "example_quality": "clean",
    "task_breadth": "narrow",
    "needs_strict_format": True,
    "traffic": {"requests_per_month": 200_000, "prompt_tokens": 1500, "output_tokens": 200},
}
RECIPE = {
    "name": "load",
    "model": "starter:smollm2-135m-instruct",
    "stages": [{"name": "tune", "phase": "sft", "trainer": {"max_steps": 1, "max_length": 64, "tokens_per_step": 64}}],
}
ROW = {"messages": [{"role": "user", "content": "Say something."}, {"role": "assistant", "content": "Something."}]}


@click.command()
@click.option("--jobs", default=1000, show_default=True)
@click.option("--streams", default=200, show_default=True)
@click.option("--requests", default=36_000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the figures as JSON.")
def main(jobs: int, streams: int, requests: int, out: Path | None) -> None:
    """Measure, and print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        server, url, key = _start(Path(folder))
        try:
            figures = asyncio.run(_measure(url, key, server.pid, jobs, streams, requests))
        finally:
            server.terminate()
            server.wait()
    for name, value in figures.items():
        print(f"{name:42} {value}")
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if figures["jobs still queued"] != jobs or figures["streams with a gap"]:
        sys.exit("something was lost")


def _start(folder: Path) -> tuple[subprocess.Popen[str], str, str]:
    limits = {"requests_per_minute": 100_000_000, "active_jobs": 100_000}
    settings = folder / "settings.json"
    settings.write_text(json.dumps({"home": str(folder / "home"), "port": 0, "limits": limits}))
    environment = {**os.environ, "TUTELAGE_CONFIG": str(folder / "config")}
    server = subprocess.Popen(
        [sys.executable, "-m", "tutelage", "serve", "--settings", str(settings), "--json"],
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("w"),
        text=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
    )
    os.sched_setaffinity(0, set(range(1, os.cpu_count() or 1)) or {0})
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())["url"]
    known = json.loads((folder / "config" / "servers.json").read_text())
    return server, url, known["servers"][known["default"]]["key"]


async def _measure(url: str, key: str, pid: int, jobs: int, streams: int, requests: int) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=streams + 20)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, limits=limits, trust_env=False) as http:
        alone = await _advice(http, 500)
        ids = await _queue(http, jobs)
        seen: dict[str, list[int]] = {job: [] for job in ids[:streams]}
        following = [asyncio.create_task(_follow(http, job, numbers)) for job, numbers in seen.items()]
        await asyncio.sleep(5)
        before, began = _memory(pid), time.monotonic()
        first = await _advice(http, requests // 2)
        half = _memory(pid)
        second = await _advice(http, requests - requests // 2)
        after, seconds = _memory(pid), time.monotonic() - began
        listed = await _all(http, "/v1/jobs?state=queued&limit=200")
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    times = first + second
    return {
        "advice alone, median ms": _ms(statistics.median(alone)),
        "advice alone, p99 ms": _ms(_quantile(alone, 0.99)),
        "advice under load, median ms": _ms(statistics.median(times)),
        "advice under load, p99 ms": _ms(_quantile(times, 0.99)),
        "advice under load, slowest ms": _ms(max(times)),
        "requests": len(times),
        "requests per second, one at a time": round(len(times) / seconds, 1),
        "memory before, MiB": before,
        "memory halfway, MiB": half,
        "memory after, MiB": after,
        "jobs still queued": len(listed),
        "streams open": len(seen),
        "streams with a gap": sum(numbers != list(range(1, len(numbers) + 1)) for numbers in seen.values()),
        "events told": sum(map(len, seen.values())),
    }


async def _advice(http: httpx.AsyncClient, count: int) -> list[float]:
    body, times = json.dumps(SITUATION).encode(), []
    for _ in range(count):
        began = time.perf_counter()
        answer = await http.post("/v1/advice", content=body, headers={"content-type": "application/json"})
        times.append(time.perf_counter() - began)
        answer.raise_for_status()
    return times


async def _queue(http: httpx.AsyncClient, count: int) -> list[str]:
    """Queue jobs that wait for one which is paused before it can begin."""
    data = (json.dumps(ROW) + "\n").encode() * 20
    made = (await http.post("/v1/files", json={"name": "rows.jsonl", "bytes": len(data)})).raise_for_status().json()
    content = {"upload-offset": "0", "content-type": "application/offset+octet-stream"}
    (await http.patch(f"/v1/files/{made['id']}/content", content=data, headers=content)).raise_for_status()
    recipe = json.loads(json.dumps(RECIPE))
    recipe["stages"][0]["data"] = f"file:{made['id']}"
    first = (await http.post("/v1/jobs", json={"recipe": recipe})).raise_for_status().json()
    (await http.post(f"/v1/jobs/{first['id']}/pause")).raise_for_status()
    ids: list[str] = []
    for start in range(0, count, 200):
        seeds = list(range(start, min(start + 200, count)))
        sweep = {"recipe": recipe, "after": [first["id"]], "sweep": {"stages.tune.trainer.seed": seeds}}
        ids += [job["id"] for job in (await http.post("/v1/jobs", json=sweep)).raise_for_status().json()["jobs"]]
    return ids


async def _follow(http: httpx.AsyncClient, job: str, numbers: list[int]) -> None:
    async with http.stream("GET", f"/v1/jobs/{job}/events", headers={"accept": "text/event-stream"}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("id:"):
                numbers.append(int(line[3:]))


async def _all(http: httpx.AsyncClient, path: str) -> list[Any]:
    items: list[Any] = []
    cursor = ""
    while True:
        page = (await http.get(path + (f"&cursor={cursor}" if cursor else ""))).raise_for_status().json()
        items += page["items"]
        if not (cursor := page["next"]):
            return items


def _memory(pid: int) -> float:
    return round(psutil.Process(pid).memory_info().rss / 2**20, 1)


def _quantile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


if __name__ == "__main__":
    main()
