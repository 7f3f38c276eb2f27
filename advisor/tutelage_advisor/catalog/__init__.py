"""What estimates and advice rest on: GPUs, models and prices, each figure with its source and the date it was read.

`load()` reads the catalog that comes with the package, then the user's own (the file that is given, or that
`TUTELAGE_CATALOG` names), which adds entries and replaces those of the same name.
"""

from tutelage_advisor.catalog.entries import ApiPrice, Figure, Gpu, HourPrice, Link, ModelEntry
from tutelage_advisor.catalog.loading import Catalog, Stale, load

__all__ = ["ApiPrice", "Catalog", "Figure", "Gpu", "HourPrice", "Link", "ModelEntry", "Stale", "load"]
