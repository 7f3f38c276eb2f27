"""The built-in data formats: what a row of a dataset means."""

from __future__ import annotations

from tutelage_plugins.formats.alpaca import Alpaca
from tutelage_plugins.formats.messages import Messages
from tutelage_plugins.formats.preference import Preference
from tutelage_plugins.formats.prompt_completion import PromptCompletion
from tutelage_plugins.formats.prompts import Prompts
from tutelage_plugins.formats.ranking import Rankings
from tutelage_plugins.formats.sharegpt import ShareGPT
from tutelage_plugins.formats.text import PlainText

FORMATS = (Messages, PromptCompletion, Alpaca, ShareGPT, PlainText, Preference, Rankings, Prompts)
