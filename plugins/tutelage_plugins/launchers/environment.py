"""Which variables an attempt gets: what programs need of the server's, what the launch brings, and no more."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from tutelage.launcher import Launch, Resources

NEEDED = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV"})
FAMILIES = ("LC_", "PYTHON", "LD_", "XDG_", "CUDA", "NCCL_", "GLOO_", "OMP_", "MKL_", "TORCH", "SSL_")
OWN = frozenset({"TUTELAGE_CACHE", "TUTELAGE_STALL_SECONDS", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"})


def environment(launch: Launch, *, inherit: Iterable[str] = ()) -> dict[str, str]:
    """The whole environment of an attempt.

    Args:
        inherit: further variables of this process that it may see.
    """
    inherited = {name: value for name, value in os.environ.items() if _is_needed(name) or name in set(inherit)}
    return {**inherited, **cores(launch.resources), **launch.environment, "TUTELAGE_ATTEMPT": launch.name}


def essential() -> dict[str, str]:
    """Of this process's environment, what a cluster's own programs need."""
    names = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "SLURM_CONF", "SLURM_CONF_SERVER", "KRB5CCNAME")
    return {name: os.environ[name] for name in names if name in os.environ}


def cores(resources: Resources) -> dict[str, str]:
    """How many threads a run may use: libraries read the first, and the engine shares the second out."""
    return {"OMP_NUM_THREADS": str(resources.cpus), "TUTELAGE_CPUS": str(resources.cpus)}


def visible_devices(devices: list[int], around: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that show a process these GPUs alone, counted among those that this process sees."""
    seen = [index for index in around.get("CUDA_VISIBLE_DEVICES", "").split(",") if index]
    shown = [seen[index] if seen else str(index) for index in devices]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(shown)}


def _is_needed(name: str) -> bool:
    return name in NEEDED or name in OWN or name.startswith(FAMILIES)
