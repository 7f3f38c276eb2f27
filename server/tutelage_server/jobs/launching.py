"""Launchers by name, and what they are handed: an attempt's folder, its variables, its devices."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tutelage.config import convert
from tutelage.errors import TutelageError
from tutelage.launcher import Launch, Launcher, Resources
from tutelage.plugins import Host
from tutelage.runs.attempt import ORDER, Order
from tutelage.runs.files import write_atomically
from tutelage_server.settings import Settings
from tutelage_server.store.tables import Job

SECRETS = "secrets.json"


def make_launchers(settings: Settings, host: Host | None = None) -> dict[str, Launcher]:
    """The launchers of a server's settings, in their order; the first is the default.

    Raises:
        TutelageError: when one is of no known kind, can't be used here, or its config is wrong.
    """
    if host is None:
        host = Host(kinds=("launcher",))
        host.discover()
    made = {}
    for name, options in settings.launchers.items():
        place = f"launchers.{name}"
        kind = options.get("kind")
        if not isinstance(kind, str):
            known = ", ".join(sorted(host.classes("launcher")))
            raise TutelageError.at(f"{place}.kind", "missing", f"name the launcher: {known}")
        plugin = host.get("launcher", kind, f"{place}.kind")
        if why := plugin.missing():
            raise TutelageError.at(place, why)
        config = {option: value for option, value in options.items() if option != "kind"}
        made[name] = plugin(convert(config, plugin.Config, place))
    return made


def job_folder(settings: Settings, job_id: str) -> Path:
    """The folder of a job: its recipe, data, run and attempts."""
    return settings.folder / "jobs" / job_id


def attempt_folder(settings: Settings, job_id: str, attempt: int) -> Path:
    """The folder of one of a job's attempts, which count from 1."""
    return job_folder(settings, job_id) / "attempts" / str(attempt)


def launch_name(job: Job) -> str:
    """What a cluster calls a job's attempt."""
    return f"tutelage-{job.id}-{job.attempt}"


def prepare_attempt(settings: Settings, job: Job, command: list[str] | None = None) -> None:
    """Make the folder of a job's attempt with its `attempt.json`; doing it again changes nothing.

    Args:
        command: what to run in place of training; never what somebody sent.
    Raises:
        OSError: when the disk is full, say.
    """
    folder = attempt_folder(settings, job.id, job.attempt)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ORDER).exists():
        minutes = resources_of(job).minutes
        order = Order(name=launch_name(job), time_limit=minutes, command=command)
        write_atomically(folder / ORDER, msgspec.json.encode(order))


def launch_of(settings: Settings, job: Job) -> Launch:
    """What a launcher is told of a job's attempt, but for its secrets."""
    name = launch_name(job)
    return Launch(
        name=name,
        folder=attempt_folder(settings, job.id, job.attempt),
        resources=resources_of(job),
        devices=[int(device) for device in job.devices],
        environment={**job.environment, "TUTELAGE_ATTEMPT": name},
    )


def secrets_of(settings: Settings, job: Job) -> dict[str, str]:
    """The values of a job's secrets, by the variables that carry them.

    Raises:
        TutelageError: when they are not where they were put.
    """
    if not job.secrets:
        return {}
    try:
        return msgspec.json.decode((job_folder(settings, job.id) / SECRETS).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        raise TutelageError.at("secrets", "can't be read any more", "submit the job again with them") from None


def resources_of(job: Job) -> Resources:
    """What a job asks for."""
    return convert(job.resources, Resources, "resources")
