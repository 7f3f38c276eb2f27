"""Imports the large libraries that a command needs at one go, in less time than they take by themselves."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutelage.recipe import Resolved

MODELS = ("torch", "transformers.modeling_utils", "transformers.generation.utils")
"What transformers imports for any model."

_SWITCH = "TORCHDYNAMO_DISABLE"
_own_process = False


def own_process() -> None:
    """Say that nobody else's objects live in this process: it may leave what is imported out of garbage collection."""
    global _own_process
    _own_process = True


def import_libraries(*names: str) -> None:
    """Import modules without a search for garbage, which would go through all that is there again and again.

    In a process of our own, what is there then is left out of all later searches, too.
    """
    if all(name in sys.modules for name in names):
        return
    if _own_process:
        gc.collect()  # what is garbage now would stay
    collects = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            import_module(name)
    finally:
        if _own_process:
            gc.freeze()
        if collects:
            gc.enable()


def import_for_training(resolved: Resolved) -> None:
    """Import what the stages of a recipe need to be trained."""
    from tutelage.adapter import Adapter

    import_libraries(*MODELS, "lightning")
    from tutelage.engine.quiet import quiet_libraries

    quiet_libraries()  # some speak up while they are imported
    adapters = list(resolved.adapters.values())
    if any(adapter.artifact == "adapter" for adapter in adapters):
        quantises = any(type(adapter).loading is not Adapter.loading for adapter in adapters)
        with nullcontext() if quantises else _without_compiler():
            import_libraries("peft")


@contextmanager
def _without_compiler() -> Iterator[None]:
    """While peft is imported for weights that are loaded as they are: without torch's compiler.

    peft imports bitsandbytes wherever that is installed, which asks torch to compile functions that stand in where it
    has no kernels for a device. That alone imports the whole compiler: half a second and 40 MiB. `TORCHDYNAMO_DISABLE`
    is torch's switch for it, and is read when torch is asked; later requests are met.
    """
    if _SWITCH in os.environ:
        yield
        return
    os.environ[_SWITCH] = "1"
    try:
        yield
    finally:
        os.environ.pop(_SWITCH, None)
