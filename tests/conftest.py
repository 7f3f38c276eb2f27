from __future__ import annotations

import os

import pytest
from tiny_models import tiny_model

__all__ = ["tiny_model"]

# Small models gain nothing from threads, and several test processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def caches(tmp_path_factory):
    """Tests leave nothing in the user's caches but the starter model, which is large."""
    from pathlib import Path

    home = Path(os.environ.get("TUTELAGE_CACHE", Path.home() / ".cache" / "tutelage"))
    mine = tmp_path_factory.mktemp("cache")
    (home / "models").mkdir(parents=True, exist_ok=True)
    (mine / "models").symlink_to(home / "models")
    os.environ["TUTELAGE_CACHE"] = str(mine)
    yield
    del os.environ["TUTELAGE_CACHE"]
