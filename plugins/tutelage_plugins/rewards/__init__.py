"""The built-in rewards: what scores answers."""

from __future__ import annotations

import tutelage
from tutelage_plugins.rewards.function import Function
from tutelage_plugins.rewards.http import Http
from tutelage_plugins.rewards.json import Json
from tutelage_plugins.rewards.length import Length
from tutelage_plugins.rewards.matches import Matches
from tutelage_plugins.rewards.model import Model
from tutelage_plugins.rewards.regex import Regex

REWARDS: tuple[type[tutelage.Reward], ...] = (Length, Regex, Json, Matches, Function, Http, Model)
