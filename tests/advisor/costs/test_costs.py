"""Costs against a spreadsheet done by hand (by_hand.csv), and the laws that any costs obey."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage_advisor.costs import CostInputs, Item, Option, Serving, compare, simulate, swings
from tutelage_advisor.costs.compare import break_even_requests
from tutelage_advisor.costs.hosting import ARITHMETIC, BANDWIDTH, BATCH, gpu_seconds, gpus_needed
from tutelage_advisor.costs.uncertain import FACTORS, Closed, draw

UPFRONT = {
    "prompt": [
        Item(what="write prompts", kind="people", quantity=16, unit="hour", usd_each=60),
        Item(what="label", kind="people", quantity=10, unit="hour", usd_each=60),
    ],
    "fine-tune": [
        Item(what="set up", kind="people", quantity=24, unit="hour", usd_each=60),
        Item(what="label", kind="people", quantity=10, unit="hour", usd_each=60),
        Item(what="write examples", kind="people", quantity=8.33, unit="hour", usd_each=60),
        Item(what="prepare", kind="machine", quantity=1000, unit="example", usd_each=0.002),
        Item(what="train", kind="training", quantity=3, unit="training", usd_each=12.34),
    ],
}

GROWING = CostInputs(
    requests_per_month=100_000,
    growth_per_month=0.1,
    horizon_months=6,
    discount_per_year=0.12,
    options=[
        Option(
            name="prompt",
            upfront=UPFRONT["prompt"],
            serving=Serving(
                prompt_tokens=2000,
                cached_tokens=1000,
                output_tokens=100,
                repeated_share=0.05,
                input_per_million=0.5,
                cached_input_per_million=0.05,
                output_per_million=1.5,
            ),
        ),
        Option(
            name="fine-tune",
            upfront=UPFRONT["fine-tune"],
            serving=Serving(repeated_share=0.01, gpus=1, gpu_per_hour=0.79, gpu_seconds_per_call=12),
            again_every_months=3,
            again=[
                Item(what="tune again", kind="people", quantity=8, unit="hour", usd_each=60),
                Item(what="train again", kind="training", quantity=1, unit="training", usd_each=12.34),
            ],
        ),
    ],
)

STEADY = CostInputs(
    requests_per_month=2_000_000,
    horizon_months=3,
    discount_per_year=0,
    options=[
        Option(
            name="prompt",
            upfront=UPFRONT["prompt"],
            serving=Serving(prompt_tokens=3000, output_tokens=50, input_per_million=0.18, output_per_million=0.18),
        ),
        Option(
            name="fine-tune",
            upfront=UPFRONT["fine-tune"],
            serving=Serving(prompt_tokens=300, output_tokens=50, gpus=1, gpu_per_hour=0.49, gpu_seconds_per_call=0.1),
        ),
    ],
)

CASES = {"growing": GROWING, "steady": STEADY}


def by_hand(case: str, option: str) -> list[dict[str, str]]:
    with Path(__file__).with_name("by_hand.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if (row["case"], row["option"]) == (case, option)]


@pytest.mark.parametrize("option", ["prompt", "fine-tune"])
@pytest.mark.parametrize("case", CASES)
def test_every_month_equals_the_spreadsheet_to_the_cent(case: str, option: str) -> None:
    found = next(each for each in compare(CASES[case], draws=0).options if each.name == option)
    upfront, *months = by_hand(case, option)
    assert found.upfront_usd == float(upfront["total_usd"])
    assert len(found.months) == len(months)
    for month, row in zip(found.months, months, strict=True):
        for column in ("tokens_usd", "hosting_usd", "again_usd", "total_usd", "cumulative_usd"):
            assert getattr(month, column) == float(row[column]), (month.month, column)
        assert month.requests == pytest.approx(float(row["requests"]))
    assert found.total_usd == float(months[-1]["cumulative_usd"])
    present = sum(Decimal(row["discounted_usd"]) for row in (upfront, *months))
    assert found.present_value_usd == pytest.approx(float(present), abs=0.006)


def test_what_tuning_saves_by_hand() -> None:
    growing, steady = compare(GROWING, draws=0), compare(STEADY, draws=0)
    assert growing.saving_usd == pytest.approx(2127.10 - 7220.11)
    assert growing.npv_usd == pytest.approx(2107.30 - 7058.15)
    assert (growing.pays, growing.break_even_month) == (False, None)
    assert steady.saving_usd == pytest.approx(4854.00 - 3651.92)
    # 1018.82 more upfront, 740.30 less a month: behind after one month, ahead after two
    assert (steady.pays, steady.break_even_month) == (True, 2)
    # (1018.82 / 3 + 357.70) / 0.000549 = 1,270,139.6 calls a month
    assert steady.break_even_requests == 1_270_140
    assert steady.tuned_to_prompt == pytest.approx(3651.92 / 4854.00, abs=1e-6)


def test_utilisation_follows_traffic() -> None:
    tuned = compare(GROWING, draws=0).options[1]
    assert tuned.months[0].utilisation == pytest.approx(100_000 * 1.01 * 12 / 3600 / 730)
    assert tuned.months[5].utilisation == pytest.approx(0.5)


def inputs(fair: bool = False) -> st.SearchStrategy[CostInputs]:
    amount = st.floats(0, 50, allow_nan=False)
    tokens = st.integers(0, 5_000)
    items = st.lists(
        st.builds(
            Item,
            what=st.just("x"),
            kind=st.sampled_from(["people", "training", "machine"]),
            quantity=amount,
            unit=st.just("x"),
            usd_each=amount,
        ),
        max_size=3,
    )
    serving = st.builds(
        Serving,
        prompt_tokens=tokens,
        cached_tokens=tokens,
        output_tokens=tokens,
        repeated_share=st.floats(0, 0.3),
        input_per_million=amount,
        cached_input_per_million=amount,
        output_per_million=amount,
        gpus=st.integers(0, 4),
        gpu_per_hour=amount,
        gpu_seconds_per_call=st.floats(0, 5),
        fixed_per_month=amount,
    )

    def option(name: str) -> st.SearchStrategy[Option]:
        return st.builds(
            Option,
            name=st.just(name),
            serving=serving,
            upfront=items,
            again=items,
            again_every_months=st.none() | st.integers(1, 12),
        )

    def tuning_takes_more_before_the_first_call(case: CostInputs) -> CostInputs:
        prompt, tuned = case.options
        serving = msgspec.structs.replace(prompt.serving, gpus=0, fixed_per_month=0)
        prompt = msgspec.structs.replace(prompt, serving=serving, again_every_months=None)
        tuned = msgspec.structs.replace(tuned, upfront=prompt.upfront + tuned.upfront)
        return msgspec.structs.replace(case, options=[prompt, tuned])

    made = st.builds(
        CostInputs,
        requests_per_month=st.integers(0, 3_000_000),
        growth_per_month=st.floats(-0.2, 0.3),
        horizon_months=st.integers(1, 18),
        discount_per_year=st.floats(0, 0.5),
        options=st.tuples(option("prompt"), option("fine-tune")).map(list),
    )
    return made.map(tuning_takes_more_before_the_first_call) if fair else made


@settings(deadline=None, max_examples=40)
@given(inputs())
def test_the_closed_form_equals_the_sum_over_months(case: CostInputs) -> None:
    prompt, tuned = compare(case, draws=0).options
    closed_prompt, closed_tuned = Closed(case).given()
    rounding = 0.02 * (case.horizon_months + 4)
    assert closed_prompt == pytest.approx(prompt.present_value_usd, rel=1e-6, abs=rounding)
    assert closed_tuned == pytest.approx(tuned.present_value_usd, rel=1e-6, abs=rounding)


@settings(deadline=None, max_examples=40)
@given(inputs(fair=True), st.floats(1, 50))
def test_more_traffic_never_makes_tuning_less_economical(case: CostInputs, more: float) -> None:
    closed = Closed(case)
    if closed.pays_at(case.requests_per_month):
        assert closed.pays_at(case.requests_per_month * more)


@settings(deadline=None, max_examples=40)
@given(inputs(), st.floats(0, 1))
def test_cheaper_hardware_never_raises_cost(case: CostInputs, share: float) -> None:
    def cheaper(option: Option) -> Option:
        serving = msgspec.structs.replace(option.serving, gpu_per_hour=option.serving.gpu_per_hour * share)
        return msgspec.structs.replace(option, serving=serving)

    before = compare(case, draws=0)
    after = compare(msgspec.structs.replace(case, options=[cheaper(each) for each in case.options]), draws=0)
    for one, other in zip(before.options, after.options, strict=True):
        assert other.total_usd <= one.total_usd


@settings(deadline=None, max_examples=30)
@given(inputs(fair=True))
def test_break_even_volume_is_where_tuning_begins_to_pay(case: CostInputs) -> None:
    volume, closed = break_even_requests(case), Closed(case)
    if volume is None:
        assert not closed.pays_at(10**12)
    else:
        assert closed.pays_at(volume)
        assert volume == 0 or not closed.pays_at(volume - 1)


def test_monte_carlo_is_seeded_and_agrees_with_the_plain_costs() -> None:
    one, same, other = simulate(STEADY, 10_000, 1), simulate(STEADY, 10_000, 1), simulate(STEADY, 10_000, 2)
    assert one == same
    assert one != other
    assert one.saving_usd.low < one.saving_usd.middle < one.saving_usd.high
    assert abs(one.chance_pays - other.chance_pays) < 0.02
    # the middle of a triangle between a and b with mode 1 is (a + b + 1) / 3: the mean of prompting's cost is known
    middle = {name: (low + high + 1) / 3 for name, (low, high) in FACTORS.items()}
    tokens = 3294.00 * middle["requests per month"] * middle["token prices"]
    writing = (3000 + 50 * middle["output tokens"]) / 3050
    drawn = draw(STEADY, 20_000, 3)[0]
    assert sum(drawn) / len(drawn) == pytest.approx(1560.00 * middle["people's hours"] + tokens * writing, rel=0.01)


def test_chance_is_certain_when_nothing_can_go_wrong() -> None:
    dear = msgspec.structs.replace(STEADY, requests_per_month=10**9)
    idle = msgspec.structs.replace(STEADY, requests_per_month=0)
    assert simulate(dear, 500).chance_pays == 1.0
    assert simulate(idle, 500).chance_pays == 0.0


def test_tornado_is_in_order_and_each_bar_is_one_input_alone() -> None:
    bars = swings(STEADY)
    assert [bar.input for bar in bars] != list(FACTORS)
    assert sorted(bar.input for bar in bars) == sorted(FACTORS)
    assert [bar.swing_usd for bar in bars] == sorted((bar.swing_usd for bar in bars), reverse=True)
    traffic = next(bar for bar in bars if bar.input == "requests per month")
    # 0.4 and 2 times 2,000,000 calls at $0.000549 over 3 months, against the same hosting and upfront costs
    assert traffic.saving_at_low_usd == pytest.approx(0.4 * 3294.00 + 1560.00 - 3651.92, abs=0.01)
    assert traffic.saving_at_high_usd == pytest.approx(2 * 3294.00 + 1560.00 - 3651.92, abs=0.01)


def test_gpu_time_of_a_call_by_hand() -> None:
    # 8e9 parameters on 312 TFLOP/s and 2 TB/s: reading 1,000 tokens takes 1.6e13 FLOPs at half speed; writing 100
    # reads 16 GB at 1.4 TB/s for every 16 of them
    reading = 1.6e13 / (ARITHMETIC * 312e12)
    writing = 100 * 16e9 / (BANDWIDTH * 2e12) / BATCH
    assert gpu_seconds(8e9, 1000, 100, 312e12, 2e12) == pytest.approx(reading + writing)
    assert gpus_needed(8e9, 24) == 1
    assert gpus_needed(70e9, 80) == 3
