"""Whether compiling pays is reckoned from what it took here before, and from stated assumptions where it never did."""

from __future__ import annotations

import tempfile

import pytest

from tutelage.engine import compile_costs
from tutelage.engine.compile_costs import ASSUMED, Costs, Estimate, Expected, Measured, Subject, inductor_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and nothing said of inductor's."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)


def subject(shape="a", device="a CPU", torch="2"):
    return Subject(device, torch, "Layer", shape)


def compiled(folder):
    """What inductor leaves when it has compiled something."""
    (folder / "fxgraph" / "ab").mkdir(parents=True)


def test_an_estimate_by_hand():
    """10,000 tokens at 20 ms are 200 s, of which a ratio of 0.8 saves 40 s."""
    for seconds, pays in ((39.9, True), (40.1, False)):
        estimate = Estimate.of(10_000, 0.02, Expected(seconds, 0.8, "measured"))
        assert (estimate.planned, estimate.saves) == pytest.approx((200, 40))
        assert estimate.pays is pays
    assert estimate.told() == "it would save about 40 s of 3 min 20 s and cost about 40 s"


def test_what_is_not_faster_never_pays():
    estimate = Estimate.of(1e12, 1.0, Expected(0.0, 1.0, "measured"))
    assert not estimate.pays
    assert "save nothing" in estimate.told()


def test_what_is_assumed_where_nothing_was_compiled():
    found = Costs().expected(subject(), "cpu")
    assert found == Expected(ASSUMED["cpu"].cold, ASSUMED["cpu"].ratio, "assumed")
    assert not Estimate.of(1e12, 1.0, Costs().expected(subject(), "mps")).pays


def test_what_was_measured_is_remembered_and_a_warm_cache_is_known():
    Costs().remember(subject(), Measured(cold=60.0, ratio=0.7))
    assert Costs().expected(subject(), "cpu") == Expected(60.0, 0.7, "measured")
    compiled(inductor_folder())
    assert Costs().expected(subject(), "cpu").seconds == 60.0 * compile_costs.WARM_SHARE
    Costs().remember(subject(), Measured(warm=9.0, ratio=0.8))
    assert Costs().expected(subject(), "cpu") == Expected(9.0, pytest.approx(0.75), "measured")


def test_another_cache_of_inductor_is_cold(tmp_path, monkeypatch):
    Costs().remember(subject(), Measured(cold=60.0, ratio=0.7))
    Costs().remember(subject(), Measured(warm=9.0, ratio=0.7))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    compiled(inductor_folder())
    assert Costs().expected(subject(), "cpu").seconds == 60.0


def test_other_models_of_the_same_device_and_torch_stand_for_one_that_is_unknown():
    for shape, cold, ratio in (("a", 10.0, 0.5), ("b", 20.0, 0.6), ("c", 90.0, 0.9)):
        Costs().remember(subject(shape), Measured(cold=cold, ratio=ratio))
    Costs().remember(subject("d", device="another"), Measured(cold=1.0, ratio=0.1))
    Costs().remember(subject("d", torch="1"), Measured(cold=1.0, ratio=0.1))
    assert Costs().expected(subject("d"), "cpu") == Expected(20.0, 0.6, "similar")


def test_a_damaged_memory_is_none(tmp_path):
    Costs().remember(subject(), Measured(cold=60.0, ratio=0.7))
    (tmp_path / "cache" / "compiled" / "measured.json").write_text('{"a": 1')
    assert Costs().expected(subject(), "cpu").basis == "assumed"
    Costs().remember(subject(), Measured(cold=50.0, ratio=0.6))
    assert Costs().expected(subject(), "cpu").seconds == 50.0


def test_a_memory_that_can_not_be_kept_ends_nothing(tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    Costs().remember(subject(), Measured(cold=60.0, ratio=0.7))
    assert Costs().expected(subject(), "cpu").basis == "assumed"


def test_inductor_keeps_what_it_compiled_in_our_cache_unless_the_user_says_where(tmp_path, monkeypatch):
    """Torch sets the variable itself when it is imported; that is no user's choice."""
    ours = tmp_path / "cache" / "compiled" / "inductor"
    assert inductor_folder() == ours
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_somebody")
    assert inductor_folder() == ours
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert inductor_folder() == tmp_path / "mine"
