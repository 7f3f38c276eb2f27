"""Critical batches, plans and the report."""

import json

import msgspec
import pytest
from bench.scaling.__main__ import main
from bench.scaling.batches import critical_batch, tokens_needed
from bench.scaling.plans import plan
from bench.scaling.survey import COUNTS, MODELS, Row, memory_rows, rows
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tutelage.scaling import BESIROGLU
from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import architecture_of

CATALOG = load()
CRITICAL = {model: critical_batch(architecture_of(model, CATALOG).parameters) for model in MODELS}
MODEL, NETWORK, GPU = "Llama-3.1-8B", "InfiniBand NDR", "H100-SXM"


@pytest.fixture(scope="module")
def surveyed():
    return list(rows(CATALOG))


def row(gpus, efficiency, **changes):
    made = Row(
        model=MODEL,
        gpu=GPU,
        network=NETWORK,
        strategy="fsdp",
        gpus=gpus,
        micro_batch=1,
        accumulation=1,
        checkpointing=False,
        fits=True,
        memory_gib=1.0,
        seconds=1.0,
        compute=efficiency,
        exposed=0.0,
        waiting=0.0,
        tokens=4096 * gpus,
        tokens_needed=1.0,
        tokens_per_second=1000.0 * gpus * efficiency,
        efficiency=efficiency,
        usd_per_billion_tokens=1.0,
    )
    return msgspec.structs.replace(made, **changes)


def test_the_critical_batch_follows_the_loss():
    parameters, tokens = 8e9, 1.6e11
    loss = BESIROGLU.loss(parameters, tokens)
    assert critical_batch(parameters) == pytest.approx(2.1e8 / loss**4.8)
    assert critical_batch(parameters, 1e12) > critical_batch(parameters) > critical_batch(1e9)


@given(st.floats(1e3, 1e9), st.floats(1e3, 1e9))
def test_at_the_critical_batch_twice_the_tokens_are_needed(batch, critical):
    assert tokens_needed(critical, critical) == 2
    assert tokens_needed(batch, critical) > 1


def test_what_stops_a_model_comes_in_order():
    made = [row(8, 0.95), row(16, 0.7), row(32, 0.9), row(64, 0.7), row(64, 0.85, accumulation=8), row(128, 0.5)]
    made.append(row(1, 1.0, strategy="ddp", fits=False))
    made.append(row(2048, 0.95))  # more tokens a step than are useful
    found = plan(MODEL, NETWORK, made, CATALOG)
    assert not found.copies_fit
    assert found.sharded_from == 8
    assert [(stop.what, stop.gpus) for stop in found.stops[:3]] == [
        ("memory", 1),
        ("network, without accumulation", 64),  # 16 was slow too, but 32 was not
        ("network, even with accumulation", 128),
    ]
    assert found.stops[-1].what == "batch size"
    assert found.best == made[4]


def test_batches_stop_a_model_where_one_row_each_is_too_many():
    found = plan(MODEL, NETWORK, [row(8, 0.95)], CATALOG)
    gpus = found.stops[-1].gpus
    assert gpus * 4096 > found.critical_batch >= gpus // 2 * 4096


def test_large_models_need_several_gpus(surveyed):
    for model, fewest in (("Llama-3.2-1B", 1), ("Llama-3.1-8B", 2), ("Llama-3.1-70B", 16)):
        found = plan(model, NETWORK, surveyed, CATALOG)
        assert (found.copies_fit, found.sharded_from) == (fewest == 1, fewest)


def test_rows_say_whether_they_fit(surveyed):
    for each in surveyed:
        assert each.fits == (each.memory_gib <= CATALOG.gpu(each.gpu).usable)
        assert 0 < each.efficiency <= 1
        assert (each.tokens_needed <= 2) == (each.tokens <= CRITICAL[each.model])
        hourly = CATALOG.gpu(each.gpu).typical_price * each.gpus
        assert each.usd_per_billion_tokens == pytest.approx(hourly * 1e9 / (each.tokens_per_second * 3600))
    assert {each.gpus for each in surveyed} == set(COUNTS)


def test_sharded_memory_falls_to_what_does_not_shard():
    held = memory_rows(CATALOG)["Llama-3.1-70B"]
    peaks = [peak for _, peak, _ in held["fsdp"]]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] - peaks[-1] == pytest.approx(16 * 70.55e9 / 2**30, rel=0.1)


def test_the_report_is_whole_and_needs_nothing_else(tmp_path):
    done = CliRunner().invoke(main, ["--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "throughput, held out" in done.output
    page = (tmp_path / "scaling.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 20
    assert "src=" not in page
    assert "<link" not in page
    assert "<script" not in page
    told = json.loads((tmp_path / "scaling.json").read_text())
    assert {"constants", "errors", "published", "plans", "memory", "rows"} <= set(told)
    assert "MPT-70B, A100-40" in page


def test_json_is_printed_alone():
    done = CliRunner().invoke(main, ["--json"], catch_exceptions=False)
    assert len(json.loads(done.output)["plans"]) == 16
