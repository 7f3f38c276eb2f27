"""What is shown before a job is submitted, and what is asked about."""

from __future__ import annotations

import io

import click
import pytest

from tutelage.errors import TutelageError
from tutelage_server.cli.plan_page import doubts, facts, print_plan
from tutelage_server.cli.submit import _ask

STAGE = {"gpu": "L4", "intervals": {"usd": [8.0, 12.0], "hours": [1.0, 3.0]}}
ESTIMATE = {"peak_gib": 20.25, "fits": True, "hours": 2.0, "usd": 10.0, "stages": {"a": STAGE, "b": STAGE}}


def plan(**changes):
    return {"estimate": ESTIMATE, "jobs": 1, "max_usd": None, "notes": [], "data": {}, "launcher": "here", **changes}


def test_ranges_are_sums_of_the_stages():
    assert dict(facts(ESTIMATE)) == {
        "memory": "20.2 GiB of a L4 at most, which fits",
        "time": "2 h 00 min (likely 2 h 00 min to 6 h 00 min), once it runs",
        "cost": "$10.00 (likely $16.00 to $24.00)",
    }


def test_what_costs_or_does_not_fit_is_asked_about_and_nothing_else():
    assert doubts(plan()) == ["may cost up to $24.00"]
    assert doubts(plan(max_usd=30.0, jobs=3)) == ["may cost up to $90.00"]
    assert doubts(plan(estimate={**ESTIMATE, "usd": None, "fits": False})) == ["is not expected to fit in memory"]
    assert doubts(plan(estimate=None)) == []
    assert doubts(plan(estimate={**ESTIMATE, "usd": 0.0})) == []


def test_nobody_to_ask_is_an_error_and_yes_is_an_answer(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(TutelageError, match=r"may cost up to \$24.00: there is no one to ask.*--yes"):
        _ask(plan(), yes=False)
    _ask(plan(), yes=True)
    _ask(plan(estimate=None), yes=False)


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_decides(monkeypatch, answer):
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(click, "confirm", lambda *_, **__: answer)
    if answer:
        _ask(plan(), yes=False)
    else:
        with pytest.raises(click.Abort):
            _ask(plan(), yes=False)


def test_the_page_tells_all_on_stderr(capsys):
    people = {"rank": {"judgements": 1200, "hours": 10.0, "usd": 300.0}}
    print_plan(
        plan(estimate={**ESTIMATE, "people": people}, notes=["odd"], data={"a": {"read": 7}}, jobs=2, max_usd=3.0)
    )
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0] == "2 jobs would run on here"
    for line in (
        "a: data: read 7",
        "people for rank: 1,200 judgements",
        "cost of all 2 jobs: up to $6.00",
        "note: odd",
    ):
        assert line in shown.err
