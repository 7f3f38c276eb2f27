"""Inventories by formula, from a model's `config.json`, for the decoder families that people tune most.

Each builder mirrors how transformers builds the family; tests compare every one with the model on the meta device.
A family, or an option of one, that is not written down here is built there for real: see `building.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from tutelage_advisor.estimates.architecture import Architecture
from tutelage_advisor.estimates.families import classic, experts, llama
from tutelage_advisor.estimates.families.common import Config, NotCoveredError

FAMILIES: dict[str, Callable[[Config], Architecture]] = {**llama.BUILDERS, **classic.BUILDERS, **experts.BUILDERS}

__all__ = ["FAMILIES", "NotCoveredError", "by_formula"]


def by_formula(config: Config) -> Architecture:
    """The inventory of a model.

    Raises:
        NotCoveredError: when no formula covers the family, or a number that it needs is not in the configuration.
    """
    build = FAMILIES.get(str(config.get("model_type")))
    if build is None:
        raise NotCoveredError(str(config.get("model_type")))
    try:
        return build(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise NotCoveredError(f"{config.get('model_type')}: {error}") from None
