"""The server's answers beside the same endpoints written with FastAPI and pydantic: one machine, one run, in turns.

    python bench/advice_beside_fastapi.py [--seconds N] [--rounds N] [--out results.json]

Both run under uvicorn with one worker, on one core, and are asked by the same load generator, which has another core
where there is one. Both call the same advisor on the same kept catalog. The server's side is the whole server: keys,
rates, usage, problem documents, ETags. FastAPI's side is the endpoint alone with a look at the key; its models are made
from the advisor's structs, field by field with their bounds. Of each endpoint:

- median and p99: milliseconds of an answer, asked over one connection, one question after the other;
- rps: answers a second over eight connections.

Situations are drawn at random and none comes twice in a round, so what is measured is advice and not a memory of it.
`advisor alone` is the time of the call that both make: no framework can be faster than that, so the ratio that matters
is also given without it (`beside it`: what the framework adds to the advisor's own time, at the median).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import click
import msgspec

CONNECTIONS = 8
KEY = "tut_bench"
ENDPOINTS = ("POST /v1/advice", "GET /v1/catalog", "POST /v1/estimates")


@click.group(invoke_without_command=True)
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Of each measurement.")
@click.option("--rounds", type=int, default=3, show_default=True, help="How often each contender has its turn.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write all figures as JSON.")
@click.pass_context
def main(ctx: click.Context, seconds: float, rounds: int, out: Path | None) -> None:
    """Let each contender have its turns, and print a table."""
    if ctx.invoked_subcommand:
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    alone = advisor_alone()
    figures: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in ENDPOINTS}
    for turn in range(rounds):
        for contender in ("tutelage", "fastapi")[:: 1 if turn % 2 == 0 else -1]:
            with serving(contender, cores[0]) as (port, key):
                for name in ENDPOINTS:
                    measured = asyncio.run(measure(port, key, name, seconds, seed=turn))
                    figures[name].setdefault(contender, []).append(measured)
    report(figures, alone, len(cores))
    if out:
        out.write_text(json.dumps({"advisor_alone_ms": alone, "figures": figures}, indent=1), encoding="utf-8")


def report(figures: dict[str, dict[str, list[dict[str, float]]]], alone: float, cores: int) -> None:
    """Medians over the turns."""
    click.echo(f"advisor alone: {alone:.2f} ms at the median; {cores} cores")
    for name, contenders in figures.items():
        best = {
            contender: {field: statistics.median(each[field] for each in turns) for field in turns[0]}
            for contender, turns in contenders.items()
        }
        click.echo(f"\n{name}")
        for contender, each in best.items():
            said = "  ".join(f"{field} {value:8.2f}" for field, value in each.items())
            beside = f"  beside it {each['median'] - alone:6.2f} ms" if name.endswith("advice") else ""
            click.echo(f"  {contender:9} {said}{beside}")
        click.echo(f"  ratio of answers a second: {best['tutelage']['rps'] / best['fastapi']['rps']:.2f}")


def situations(count: int, seed: int) -> list[dict[str, Any]]:
    """Situations as people describe them, each with some of the fields."""
    draw, made = random.Random(seed), []
    models = ("llama-3.1-8b", "qwen2.5-7b", "gpt-4o", "mistral-7b-v0.3")
    for number in range(count):
        fields = {
            "base_capability": draw.choice(("weak", "partial", "strong")),
            "examples": draw.randrange(20_000),
            "example_quality": draw.choice(("noisy", "clean", "reviewed")),
            "task_breadth": draw.choice(("narrow", "medium", "broad")),
            "needs_strict_format": draw.random() < 0.5,
            "needs_domain_knowledge": draw.choice(("none", "some", "deep")),
            "knowledge_changes": draw.choice(("never", "monthly", "daily")),
            "quality_critical": draw.random() < 0.5,
            "model": draw.choice(models),
            "hardware": {"gpu": draw.choice(("RTX 4090", "A100-80GB", "T4"))},
            "traffic": {"requests_per_month": draw.randrange(5_000_000), "prompt_tokens": draw.randrange(50, 4000)},
            "budget_usd": draw.choice((50, 500, 5000)),
        }
        kept = {name: value for name, value in fields.items() if draw.random() < 0.6}
        made.append({"task": f"question {seed}.{number}", **kept})
    return made


def estimates(count: int, seed: int) -> list[dict[str, Any]]:
    """Models and hardware to estimate."""
    draw = random.Random(seed)
    return [
        {
            "model": draw.choice(("llama-3.1-8b", "qwen2.5-7b", "qwen2.5-0.5b")),
            "adapter": draw.choice(("lora", "qlora", "full")),
            "gpu": draw.choice(("RTX 4090", "A100-80GB")),
            "seq_len": draw.choice((512, 1024, 4096)),
            "examples": draw.randrange(100, 100_000),
        }
        for _ in range(count)
    ]


def advisor_alone() -> float:
    """Milliseconds of the advisor's own call, at the median."""
    from tutelage_server.advice.answering import advise_in, world_of

    world, times = _today(world_of), []
    for situation in situations(400, seed=99):
        began = time.perf_counter()
        advise_in(world, situation)
        times.append(time.perf_counter() - began)
    return statistics.median(times[100:]) * 1e3


