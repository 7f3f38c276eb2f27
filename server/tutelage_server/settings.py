"""The server's settings: a file, the environment (`TUTELAGE_SERVER_…`), and options of `tutelage serve`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta

from tutelage.config import Config, convert, read_file

PREFIX = "TUTELAGE_SERVER_"


class Limits(Config):
    """What a key or a tenant may use, where nothing else was set for it."""

    requests_per_minute: Annotated[int, Meta(ge=1, description="Requests of one key.")] = 600
    file_bytes: Annotated[int, Meta(ge=1, description="Largest file.")] = 2 * 2**30
    stored_bytes: Annotated[int, Meta(ge=1, description="All files of a tenant together.")] = 100 * 2**30
    active_jobs: Annotated[int, Meta(ge=1, description="Jobs of a tenant that are queued or run.")] = 1000
    job_usd: Annotated[float | None, Meta(ge=0, description="Dearest job that is accepted (highest estimate).")] = None
    month_usd: Annotated[float | None, Meta(ge=0, description="What a tenant's jobs of a month may cost.")] = None


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
    machine: Annotated[str, Meta(description="This machine's name in the store.")] = ""
    launchers: Annotated[
        dict[str, dict[str, Any]], Meta(description="Launchers by name: `{kind: slurm, …}`; the first is the default.")
    ] = msgspec.field(default_factory=lambda: {"local": {"kind": "local"}})
    allow_hub: Annotated[bool, Meta(description="Whether recipes may name models and data of the hub.")] = False
    deny_plugins: Annotated[list[str], Meta(description="Plugins that recipes may not use, as `kind:name`.")] = (
        msgspec.field(default_factory=lambda: ["reward:function", "reward:http", "tracker:wandb", "tracker:mlflow"])
    )
    limits: Limits = msgspec.field(default_factory=Limits)
    gpu: Annotated[str, Meta(description="The machines' GPU, as the catalog names it, for estimates.")] = ""
    hourly_usd: Annotated[float | None, Meta(ge=0, description="Cost of a GPU (or of a machine without) an hour.")] = (
        None
    )

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
    return convert(data, Settings)


def _plain(kind: Any, text: str) -> Any:
    """A variable's text as what its field takes: text stays text, all else is YAML."""
    from tutelage.config import parse_yaml

    bare = get_args(kind)[0] if get_args(kind) else kind
    return text if bare is str else parse_yaml(text)
