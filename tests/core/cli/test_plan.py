"""`tutelage plan pretrain` against the papers' own figures, and against a search of the loss that it minimises."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.config import parse_yaml
from tutelage.plugins import host
from tutelage.recipe import resolve
from tutelage.scaling import BESIROGLU, HOFFMANN, LAWS, amount, brief, learning_rate, tokens_per_step

GOPHER = 5.76e23
"The budget that Hoffmann et al. compare by."


def test_the_papers_own_figures():
    """Hoffmann et al. 2022, section 3.3: approach 3 gives 40 billion parameters for Gopher's budget, and table 2's
    exponents 0.46 and 0.54. Besiroglu et al. 2024 find about 20 tokens a parameter there, as Chinchilla has."""
    assert HOFFMANN.best(GOPHER).parameters == pytest.approx(40e9, rel=0.02)
    doubled = HOFFMANN.best(2 * GOPHER)
    assert math.log2(doubled.parameters / HOFFMANN.best(GOPHER).parameters) == pytest.approx(0.46, abs=0.005)
    assert math.log2(doubled.tokens / HOFFMANN.best(GOPHER).tokens) == pytest.approx(0.54, abs=0.005)
    found = BESIROGLU.best(GOPHER)
    assert found.tokens / found.parameters == pytest.approx(20, rel=0.1)
    assert found.parameters == pytest.approx(70e9, rel=0.05)
    # by hand: 1.8172 + 482.01 / (7e10)^0.3478 + 2085.43 / (1.4e12)^0.3658
    assert BESIROGLU.loss(70e9, 1.4e12) == pytest.approx(1.8172 + 0.08152 + 0.07519, abs=1e-4)


@given(exponent=st.floats(16, 26), law=st.sampled_from(LAWS))
def test_no_other_size_has_less_loss(exponent, law):
    flops = 10**exponent
    best = law.best(flops)
    assert 6 * best.parameters * best.tokens == pytest.approx(flops)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        parameters = factor * best.parameters
        assert law.loss(parameters, flops / (6 * parameters)) > best.loss
    assert law.best_for(best.parameters).flops == pytest.approx(flops)


def test_command(tutelage):
    told = tutelage("plan", "pretrain", "--budget-flops", "5.76e23", "--json")
    assert told.code == 0
    answers = {answer["law"]: answer for answer in told.lines[0]["answers"]}
    assert answers["hoffmann"]["parameters"] == pytest.approx(40e9, rel=0.02)
    assert answers["besiroglu"]["gpu_hours"] == pytest.approx(5.76e23 / (312e12 * 0.4) / 3600)
    hours = tutelage("plan", "pretrain", "--gpu-hours", "10", "--tflops", "100", "--utilisation", "0.5", "--json")
    assert hours.lines[0]["answers"][0]["flops"] == pytest.approx(10 * 3600 * 50e12)
    sized = tutelage("plan", "pretrain", "--parameters", "1.5B", "--json").lines[0]
    assert sized["answers"][1]["parameters"] == pytest.approx(1.5e9)
    trainer = sized["recipe"]["stages"][0]["trainer"]
    assert trainer["max_steps"] * trainer["tokens_per_step"] == pytest.approx(sized["answers"][0]["tokens"], rel=0.01)


@pytest.mark.parametrize("budget", [["--parameters", "200k"], ["--budget-flops", "1e20"]])
def test_its_recipe_is_a_recipe(tutelage, budget):
    printed = tutelage("plan", "pretrain", *budget).out
    assert "Hoffmann et al. 2022" in printed
    assert "Besiroglu et al. 2024" in printed
    made = parse_yaml(printed.partition(":\n\n")[2])
    assert resolve(made, Path(), host()).phases["pretrain"].name == "pretrain"


@pytest.mark.parametrize("budget", [["--parameters", "10"], ["--budget-flops", "1e60"]])
def test_there_is_no_recipe_for_what_nobody_can_train(tutelage, budget):
    told = tutelage("plan", "pretrain", *budget, "--json").lines[0]
    assert told["recipe"] is None
    assert any("there is no recipe for it" in note for note in told["notes"])
    assert "A recipe" not in tutelage("plan", "pretrain", *budget).out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no budget is given"),
        (["--parameters", "1B", "--gpu-hours", "2"], "--gpu-hours and --parameters are given"),
        (["--gpu-hours", "soon"], "'soon' is not a number over 0"),
        (["--parameters", "0"], "'0' is not a number over 0"),
    ],
)
def test_what_can_not_be_planned(tutelage, arguments, words):
    told = tutelage("plan", "pretrain", *arguments)
    assert told.code == 2
    assert words in told.err


@pytest.mark.parametrize(
    ("text", "value"), [("8192", 8192), ("10M", 1e7), ("1.5b", 1.5e9), ("1e20", 1e20), ("2_000", 2000), (12, 12)]
)
def test_amounts(text, value):
    assert amount(text) == value


@given(value=st.floats(1, 1e15))
def test_amounts_are_read_as_they_are_written(value):
    assert amount(brief(value)) == pytest.approx(value, rel=0.006)


def test_published_rules():
    """Kaplan et al. 2020, equation D.1, and Bi et al. 2024, equation 1, by hand."""
    assert learning_rate(85e6) == pytest.approx(0.003239 - 0.0001395 * 18.2582, rel=1e-4)
    assert learning_rate(1e12) == 6e-5
    assert tokens_per_step(1e20) == pytest.approx(0.292 * 10**6.542)
