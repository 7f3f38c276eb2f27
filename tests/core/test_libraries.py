"""What is imported before a training, and that nothing else of the process is changed by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SWITCH = "TORCHDYNAMO_DISABLE"
IMPORTING = """
import gc, json, os, sys
from pathlib import Path

switches = []
class Watch:
    def find_spec(self, name, path, target=None):
        if name == "peft":
            switches.append(os.environ.get("TORCHDYNAMO_DISABLE"))
sys.meta_path.insert(0, Watch())

from tutelage import libraries
from tutelage.plugins import host
from tutelage.recipe import resolve

stages = [{"name": kind, "phase": "sft", "adapter": kind} for kind in sys.argv[1:]]
recipe = {"name": "imports", "model": "there/is-none", "stages": stages}
resolved = resolve(recipe, Path.cwd(), host())
if "own" in os.environ:
    libraries.own_process()
libraries.import_for_training(resolved)
libraries.import_for_training(resolved)
told = {
    "switches": switches,
    "compiler": "torch._inductor.compile_fx" in sys.modules,
    "left": os.environ.get("TORCHDYNAMO_DISABLE"),
    "collects": gc.isenabled(),
    "frozen": gc.get_freeze_count(),
}

if "compile" in os.environ:
    import torch

    graphs = []
    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    told["sum"] = float(torch.compile(lambda x: x + 1, backend=backend)(torch.ones(())))
    told["graphs"] = len(graphs)
print(json.dumps(told))
"""


def imported(*adapters: str, **variables: str) -> dict[str, Any]:
    """What the script above tells of a recipe with such adapters."""
    environment = {name: value for name, value in os.environ.items() if name != SWITCH} | variables
    command = [sys.executable, "-c", IMPORTING, *adapters]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_an_adapter_of_plain_weights_leaves_the_compiler_out_and_usable() -> None:
    told = imported("full", "lora", own="1", compile="1")
    assert told["switches"] == ["1"]
    assert not told["compiler"]
    assert (told["left"], told["sum"], told["graphs"]) == (None, 2.0, 1)
    assert told["collects"]
    assert told["frozen"] > 100_000  # in a process of our own


@pytest.mark.parametrize(("adapters", "switches"), [(("full",), []), (("lora", "qlora"), [None])])
def test_bitsandbytes_is_as_it_would_be_where_weights_are_quantised(adapters: tuple[str], switches: list[Any]) -> None:
    told = imported(*adapters)
    assert (told["switches"], told["left"]) == (switches, None)  # without an adapter there is no peft
    assert told["collects"]
    assert told["frozen"] == 0  # somebody else's process


def test_a_persons_own_switch_stays() -> None:
    told = imported("lora", **{SWITCH: "0"})
    assert (told["switches"], told["left"]) == (["0"], "0")
