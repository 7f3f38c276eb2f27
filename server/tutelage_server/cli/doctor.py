"""`tutelage doctor`: what works here, what is missing, and how to get it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import click
import msgspec

from tutelage.cli.output import json_option, print_json
from tutelage_server.cli.calling import server_option

EXTRAS = {
    "train": ("torch", "lightning", "transformers", "peft", "safetensors", "pyarrow"),
    "qlora": ("bitsandbytes",),
    "hub": ("datasets",),
    "audit": ("numpy", "phonenumbers", "py3langid"),
    "server": ("litestar", "sqlalchemy", "advanced_alchemy", "alembic", "argon2", "uvicorn", "httpx", "fsspec"),
    "postgres": ("psycopg",),
    "s3": ("s3fs",),
    "ray": ("ray",),
}
"""What each extra brings, by the names that are imported."""
LITTLE_DISK = 5 * 2**30


class Finding(msgspec.Struct, kw_only=True):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "missing", "broken"]
    "missing is no fault: something that is not set up, and that not everybody needs."
    detail: str
    fix: str = ""


@click.command()
@click.option("--local", is_flag=True, help="Leave out the server.")
@server_option
@json_option
def doctor(local: bool, server: str, as_json: bool) -> int:
    """See what works here: Python, packages, devices, disk, launchers, and the server with your key.

    Exit code 1 when something is broken; what is merely not installed or not set up is no fault.
    """
    findings = []
    for finding in _findings(local, server):
        findings.append(finding)
        if not as_json:
            _print(finding)
    broken = any(finding.state == "broken" for finding in findings)
    if as_json:
        print_json({"ok": not broken, "findings": findings})
    return 1 if broken else 0


def _findings(local: bool, server: str) -> Iterator[Finding]:
    yield _python()
    yield from _extras()
    yield _devices()
    yield from _disks()
    yield from _plugins()
    yield from _launchers()
    if not local:
        yield from _server(server)


def _print(finding: Finding) -> None:
    colour = {"ok": "green", "missing": "yellow", "broken": "red"}[finding.state]
    fix = f"; {finding.fix}" if finding.fix else ""
    click.echo(f"{click.style(f'{finding.state:8}', fg=colour)}{finding.name}: {finding.detail}{fix}")


def _python() -> Finding:
    import platform

    from tutelage import __version__

    detail = f"{platform.python_version()} on {platform.platform()}, tutelage {__version__}"
    return Finding(name="python", state="ok", detail=detail)


def _extras() -> Iterator[Finding]:
    from importlib.util import find_spec

    for extra, modules in EXTRAS.items():
        lacking = [module for module in modules if find_spec(module) is None]
        if lacking:
            detail, fix = f"without {', '.join(lacking)}", f"pip install 'tutelage[{extra}]'"
            yield Finding(name=f"extra {extra}", state="missing", detail=detail, fix=fix)
        else:
            yield Finding(name=f"extra {extra}", state="ok", detail=", ".join(modules))


def _devices() -> Finding:
    """What torch sees: asked in this process, since a driver that is broken only tells when it is loaded."""
    try:
        import torch
    except ImportError:
        return Finding(name="devices", state="missing", detail="torch is not installed")
    except (OSError, RuntimeError) as error:
        return Finding(name="devices", state="broken", detail=f"torch can't be loaded: {error}", fix="install it anew")
    import os

    seen = [f"{os.cpu_count()} CPU cores"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            seen.append(f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)")
    elif torch.version.cuda:
        seen.append(f"no GPU, though torch is built for CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        seen.append("Apple GPU (MPS)")
    return Finding(name="devices", state="ok", detail=f"torch {torch.__version__}: {', '.join(seen)}")


def _disks() -> Iterator[Finding]:
    import os
    import shutil
    from pathlib import Path

    from tutelage.runs.listing import runs_root
    from tutelage.runs.words import size

    cache = Path(os.environ.get("TUTELAGE_CACHE") or Path.home() / ".cache" / "tutelage")
    for name, folder in (("runs", runs_root()), ("cache", cache)):
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        free = shutil.disk_usage(there).free
        detail = f"{size(free)} free for {folder}"
        if not os.access(there, os.W_OK):
            yield Finding(name=name, state="broken", detail=f"{there} can't be written", fix="name another folder")
        elif free < LITTLE_DISK:
            yield Finding(name=name, state="broken", detail=detail, fix="free some, or name a folder on another disk")
        else:
            yield Finding(name=name, state="ok", detail=detail)


def _plugins() -> Iterator[Finding]:
    from tutelage.plugins import host

    infos = host().infos
    for info in infos:
        if info.error:
            yield Finding(name=f"plugin {info.name}", state="broken", detail=info.error, fix="see: tutelage plugins")
    if not any(info.error for info in infos):
        yield Finding(name="plugins", state="ok", detail=", ".join(info.name for info in infos))


def _launchers() -> Iterator[Finding]:
    from tutelage.launcher import Launcher
    from tutelage.plugins import host

    for name, launcher in sorted(host().classes("launcher").items()):
        if issubclass(launcher, Launcher):
            lacking = launcher.missing()
            state: Literal["ok", "missing"] = "missing" if lacking else "ok"
            yield Finding(name=f"launcher {name}", state=state, detail=lacking or "can be used here")


def _server(name: str) -> Iterator[Finding]:
    """Whether a server is reached, is ready, and takes the key."""
    from tutelage.errors import TutelageError
    from tutelage_server.client.client import Client
    from tutelage_server.client.servers import config_file, find_server

    try:
        known = find_server(name)
        client = Client(known, patience=2.0)
    except TutelageError as error:
        none = not name and not config_file().exists()
        problem = error.problems[0]
        yield Finding(name="server", state="missing" if none else "broken", detail=problem.wrong, fix=problem.fix)
        return
    with client:
        for what, path in (("server", "/readyz"), ("key", "/v1/me")):
            try:
                yield Finding(name=what, state="ok", detail=_told(what, known.url, client.get(path)))
            except TutelageError as error:
                problem = error.problems[0]
                fix = problem.fix if problem.fix or what == "server" else f"tutelage login {known.url}"
                yield Finding(name=what, state="broken", detail=f"{problem.place}: {problem.wrong}", fix=fix)
                return


def _told(what: str, url: str, answer: Any) -> str:
    if what == "server":
        return f"{url} is ready"
    return f"of tenant {answer['tenant']}, may {', '.join(answer['scopes'])}"
