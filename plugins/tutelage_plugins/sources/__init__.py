"""The built-in model sources."""

from __future__ import annotations

from tutelage_plugins.sources.run import RunSource
from tutelage_plugins.sources.starter import StarterSource

SOURCES = (StarterSource, RunSource)
