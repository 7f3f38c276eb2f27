"""Built-in phases."""

from tutelage_plugins.phases.sft import SFT

PHASES = (SFT,)
