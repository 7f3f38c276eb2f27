"""A review from its sample to its signature, and every way to break the seal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tutelage.errors import TutelageError
from tutelage_advisor.audit import audit, readiness
from tutelage_advisor.cli.review import review as command
from tutelage_advisor.review import (
    begin,
    decide,
    is_signed,
    record_path,
    shown,
    sign,
    state,
    unsigned,
    verify,
    write_card,
)

Rows = list[dict[str, Any]]


def good(row: int) -> dict[str, Any]:
    return {"row": row, "accurate": True, "unbiased": True, "appropriate": True}


def reviewed(data: Path, who: str = "ann") -> None:
    """Everything of the sample found good, and signed."""
    pending = begin(data, who, audit(data), 20).pending
    decide(data, "bob", [good(item.row) for item in pending])
    sign(data, who)


def rows_of(data: Path) -> Rows:
    return [json.loads(line) for line in data.read_text().splitlines()]


def write(data: Path, rows: Rows) -> None:
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_sample_has_findings_first_and_every_cluster(data: Path) -> None:
    items = begin(data, "ann", audit(data), 30).pending
    assert len(items) == 29  # rows 11 and 12 are the same, and are looked at once
    strata = [item.stratum for item in items]
    assert strata == sorted(strata, key=lambda stratum: not stratum.startswith("finding"))
    named = {item.row for item in items if item.stratum.startswith("finding")}
    assert {11, 20} <= named
    clusters = Counter(stratum for stratum in strata if stratum.startswith("cluster"))
    assert len(clusters) == 2, "as many as 240 rows are put into"
    assert begin(data, "eve", audit(data), 7).pending == items, "an open review goes on"


def test_the_same_seed_chooses_the_same_rows_and_another_others(data: Path, tmp_path: Path) -> None:
    chosen = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        copy = tmp_path / f"{name}.jsonl"
        copy.write_bytes(data.read_bytes())
        chosen.append([item.row for item in begin(copy, "ann", audit(copy), 20, seed).pending])
    assert chosen[0] == chosen[1] != chosen[2]


def test_signing_waits_for_every_decision_and_for_what_was_found_wrong(data: Path) -> None:
    items = begin(data, "ann", audit(data), 10).pending
    with pytest.raises(TutelageError, match=f"{len(items)} rows of the sample are not decided"):
        sign(data, "ann")
    bad = items[-1].row
    decide(
        data, "bob", [good(item.row) for item in items[:-1]] + [{**good(bad), "accurate": False, "note": "wrong year"}]
    )
    with pytest.raises(TutelageError, match=f"found wrong are still there: {bad}"):
        sign(data, "ann")
    write(data, [row for number, row in enumerate(rows_of(data), 1) if number != bad])
    with pytest.raises(TutelageError, match="changed since its sample was chosen"):
        sign(data, "ann")
    left = begin(data, "ann", audit(data), 10).pending  # what was decided on rows that stayed still holds
    decide(data, "bob", [good(item.row) for item in left])
    assert sign(data, "ann").who == "ann"
    assert is_signed(data)


def test_decisions_that_are_not_of_the_sample_or_malformed_are_all_told_and_none_is_kept(data: Path) -> None:
    item = begin(data, "ann", audit(data), 5).pending[0]
    with pytest.raises(TutelageError) as caught:
        decide(data, "bob", [good(item.row), good(9999), {"row": item.row, "acurate": True}])
    assert "row 9999 is not in the sample" in str(caught.value)
    assert "did you mean accurate" in str(caught.value)
    assert not state(data).decided


def change(at: int, **fields: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{**row, **fields} if number == at else row for number, row in enumerate(rows, 1)]


BREAKS: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "a row changed": (change(150, completion="No."), "rows 101 to 200"),
    "a field added": (change(240, extra="x"), "rows 201 to 240"),
    "a row removed": (lambda rows: rows[:-1], "had 240 rows when it was signed and has 239"),
    "a row added": (lambda rows: [*rows, rows[0]], "has 241 now"),
    "rows swapped": (lambda rows: [rows[1], rows[0], *rows[2:]], "rows 1 to 100"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_any_change_after_signing_breaks_the_seal_and_is_placed(data: Path, name: str) -> None:
    reviewed(data)
    assert verify(data).ok
    assert readiness(data).quality == "reviewed"
    edit, told = BREAKS[name]
    write(data, edit(rows_of(data)))
    found = verify(data)
    assert not found.ok
    assert told in " ".join(found.problems)
    assert readiness(data).quality != "reviewed"
    assert "is not signed as it is" in str(unsigned(data, "stages.tune.data")[0])


def test_writing_the_same_rows_otherwise_keeps_the_seal(data: Path) -> None:
    reviewed(data)
    data.write_text(
        "".join(
            json.dumps(dict(reversed(row.items())), indent=None, separators=(" , ", " : ")) + "\n"
            for row in rows_of(data)
        )
    )
    assert verify(data).ok
    assert unsigned(data, "data") == []


def test_a_record_cut_after_its_card_was_written_is_found(data: Path) -> None:
    reviewed(data)
    write_card(data, audit(data))
    head = verify(data).head
    record = record_path(data)
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[:-1]))
    assert any("card" in problem for problem in verify(data).problems)
    assert any("nobody has signed" in problem for problem in verify(data).problems)
    record.unlink()
    reviewed(data, "eve")  # written anew from the start: each line is sound
    assert not verify(data).ok
    assert not verify(data, head).ok
    record_card = data.with_name(f"{data.name}.card.md")
    record_card.unlink()
    assert verify(data).ok
    assert not verify(data, head).ok, "the head that was kept elsewhere tells"


def test_a_later_decision_needs_a_new_signature(data: Path) -> None:
    reviewed(data)
    row = next(iter(state(data).decided.values()))["row"]
    decide(data, "eve", [{**good(row), "unbiased": False}])
    assert "not signed since" in verify(data).problems[0]


def test_without_a_review_it_is_said(data: Path, tmp_path: Path) -> None:
    assert "has no review" in verify(data).problems[0]
    assert not is_signed(data)
    assert "there is no file" in str(unsigned(tmp_path / "gone.jsonl", "data")[0]) or unsigned(
        tmp_path / "gone.jsonl", "data"
    )
    with pytest.raises(TutelageError, match="has no review yet"):
        state(data)


def test_a_folder_is_reviewed_with_its_record_beside_it(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    data.rename(folder / "part.jsonl")
    reviewed(folder)
    assert record_path(folder) == tmp_path / "set.review"
    assert verify(folder).ok


def test_the_card_tells_verdict_people_and_head(data: Path) -> None:
    reviewed(data)
    text = write_card(data, audit(data)).read_text()
    assert f"review_head: {verify(data).head}" in text
    assert "reviewed: true" in text
    assert "- ann signed at" in text
    assert f"- bob decided on {len(state(data).decided)} rows" in text
    assert "exact-duplicates" not in text.split("## Who signed")[1]


def test_the_commands_from_sample_to_verification(data: Path, tmp_path: Path) -> None:
    run = CliRunner()
    told = json.loads(
        run.invoke(command, [str(data), "--sample", "6", "--as", "ann", "--json"], catch_exceptions=False).stdout
    )
    assert [row["item"]["row"] for row in told["pending"]]
    assert told["pending"][0]["turns"][0][0] == "user"
    decisions = tmp_path / "decisions.jsonl"
    decisions.write_text("".join(json.dumps(good(row["item"]["row"])) + "\n" for row in told["pending"]))
    run.invoke(command, [str(data), "--decisions", str(decisions), "--as", "bob"], catch_exceptions=False)
    signed = json.loads(
        run.invoke(command, ["sign", str(data), "--as", "ann", "--json"], catch_exceptions=False).stdout
    )
    assert Path(signed["card"]).exists()
    fine = run.invoke(command, ["verify", str(data), "--head", signed["head"], "--json"], catch_exceptions=False)
    assert fine.exit_code == 0
    assert json.loads(fine.stdout)["ok"] is True
    write(data, rows_of(data)[1:])
    broken = run.invoke(command, ["verify", str(data)], catch_exceptions=False)
    assert broken.exit_code == 1
    assert "seal is broken" in broken.stdout


def test_a_person_answers_on_the_terminal_and_may_stop(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage_advisor.cli.review.is_terminal", lambda _: True)
    result = CliRunner().invoke(
        command, [str(data), "--sample", "4", "--as", "ann"], input="y\nab\nmade up\nq\n", catch_exceptions=False
    )
    assert "2 rows decided, 2 pending" in result.stdout
    bad = next(content for content in state(data).decided.values() if not content["accurate"])
    assert (bad["unbiased"], bad["appropriate"], bad["note"]) == (False, True, "made up")
    assert len(shown(data, state(data).pending)) == 2


def test_questions_without_a_terminal_are_refused(data: Path) -> None:
    with pytest.raises(TutelageError, match="--decisions"):
        CliRunner().invoke(command, [str(data), "--as", "ann"], catch_exceptions=False)


def test_a_recipe_governed_by_review_refuses_unsigned_and_changed_data(data: Path, tiny_model: Any) -> None:
    import tutelage

    stage = {"name": "tune", "phase": "sft", "data": str(data), "trainer": {"max_length": 256}}
    recipe = {"name": "x", "model": str(tiny_model("llama-tied")), "governance": "reviewed", "stages": [stage]}
    (problem,) = tutelage.check(recipe).problems
    assert problem.place == "stages.tune.data.train"
    assert "tutelage review" in problem.fix
    reviewed(data)
    assert tutelage.check(recipe).ok
    rows = rows_of(data)
    rows[50]["completion"] = "Changed after it was signed."
    write(data, rows)
    assert not tutelage.check(recipe).ok
    assert tutelage.check({**recipe, "governance": "revewed"}).problems[0].fix.startswith("did you mean reviewed?")
