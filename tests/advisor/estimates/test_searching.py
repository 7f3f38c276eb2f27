"""The question turned round."""

from __future__ import annotations

import msgspec
import pytest

from tutelage.errors import TutelageError
from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import EstimateRequest, estimate, largest_models, what_fits

CATALOG = load()


def test_options_fit_and_are_sorted_by_cost():
    request = EstimateRequest(model="Llama-3.1-8B", adapter="qlora", seq_len=2048, examples=1000)
    options = what_fits(request, CATALOG)
    priced = [option.usd for option in options if option.usd is not None]
    assert priced == sorted(priced)
    for option in options[:10]:
        asked = msgspec.structs.replace(
            request,
            gpu=option.gpu,
            gpus=option.gpus,
            strategy=option.strategy if option.gpus > 1 else "auto",
            checkpointing=option.checkpointing,
            chunked_loss=option.chunked_loss,
        )
        assert estimate(asked, CATALOG).fits


def test_frugality_is_used_only_where_it_is_needed():
    request = EstimateRequest(model="SmolLM2-135M", seq_len=512)
    assert not any(option.checkpointing for option in what_fits(request, CATALOG) if option.gpu == "H100-SXM")


def test_nothing_fits_what_is_too_large():
    assert what_fits(EstimateRequest(model="DeepSeek-V3", adapter="full"), CATALOG) == []


def test_largest_models_of_a_gpu():
    found = {entry.adapter: entry for entry in largest_models("RTX 4090", EstimateRequest(model="any"), CATALOG)}
    assert found["full"].parameters < found["lora"].parameters < found["qlora"].parameters
    assert all(entry.peak_gib <= CATALOG.gpu("RTX 4090").usable for entry in found.values())
    with pytest.raises(TutelageError):
        largest_models("RTX 0", EstimateRequest(model="any"), CATALOG)
