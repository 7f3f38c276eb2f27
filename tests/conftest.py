from __future__ import annotations

import os
from pathlib import Path

import pytest
from databases import database, postgres, postgres_cluster
from tiny_models import tiny_model

__all__ = ["database", "postgres", "postgres_cluster", "tiny_model"]

# Small models gain nothing from threads, and several test processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--real-data",
        default=os.environ.get("TUTELAGE_REAL_DATA"),
        help="A folder with alpaca_en_demo.json, for tests on data that is not shipped; or $TUTELAGE_REAL_DATA.",
    )


@pytest.fixture(scope="session")
def real_data(request) -> Path:
    """The folder of real data that is not shipped."""
    named = request.config.getoption("--real-data")
    if not named or not (Path(named) / "alpaca_en_demo.json").is_file():
        pytest.skip("real data is not here; name its folder with --real-data")
    return Path(named).resolve()


@pytest.fixture(autouse=True, scope="session")
def caches(tmp_path_factory):
    """Tests leave nothing in the user's caches but the starter model, which is large."""
    home = Path(os.environ.get("TUTELAGE_CACHE", Path.home() / ".cache" / "tutelage"))
    mine = tmp_path_factory.mktemp("cache")
    (home / "models").mkdir(parents=True, exist_ok=True)
    (mine / "models").symlink_to(home / "models")
    os.environ["TUTELAGE_CACHE"] = str(mine)
    yield
    del os.environ["TUTELAGE_CACHE"]
