"""Launchers: where a job's run executes. Each is listed once here; none imports torch."""

from __future__ import annotations

from tutelage.launcher import Launcher
from tutelage_plugins.launchers.local import Local
from tutelage_plugins.launchers.ray import Ray
from tutelage_plugins.launchers.slurm import Slurm

LAUNCHERS: list[type[Launcher]] = [Local, Slurm, Ray]
