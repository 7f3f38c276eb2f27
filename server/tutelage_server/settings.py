"""The server's settings: a file, the environment (`TUTELAGE_SERVER_…`), and options of `tutelage serve`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta

from tutelage.config import Config, convert, read_file
from tutelage.errors import TutelageError
from tutelage.launcher import Resources

PREFIX = "TUTELAGE_SERVER_"
ENVIRONMENT = (
    "JOB_*",
    "*_TOKEN",
    "*_KEY",
    "*_SECRET",
    "*_PASSWORD",
    "WANDB_PROJECT",
    "WANDB_ENTITY",
    "OMP_NUM_THREADS",
)
"What jobs may set: many other variables make Python, the loader or CUDA run code (PYTHONPATH, LD_PRELOAD)."


class Limits(Config):
    """What a key or a tenant may use, where nothing else was set for it."""

    requests_per_minute: Annotated[int, Meta(ge=1, description="Requests of one key.")] = 600
    file_bytes: Annotated[int, Meta(ge=1, description="Largest file.")] = 2 * 2**30
    stored_bytes: Annotated[int, Meta(ge=1, description="All files of a tenant together.")] = 100 * 2**30
    active_jobs: Annotated[int, Meta(ge=1, description="Jobs of a tenant that are queued or run.")] = 1000
    job_usd: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="Dearest job that is accepted (highest estimate).")
    ] = None
    month_usd: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="What a tenant's jobs of a month may cost.")
    ] = None


class Answering(Config):
    """Processes that answer chats with tuned models, one for each model that is asked."""

    models: Annotated[int, Meta(ge=0, le=64, description="Most at a time; 0 answers no chats.")] = 2
    idle_seconds: Annotated[float, Meta(gt=0, description="How long one waits for the next question.")] = 300.0
    load_seconds: Annotated[float, Meta(gt=0, description="How long one may take to load its model.")] = 600.0
    silent_seconds: Annotated[float, Meta(gt=0, description="How long one may be silent before it is ended.")] = 300.0
    max_tokens: Annotated[int, Meta(ge=1, description="Longest answer, in tokens.")] = 4096
    device: Annotated[str, Meta(description="Such as `cuda:1`, which no launcher should give out, or `cpu`.")] = "cpu"
    threads: Annotated[int, Meta(ge=1, le=1024, description="CPU threads of each.")] = 2


class Settings(Config):
    """How a server is set up. Everything has a default that suits one machine."""

    home: Annotated[str, Meta(min_length=1, description="Where the store, files and runs are kept.")] = (
        "tutelage-server"
    )
    database: Annotated[str, Meta(description="postgresql+psycopg://… ; empty keeps an SQLite file below `home`.")] = ""
    files: Annotated[str, Meta(description="Where files are kept, as fsspec names it; empty: below `home`.")] = ""
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8790
    certificate: Annotated[str, Meta(description="PEM file of a TLS certificate; needed on a public address.")] = ""
    certificate_key: Annotated[str, Meta(description="PEM file of its private key.")] = ""
    allow_plain_http: Annotated[bool, Meta(description="Listen on a public address without TLS, behind a proxy.")] = (
        False
    )
    hosts: Annotated[list[str], Meta(description="Host names by which it may be called, beside its own address.")] = []
    operator: Annotated[
        str, Meta(description="Tenant whose admin keys also see the server's metrics and make keys of other tenants.")
    ] = "default"
    body_seconds: Annotated[float, Meta(gt=0, description="How long a request's body may take, or pause.")] = 30.0
    machine: Annotated[str, Meta(description="This machine's name in the store.")] = ""
    launchers: Annotated[
        dict[str, dict[str, Any]], Meta(description="Launchers by name: `{kind: slurm, …}`; the first is the default.")
    ] = msgspec.field(default_factory=lambda: {"local": {"kind": "local"}})
    allow_hub: Annotated[bool, Meta(description="Whether recipes may name models and data of the hub.")] = False
    deny_plugins: Annotated[list[str], Meta(description="Plugins that recipes may not use, as `kind:name`.")] = (
        msgspec.field(default_factory=lambda: ["reward:function", "reward:http", "tracker:wandb", "tracker:mlflow"])
    )
    allow_environment: Annotated[
        list[str], Meta(description="Names of variables that jobs may set; * stands for anything.")
    ] = msgspec.field(default_factory=lambda: [*ENVIRONMENT])
    limits: Limits = msgspec.field(default_factory=Limits)
    openai_models: Annotated[
        dict[str, str],
        Meta(description="Models that OpenAI's clients may tune and ask: their name there, and a recipe's `model`."),
    ] = msgspec.field(default_factory=lambda: {"smollm2-135m-instruct": "starter:smollm2-135m-instruct"})
    openai_resources: Annotated[Resources, Meta(description="What jobs of OpenAI's clients ask for.")] = msgspec.field(
        default_factory=Resources
    )
    answering: Answering = msgspec.field(default_factory=Answering)
    gpu: Annotated[str, Meta(description="The machines' GPU, as the catalog names it, for estimates.")] = ""
    hourly_usd: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="Cost of a GPU (or of a machine without) an hour.")
    ] = None

    @property
    def folder(self) -> Path:
        """`home` as an absolute folder."""
        return Path(self.home).resolve()

    @property
    def database_url(self) -> str:
        """The database as SQLAlchemy names it."""
        return self.database or f"sqlite:///{self.folder / 'tutelage.db'}"

    @property
    def machine_name(self) -> str:
        """This machine's name: the host's, unless set."""
        return self.machine or socket.gethostname()

    @property
    def is_public(self) -> bool:
        """Whether others than this machine can reach the address."""
        return self.host not in ("127.0.0.1", "::1", "localhost")


def load_settings(file: Path | None = None, **options: Any) -> Settings:
    """Settings from a file, then `TUTELAGE_SERVER_…` variables, then options that are not None.

    Raises:
        TutelageError: with every problem, each naming its field.
    """
    data: dict[str, Any] = dict(read_file(file) or {}) if file else {}
    for field in msgspec.structs.fields(Settings):
        text = os.environ.get(PREFIX + field.name.upper())
        if text is not None:
            data[field.name] = _plain(field.type, text)
    data |= {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items() if value is not None
    }
    settings = convert(data, Settings)
    if settings.database:
        _check_database(settings.database)
    return settings


def _check_database(url: str) -> None:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        kind = make_url(url).drivername
    except (ArgumentError, ValueError):
        kind = ""
    if kind not in ("postgresql+psycopg", "sqlite"):
        # The address may hold a password, and is not shown.
        fix = "write postgresql+psycopg://USER@HOST/NAME, or leave it out"
        raise TutelageError.at("database", f"is no address of a database{f' ({kind})' if kind else ''}", fix)


def _plain(kind: Any, text: str) -> Any:
    """A variable's text as what its field takes: text stays text, all else is YAML."""
    from tutelage.config import parse_yaml

    bare = get_args(kind)[0] if get_args(kind) else kind
    return text if bare is str else parse_yaml(text)
