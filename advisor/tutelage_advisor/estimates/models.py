"""From how a person names a model to its inventory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.config import read_file
from tutelage.errors import TutelageError
from tutelage_advisor.catalog import Catalog
from tutelage_advisor.estimates.architecture import Architecture
from tutelage_advisor.estimates.families import NotCoveredError, by_formula


def architecture_of(model: str, catalog: Catalog, place: str = "model") -> Architecture:
    """The inventory of a model, by formula where the family is known, else built in a child process.

    Args:
        model: a name of the catalog or the hub, a folder with a config.json, or such a file.
    Raises:
        TutelageError: naming `place`, when there is no such model or its configuration can't be used.
    """
    return from_config(configuration(model, catalog, place), place)


def from_config(config: Mapping[str, Any], place: str = "model") -> Architecture:
    """The inventory for the contents of a `config.json`.

    Raises:
        TutelageError: naming `place`, when it has no `model_type` or no decoder can be built from it.
    """
    if not isinstance(config.get("model_type"), str):
        raise TutelageError.at(place, "its configuration names no model_type", "give a transformers config.json")
    try:
        made = by_formula(config)
    except NotCoveredError:
        from tutelage_advisor.estimates.building import build

        return build(config, place)
    sizes = (made.hidden, made.layers, made.vocabulary, made.heads, made.parameters)
    if min(sizes) <= 0 or made.head_size <= 0:
        raise TutelageError.at(place, "its configuration has a size that is not positive", "check config.json")
    return made


def configuration(model: str, catalog: Catalog, place: str) -> Mapping[str, Any]:
    """The fields of a model's config.json.

    Raises:
        TutelageError: naming `place`, when the model is unknown or its file can't be read.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _read(path / "config.json", place)
    if path.suffix == ".json" or path.is_file():
        return _read(path, place)
    try:
        return catalog.model(model, place).config
    except TutelageError:
        cached = _cached(model)
        if cached is None:
            raise
        return _read(cached, place)


def _read(path: Path, place: str) -> Mapping[str, Any]:
    if path.suffix != ".json":
        raise TutelageError.at(
            place, f"{path} is not a config.json", "give a model's folder, its config.json or a catalog name"
        )
    data = read_file(path)
    if not isinstance(data, dict):
        raise TutelageError.at(place, f"{path} is not a mapping", "give a transformers config.json")
    return data


def _cached(model: str) -> Path | None:
    """The config.json of a hub model that is in the local cache of huggingface_hub."""
    if model.count("/") != 1 or ".." in model:
        return None
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    hub = Path(os.environ["HF_HUB_CACHE"]) if os.environ.get("HF_HUB_CACHE") else home / "hub"
    snapshots = hub.expanduser() / f"models--{model.replace('/', '--')}" / "snapshots"
    return max(snapshots.glob("*/config.json"), key=lambda file: file.stat().st_mtime, default=None)
