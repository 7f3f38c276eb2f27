"""The servers that this user knows: their addresses and keys, in a file that the user alone can read."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tutelage.config import did_you_mean
from tutelage.errors import TutelageError


class KnownServer(msgspec.Struct, kw_only=True):
    """Where a server is, and the key to it."""

    url: str
    key: str = ""


class Known(msgspec.Struct, kw_only=True):
    """What the file holds."""

    default: str = ""
    servers: dict[str, KnownServer] = {}


def config_file() -> Path:
    """`servers.json` in $TUTELAGE_CONFIG, else in `~/.config/tutelage`."""
    folder = os.environ.get("TUTELAGE_CONFIG")
    return (Path(folder) if folder else Path.home() / ".config" / "tutelage") / "servers.json"


def read_known() -> Known:
    """All servers that were kept.

    Raises:
        TutelageError: when the file is damaged.
    """
    file = config_file()
    try:
        return msgspec.json.decode(file.read_bytes(), type=Known)
    except FileNotFoundError:
        return Known()
    except (OSError, msgspec.MsgspecError) as error:
        raise TutelageError.at(
            str(file), f"can't be read: {error}", "mend or remove it, then: tutelage login"
        ) from None


def remember(url: str, key: str, name: str = "", default: bool = True) -> str:
    """Keep a server's address and key, and return its name (its host and port, unless given).

    Raises:
        TutelageError: when the file is damaged or can't be written.
    """
    known = read_known()
    name = name or name_of(url)
    known.servers[name] = KnownServer(url=url, key=key)
    if default or not known.default:
        known.default = name
    file = config_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_private(file, msgspec.json.format(msgspec.json.encode(known), indent=2) + b"\n")
    except OSError as error:
        fix = "let $TUTELAGE_CONFIG name a folder that you can write"
        raise TutelageError.at(str(file), f"can't be written: {error.strerror}", fix) from None
    return name


def name_of(url: str) -> str:
    """A server's name where none was given: its host, and its port where it has one."""
    return urlsplit(url).netloc.rpartition("@")[2]


def find_server(name: str = "") -> KnownServer:
    """The server that is named, by name or address; else that of $TUTELAGE_URL; else the default.

    Unless one is named, $TUTELAGE_KEY comes before the key that is kept.

    Raises:
        TutelageError: when there is none.
    """
    known = read_known()
    if name:
        found = known.servers.get(name) or next((each for each in known.servers.values() if each.url == name), None)
        if found is None:
            fix = did_you_mean(name, list(known.servers)) if known.servers else "tutelage login URL"
            raise TutelageError.at(f"--server {name}", "no such server is known here", fix)
        return found
    url, key = os.environ.get("TUTELAGE_URL", "").rstrip("/"), os.environ.get("TUTELAGE_KEY", "").strip()
    if url:
        kept = next((each.key for each in known.servers.values() if each.url == url), "")
        return KnownServer(url=url, key=key or kept)
    if known.default in known.servers:
        found = known.servers[known.default]
        return KnownServer(url=found.url, key=key or found.key)
    fix = "start one with `tutelage serve`, or name one: tutelage login URL"
    raise TutelageError.at("tutelage", "no server is known here", fix)


def _write_private(file: Path, content: bytes) -> None:
    """Whole or not at all, and at no instant readable by others."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)
