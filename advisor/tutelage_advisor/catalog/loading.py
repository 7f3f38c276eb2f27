"""Reads catalogs, merges them and finds entries by name."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tutelage.errors import Problem, TutelageError
from tutelage.plugins import quick_host
from tutelage_advisor.catalog.entries import ApiPrice, Gpu, ModelEntry

Entry = TypeVar("Entry", Gpu, ModelEntry, ApiPrice)
STALE_AFTER_DAYS = 180


class Stale(msgspec.Struct, frozen=True):
    """A price that was read long ago."""

    name: str
    read: str
    days: int

    def __str__(self) -> str:
        return f"the price of {self.name} was read {self.days} days ago, on {self.read}"


class Catalog(msgspec.Struct, forbid_unknown_fields=True):
    """GPUs, models and API prices, and what the source keys mean."""

    sources: dict[str, str] = {}
    gpus: list[Gpu] = []
    models: list[ModelEntry] = []
    api_prices: list[ApiPrice] = []

    def gpu(self, name: str, place: str = "gpu") -> Gpu:
        """The GPU of that name or alias, in any case.

        Raises:
            TutelageError: naming `place` and the nearest known name.
        """
        return _find(self.gpus, name, place, "GPU")

    def model(self, name: str, place: str = "model") -> ModelEntry:
        """The model of that name, alias or hub name, in any case.

        Raises:
            TutelageError: naming `place` and the nearest known name.
        """
        return _find(self.models, name, place, "model")

    def api_price(self, model: str, place: str = "model") -> ApiPrice:
        """The prices of a hosted model.

        Raises:
            TutelageError: naming `place` and the nearest known name.
        """
        return _find(self.api_prices, model, place, "hosted model")

    def source(self, key: str) -> str:
        """What a source key stands for; anything else is its own explanation."""
        return self.sources.get(key, key)

    def stale(self, today: date | None = None, days: int = STALE_AFTER_DAYS) -> list[Stale]:
        """Prices that were read more than `days` days before `today`."""
        today = today or date.today()
        read = [(price.model, price.read) for price in self.api_prices]
        read += [(f"{gpu.name} at {price.provider}", price.read) for gpu in self.gpus for price in gpu.prices]
        aged = [Stale(name, day, (today - date.fromisoformat(day)).days) for name, day in read]
        return [entry for entry in aged if entry.days > days]

    def merged(self, other: Catalog) -> Catalog:
        """This catalog with the entries of another, which replace those of the same name."""
        return Catalog(
            sources=self.sources | other.sources,
            gpus=_replaced(self.gpus, other.gpus),
            models=_replaced(self.models, other.models),
            api_prices=_replaced(self.api_prices, other.api_prices),
        )


def load(extra: Path | None = None) -> Catalog:
    """The catalog of the package, with what plugins bring and then the user's own file merged in.

    Args:
        extra: a YAML, TOML or JSON file of the same shape; by default what the variable `TUTELAGE_CATALOG` names.
    Raises:
        TutelageError: when that file can't be read or an entry (of the file or of a plugin) is wrong.
    """
    catalog = msgspec.json.decode((Path(__file__).parent / "catalog.json").read_bytes(), type=Catalog)
    for name, brought in quick_host().classes("catalog").items():
        catalog = catalog.merged(_brought(name, brought))
    named = os.environ.get("TUTELAGE_CATALOG", "")
    path = extra or (Path(named) if named else None)
    return catalog.merged(read(path)) if path else catalog


def read(path: Path) -> Catalog:
    """Read one catalog file.

    Raises:
        TutelageError: when it can't be read or an entry is wrong, naming the place.
    """
    from tutelage.config import read_file

    return _checked(read_file(path), str(path))


def _brought(name: str, brought: Any) -> Catalog:
    """The entries of a plugin."""
    place = f"catalog {name} of {brought.__module__}"
    try:
        entries = brought().entries()
    except Exception as error:
        wrong = f"can't be read: {type(error).__name__}: {error}"
        raise TutelageError.at(place, wrong, "mend the plugin, or uninstall it") from error
    return _checked(entries, place)


def _checked(data: Any, place: str) -> Catalog:
    from tutelage.config import convert

    fix = "see docs/estimates.md for the shape of a catalog"
    try:
        made = convert(data, Catalog)
    except TutelageError as error:
        problems = [(f"{place}: {each.place}" if each.place else place, each) for each in error.problems]
        raise TutelageError(
            Problem(place=where, wrong=each.wrong, fix=each.fix or fix) for where, each in problems
        ) from None
    for day in _days(made):
        try:
            date.fromisoformat(day)
        except ValueError:
            raise TutelageError.at(place, f"{day} is not a day", "write it as 2026-08-23") from None
    return made


def _days(catalog: Catalog) -> Iterator[str]:
    for price in catalog.api_prices:
        yield from (day for day in (price.read, price.since, price.tuning_until) if day)
    yield from (model.read for model in catalog.models if model.read)
    for gpu in catalog.gpus:
        yield from (price.read for price in gpu.prices)
        figures = (gpu.memory_gib, gpu.bandwidth_gb_s, gpu.link.gb_s, *gpu.tflops.values())
        yield from (figure.read for figure in figures if figure.read)


def _names(entry: Gpu | ModelEntry | ApiPrice) -> list[str]:
    if isinstance(entry, ApiPrice):
        return [entry.model, *entry.aliases]
    hub = [entry.hub] if isinstance(entry, ModelEntry) and entry.hub else []
    return [entry.name, *hub, *entry.aliases]


def _replaced(entries: list[Entry], newer: list[Entry]) -> list[Entry]:
    replaced = {_plain(_names(entry)[0]) for entry in newer}
    kept: list[Entry] = [entry for entry in entries if _plain(_names(entry)[0]) not in replaced]
    return newer + kept


@functools.lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character not in " -_")


def _find(entries: Iterable[Entry], name: str, place: str, what: str) -> Entry:
    known: dict[str, Entry] = {}
    for entry in entries:
        for alias in _names(entry):
            known.setdefault(_plain(alias), entry)
    if _plain(name) in known:
        return known[_plain(name)]
    near = difflib.get_close_matches(_plain(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {_names(known[near[0]])[0]}? " if near else ""
    raise TutelageError.at(place, f"no {what} is called {name!r}", f"{hint}see `tutelage catalog`")
