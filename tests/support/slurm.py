"""The project's own Slurm cluster of two nodes, for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def slurm_cluster():
    """Starts a cluster and gives its slurm.conf; installs Slurm first where this may be done (as root, on a build server)."""
    if shutil.which("sbatch") is None and os.environ.get("CI"):
        subprocess.run([SCRIPTS / "install_services.sh"], check=True)
    if shutil.which("sbatch") is None or shutil.which("munged", path=os.environ["PATH"] + ":/usr/sbin") is None:
        pytest.skip("Slurm is not installed; scripts/install_services.sh installs it")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short, for it holds a socket
    script = str(SCRIPTS / "slurm_cluster.sh")
    started = subprocess.run([script, "start", str(folder)], capture_output=True, text=True)
    try:
        assert started.returncode == 0, started.stderr
        yield folder / "slurm.conf"
    finally:
        subprocess.run([script, "stop", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