async def measure(port: int, key: str, endpoint: str, seconds: float, seed: int) -> dict[str, float]:
    """Latency over one connection, then answers a second over several."""
    method, _, path = endpoint.partition(" ")
    make = {"/v1/advice": situations, "/v1/estimates": estimates}.get(path)
    bodies = [msgspec.json.encode(each) for each in make(6000, seed)] if make else [b""] * 1000
    requests = [
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in bodies
    ]
    await ask(port, requests[:200], 1, seconds / 2)  # warm
    times = sorted(await ask(port, requests[200:], 1, seconds))
    began = time.perf_counter()
    count = len(await ask(port, requests[len(requests) // 2 :], CONNECTIONS, seconds))
    return {
        "median": statistics.median(times) * 1e3,
        "p99": times[min(len(times) - 1, int(len(times) * 0.99))] * 1e3,
        "rps": count / (time.perf_counter() - began),
    }


async def ask(port: int, requests: list[bytes], connections: int, seconds: float) -> list[float]:
    """Seconds that each answer took."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def one(first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        at = first
        while (began := time.perf_counter()) < until:
            writer.write(requests[at % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            times.append(time.perf_counter() - began)
            at += connections
        writer.close()

    await asyncio.gather(*(one(number) for number in range(connections)))
    return times


@contextlib.contextmanager
def serving(contender: str, core: int) -> Iterator[tuple[int, str]]:
    """A contender in a process of its own, on a core: its port and a key."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-W", "ignore", __file__, "serve", contender, home, str(core)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            for _ in range(400):
                with contextlib.suppress(OSError):
                    asyncio.run(_connect(said["port"]))
                    break
                time.sleep(0.05)
            yield said["port"], said["key"]
        finally:
            process.terminate()
            process.wait()


async def _connect(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


@main.command(hidden=True)
@click.argument("contender")
@click.argument("home")
@click.argument("core", type=int)
def serve(contender: str, home: str, core: int) -> None:
    """Run a contender."""
    import socket

    import uvicorn

    os.sched_setaffinity(0, {core})
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    app, key = tutelage_app(home) if contender == "tutelage" else (fastapi_app(), KEY)
    print(json.dumps({"port": listening.getsockname()[1], "key": key}), flush=True)
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, ws="none")
    uvicorn.Server(config).run(sockets=[listening])


def tutelage_app(home: str) -> tuple[Any, str]:
    """The whole server, with a key."""
    from tutelage_server.accounts.caller import SCOPES
    from tutelage_server.accounts.keys import make_key, tenant_named
    from tutelage_server.app import create_app
    from tutelage_server.serving import open_store
    from tutelage_server.settings import load_settings

    settings = load_settings(home=home, limits={"requests_per_minute": 10_000_000})
    store = open_store(settings)
    with store.writing() as session:
        key = make_key(session, tenant_named(session, "bench").id, "bench", SCOPES)[1]
    return create_app(settings, store), key


def fastapi_app() -> Any:
    """The same endpoints, as FastAPI's documentation would have them written."""
    from fastapi import Depends, FastAPI, HTTPException
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

    from tutelage_advisor.advice import Advice
    from tutelage_advisor.catalog import Catalog
    from tutelage_advisor.estimates import Estimate, EstimateRequest, estimate
    from tutelage_advisor.situation import Situation
    from tutelage_server.advice.answering import advise_in, world_of

    made: dict[type, Any] = {}
    asked, advice, request, estimated, known = (
        model_of(kind, made) for kind in (Situation, Advice, EstimateRequest, Estimate, Catalog)
    )

    # Coroutines, as in its tutorial: plain functions would be called in threads, which takes longer.
    async def check(given: HTTPAuthorizationCredentials = Depends(HTTPBearer())) -> None:  # noqa: B008
        if given.credentials != KEY:
            raise HTTPException(401)

    app = FastAPI(dependencies=[Depends(check)])

    async def give_advice(situation: Any) -> Any:
        return msgspec.to_builtins(advise_in(_today(world_of), situation.model_dump(exclude_none=True)))

    async def give_estimate(question: Any) -> Any:
        found = msgspec.convert(question.model_dump(), EstimateRequest)
        return msgspec.to_builtins(estimate(found, _today(world_of).catalog))

    async def show_catalog() -> Any:
        return msgspec.to_builtins(_today(world_of).catalog)

    give_advice.__annotations__ = {"situation": asked}
    give_estimate.__annotations__ = {"question": request}
    app.post("/v1/advice", response_model=advice)(give_advice)
    app.post("/v1/estimates", response_model=estimated)(give_estimate)
    app.get("/v1/catalog", response_model=known)(show_catalog)
    return app


def _today(world_of: Any) -> Any:
    import datetime

    return world_of(datetime.date.today())


def model_of(kind: type, made: dict[type, Any]) -> Any:
    """The pydantic model of a struct, with the same fields, defaults and bounds; structs in it are made too."""
    from pydantic import ConfigDict, create_model

    if kind not in made:
        hints = get_type_hints(kind, include_extras=True)
        fields: dict[str, Any] = {}
        config = kind.__struct_config__  # type: ignore[attr-defined]
        for field in msgspec.structs.fields(kind):
            default = field.default
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            fields[field.name] = (type_of(hints[field.name], made), ... if default is msgspec.NODEFAULT else default)
        if config.array_like:  # msgspec writes such structs as lists
            made[kind] = tuple[tuple(each for each, _ in fields.values())]  # type: ignore[misc]
        else:
            extra = "forbid" if config.forbid_unknown_fields else "ignore"
            made[kind] = create_model(kind.__name__, __config__=ConfigDict(extra=extra), **fields)
    return made[kind]


def type_of(hint: Any, made: dict[type, Any]) -> Any:
    """A field's type for pydantic."""
    from pydantic import Field

    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds: dict[str, Any] = {}
        for meta in arguments[1:]:
            for name in ("gt", "ge", "lt", "le", "min_length", "max_length", "pattern", "description"):
                if (value := getattr(meta, name)) is not None:
                    bounds[name] = value
        return Annotated[type_of(arguments[0], made), Field(**bounds)]
    if origin in (Union, UnionType):
        return Union[tuple(type_of(each, made) for each in arguments)]  # noqa: UP007
    if origin in (list, dict, tuple):
        return origin[tuple(each if each is ... else type_of(each, made) for each in arguments)]
    return model_of(hint, made) if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else hint


if __name__ == "__main__":
    main()
