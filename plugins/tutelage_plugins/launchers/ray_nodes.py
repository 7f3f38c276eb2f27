"""`python -m tutelage_plugins.launchers.ray_nodes --nodes=2 --resources={"CPU": 4} -- COMMAND…`

Runs a command once on each of several nodes of the Ray cluster that this process is part of: a placement group reserves
them, all or none, and a Ray actor on each runs the command. What they print is printed here. When one fails, all end,
and when this process ends, Ray ends them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

GIVEN_BY_RAY = ("CUDA_VISIBLE_DEVICES", "RAY_")


class Node:
    """Runs a command on the node where Ray puts this actor."""

    def run(self, command: list[str], environment: dict[str, str], folder: str) -> int:
        """Returns the exit code. The command dies with this process."""
        own = {name: value for name, value in os.environ.items() if name.startswith(GIVEN_BY_RAY)}
        libc = ctypes.CDLL(None)
        process = subprocess.Popen(
            command,
            env={**environment, **own},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: libc.prctl(1, signal.SIGKILL, 0, 0, 0),  # PR_SET_PDEATHSIG
        )
        assert process.stdout is not None
        for line in process.stdout:
            print(line.decode(errors="replace").rstrip("\n"), flush=True)  # Ray carries it to who asked
        return process.wait()


def run_on_nodes(nodes: int, resources: dict[str, float], command: list[str]) -> int:
    """Run a command on so many nodes; returns 0, or the exit code of the first that failed."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init(address="auto", logging_level="warning")
    group = placement_group([resources] * nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    actor: Any = ray.remote(Node)
    actors = [
        actor.options(
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            memory=resources.get("memory"),
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        ).remote()
        for index in range(nodes)
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(GIVEN_BY_RAY)}
    waiting = [each.run.remote(command, environment, str(Path.cwd())) for each in actors]
    code = 0
    while waiting and code == 0:
        done, waiting = ray.wait(waiting, num_returns=1)
        try:
            code = ray.get(done[0])
        except ray.exceptions.RayError as error:
            print(f"a node was lost: {error}", file=sys.stderr)
            code = 1
    for each in actors:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(each)
    return abs(code)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tutelage_plugins.launchers.ray_nodes")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--resources", type=json.loads, required=True, help="of each node, as Ray names them, in JSON")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    words = given.command[1:] if given.command[:1] == ["--"] else given.command
    return run_on_nodes(given.nodes, given.resources, words)


if __name__ == "__main__":
    sys.exit(main())
