"""A Ray cluster of two nodes on this machine, for tests: a process of its own, which ends when its input does."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys

import pytest

TOKEN = "0123456789abcdef0123456789abcdef"


def ray_cluster():
    """Starts a cluster that wants a token, and gives the address of its dashboard."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed; get it with: pip install 'tutelage[ray]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, __file__, str(port)],
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert "up" in (line.strip() for line in process.stdout), "the cluster did not come up"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.communicate(timeout=60)


def main(port: int) -> None:
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 100_000_000}
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args={**small, **dashboard})
    cluster.add_node(**small)
    cluster.wait_for_nodes()
    print("up", flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
