"""The plugin base class of catalog entries: GPUs, models and prices that `estimate` and `advise` rest on."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from tutelage.plugin import Plugin


class CatalogEntries(Plugin):
    """Plugin base: brings GPUs, models and prices, which replace the catalog's own of the same name."""

    @abstractmethod
    def entries(self) -> dict[str, Any]:
        """Plain data of the shape of a catalog file: `sources`, `gpus`, `models`, `api_prices` (docs/estimates.md)."""
