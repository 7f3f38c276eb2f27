"""The built-in adapters."""

from __future__ import annotations

from tutelage_plugins.adapters.full import Full
from tutelage_plugins.adapters.lora import Lora
from tutelage_plugins.adapters.prompt import PromptTuning
from tutelage_plugins.adapters.qlora import QLora

ADAPTERS = (Full, Lora, QLora, PromptTuning)
