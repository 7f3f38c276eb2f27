from __future__ import annotations

import pytest

import tutelage
from tutelage.config import convert
from tutelage_plugins.launchers.ray import Ray


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)


def test_another_machines_ray_needs_a_token():
    with pytest.raises(tutelage.TutelageError, match="token_file is needed"):
        convert({"address": "https://ray.example.com:8265"}, Ray.Config)


def test_a_token_does_not_travel_unencrypted_unless_that_is_allowed():
    away = {"address": "http://ray.example.com:8265", "token_file": "token"}
    with pytest.raises(tutelage.TutelageError, match="unencrypted"):
        convert(away, Ray.Config)
    assert convert({**away, "allow_plain_http": True}, Ray.Config).token_file == "token"


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "auto", "ftp://127.0.0.1", ""])
def test_an_address_is_a_url(address):
    with pytest.raises(tutelage.TutelageError, match="write it as http://"):
        convert({"address": address}, Ray.Config)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "http://localhost:8265", "http://[::1]:8265"])
def test_this_machines_ray_needs_none(address):
    assert convert({"address": address}, Ray.Config).address == address
