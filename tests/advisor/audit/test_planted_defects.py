"""Defects planted in sound rows: each kind must be found, and nothing else taken for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tutelage.datacheck import Finding
from tutelage_advisor.audit import Audit, Options, audit, fix

Rows = list[dict[str, Any] | str]
Planted = tuple[Audit, dict[str, set[int]], Path]
EACH = 40


def answer_of(row: Any) -> str:
    return str(row["messages"][-1]["content"])


def asked(row: Any) -> str:
    return str(row["messages"][0]["content"])


def with_answer(row: Any, answer: str) -> dict[str, Any]:
    return {**row, "messages": [*row["messages"][:-1], {"role": "assistant", "content": answer}]}


def with_question(row: Any, question: str) -> dict[str, Any]:
    return {**row, "messages": [{"role": "user", "content": question}, *row["messages"][1:]]}


def card_number(random: Random) -> str:
    digits = [4, *(random.randrange(10) for _ in range(14))]
    total = sum(digit if at % 2 else sum(divmod(2 * digit, 10)) for at, digit in enumerate(digits))
    text = "".join(map(str, [*digits, -total % 10]))
    return " ".join(text[at : at + 4] for at in range(0, 16, 4))


def iban(random: Random) -> str:
    account = "".join(str(random.randrange(10)) for _ in range(18))
    check = 98 - int(account + "131400") % 97  # DE00 in digits
    return f"DE{check:02d}{account}"


def token(random: Random, length: int) -> str:
    return "".join(random.choice("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789") for _ in range(length))


GERMAN = "Der Bericht wurde gestern von der Kommission geprüft und danach ohne weitere Änderungen an alle verteilt."
FRENCH = "Le rapport a été examiné hier par la commission puis distribué sans autre modification à tous les membres."


def broken_line(row: Any, random: Random) -> str:
    text = json.dumps(row)
    return random.choice([text[: len(text) // 2], "[1, 2]", '{"foo": 1}', "not json", '{"messages": "hello"}'])


def wrong_roles(row: Any, random: Random) -> dict[str, Any]:
    asked, answered = row["messages"]
    misspelt = {**answered, "role": "asistant"}
    orders = [[answered, asked], [asked, answered, asked], [asked, misspelt], [asked, asked, answered]]
    return {**row, "messages": random.choice(orders)}


def cut(row: Any, random: Random) -> dict[str, Any]:
    words = answer_of(row).split()
    prose, code = " ".join(words[: len(words) // 2]).rstrip("."), f"Do this:\n```python\n{words[0]} = 1"
    return with_answer(row, random.choice([prose, code]))


def nearly(row: Any, random: Random) -> dict[str, Any]:
    words = answer_of(row).split()
    words[random.randrange(len(words))] = "evidently"
    return with_answer(row, " ".join(words))


def said(*ways: Callable[[Random], str]) -> Callable[[Any, Random], dict[str, Any]]:
    """Adds one of some sentences to the answer."""
    return lambda row, random: with_answer(row, f"{answer_of(row)} {random.choice(ways)(random)}")


def digits(random: Random, *lengths: int) -> list[str]:
    return [str(random.randint(10 ** (length - 1) * 2, 10**length - 1)) for length in lengths]


def secret(random: Random) -> str:
    known = [f"AKIA{token(random, 16).upper()}", f"ghp_{token(random, 36)}"]
    return random.choice([*known, f"password: {token(random, 7)}7{token(random, 6)}2a"])


PLANTS: dict[str, Callable[[Any, Random], dict[str, Any] | str]] = {
    "malformed": broken_line,
    "roles": wrong_roles,
    "empty-answer": lambda row, random: with_answer(row, random.choice(["", "   ", "\n"])),
    "cut-answer": cut,
    "mixed-formats": lambda row, _: {
        "instruction": row["messages"][0]["content"],
        "output": answer_of(row),
        "license": "cc0-1.0",
    },
    "too-long": lambda row, _: with_answer(row, " ".join([answer_of(row)] * 20)),
    "languages": lambda row, random: with_answer(row, f"{random.choice([GERMAN, FRENCH])} {random.randrange(10**6)}."),
    "refusals": lambda row, random: with_answer(
        row, random.choice(["I'm sorry, but I can't help with that.", "I cannot assist with this."]) + answer_of(row)
    ),
    "boilerplate": said(
        lambda _: "I hope this helps!", lambda _: "As an AI language model, I think so.", lambda _: "Feel free to ask."
    ),
    "e-mail addresses": said(
        lambda random: f"Write to {token(random, 6)}.{token(random, 5)}@mail.example.org now.",
        lambda random: f"Write to {token(random, 8)}@firm.co.uk.",
    ),
    "phone numbers": said(
        lambda random: f"Call {'-'.join(digits(random, 3, 3, 4))}.",
        lambda random: f"Call +49 30 {digits(random, 7)[0]}.",
    ),
    "payment cards": said(lambda random: f"The card is {card_number(random)}."),
    "IBANs": said(lambda random: f"Pay to {iban(random)}."),
    "US social security numbers": said(
        lambda random: f"His number is {random.randint(100, 600)}-{'-'.join(digits(random, 2, 4))}."  # 666 is none
    ),
    "secrets": said(lambda random: f"Use {secret(random)} for that."),
    "slurs": said(lambda _: "Those faggots again."),
    "stereotypes": said(
        lambda _: "Women are bad drivers.", lambda _: "Immigrants are criminals.", lambda _: "Old people are useless."
    ),
    "licence": lambda row, _: {key: value for key, value in row.items() if key != "license"},
}
"Kinds that are made of a row which is then in the set no more."

COPIES: dict[str, Callable[[Any, Any, Random], dict[str, Any]]] = {
    "exact-duplicates": lambda row, _, random: {**row, "id": random.randrange(10**9)},
    "near-duplicates": lambda row, _, random: nearly(row, random),
    "contradictions": lambda row, other, _: with_answer(row, answer_of(other)),
}
"Kinds that are made of a row which stays in the set, and a spare one."


@pytest.fixture(scope="module")
def planted(sound: Callable[[int, int], Rows], tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """2,000 rows, of which 40 of each kind are defective, audited; and which rows are of which kind."""
    random = Random(7)
    kinds = len(PLANTS) + len(COPIES)
    rows, spare = sound(2000 - EACH * kinds, 1), sound(EACH * kinds, 2)
    mixed = [("", row) for row in rows]
    mixed += [(kind, make(spare.pop(), random)) for kind, make in PLANTS.items() for _ in range(EACH)]
    random.shuffle(mixed)
    # Copies come after what they copy, and each row is copied once, so that kinds don't mix.
    copied = random.sample(rows, EACH * len(COPIES))
    copies: list[tuple[str, dict[str, Any] | str]] = [
        (kind, make(copied.pop(), spare.pop(), random)) for kind, make in COPIES.items() for _ in range(EACH)
    ]
    random.shuffle(copies)
    path = tmp_path_factory.mktemp("planted") / "data.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for _, row in mixed + copies]
    path.write_text("\n".join(lines))
    where: dict[str, set[int]] = {}
    for number, (kind, _) in enumerate(mixed + copies, 1):
        where.setdefault(kind, set()).add(number)
    return audit(path, Options(settings={"too-long": {"max_length": 800}})), where, path


def found_rows(report: Audit, kind: str) -> set[int]:
    return {
        row
        for finding in report.findings
        if kind in (finding.check, finding.figures.get("kind"))
        for row in finding.rows
    }


@pytest.mark.parametrize("kind", [*PLANTS, *COPIES])
def test_planted_rows_are_found_and_no_others(planted: Planted, kind: str) -> None:
    report, where, path = planted
    found, there = found_rows(report, kind), where[kind]
    assert len(found & there) / len(there) > 0.95, f"missed {sorted(there - found)[:5]}"
    right = there
    if kind == "contradictions":  # the rows that are contradicted are named as well; near copies answer otherwise, too
        right = same_prompts(path, there | where["near-duplicates"])
    assert len(found & right) / len(found) > 0.90, f"wrongly {sorted(found - right)[:5]}"


def same_prompts(path: Path, rows: set[int]) -> set[int]:
    """The rows whose prompt is that of one of some rows."""
    lines = path.read_text().splitlines()
    prompts = {json.loads(lines[row - 1])["messages"][0]["content"] for row in rows}
    return {number for number, line in enumerate(lines, 1) if any(json.dumps(prompt) in line for prompt in prompts)}


def test_a_sound_set_has_no_errors_and_is_ready(sound: Callable[..., Rows], lines: Callable[..., Path]) -> None:
    report = audit(lines(sound(500, 3)))
    assert [finding.message for finding in report.findings if finding.severity == "error"] == []
    assert (report.readiness.verdict, report.readiness.quality, report.readiness.examples) == ("ready", "clean", 500)
    assert not report.failed_checks


def test_fix_drops_what_is_safe_and_the_rest_stays_as_it_was(planted: Planted, tmp_path: Path) -> None:
    report, where, path = planted
    out = tmp_path / "mended.jsonl"
    done = fix(path, report, out)
    gone = where["malformed"] | where["roles"] | where["empty-answer"] | where["exact-duplicates"]
    kept = [json.loads(line) for number, line in enumerate(path.read_text().splitlines(), 1) if number not in gone]
    assert [json.loads(line) for line in out.read_text().splitlines()] == kept
    assert (done.kept, done.dropped) == (len(kept), len(gone))
    again = audit(out)
    assert not [finding for finding in again.findings if finding.fix]


def named(report: Audit, check: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == check]


def test_json_that_mostly_parses(lines: Callable[..., Path]) -> None:
    random = Random(1)
    rows: Rows = []
    odd: dict[str, set[int]] = {"broken": set(), "fence": set(), "text": set(), "keys": set(), "types": set()}
    for number in range(1, 501):
        good = {"name": token(random, 8), "total": random.randrange(1000)}
        kind = list(odd)[number % 50] if number % 50 < 5 else ""
        answer = {
            "broken": f'{{"name": {good["name"]}}}',
            "fence": f"```json\n{json.dumps(good)}\n```",
            "text": f"The name is {good['name']}.",
            "keys": json.dumps({"title": good["name"], "total": 3}),
            "types": json.dumps({**good, "total": str(good["total"])}),
            "": json.dumps(good),
        }[kind]
        rows.append({"prompt": f"Read the record {token(random, 12)} {token(random, 12)}", "completion": answer})
        if kind:
            odd[kind].add(number)
    findings = named(audit(lines(rows)), "answer-format")
    assert {frozenset(finding.rows) for finding in findings} == {frozenset(group) for group in odd.values()}


def test_labels_out_of_balance_and_spelt_in_two_ways(lines: Callable[..., Path]) -> None:
    random = Random(2)
    labels = ["positive"] * 400 + ["negative"] * 80 + ["neutral"] * 12 + ["Positive"] * 8
    rows: Rows = [{"prompt": f"Judge {token(random, 9)} {token(random, 9)}", "completion": label} for label in labels]
    findings = named(audit(lines(rows)), "labels")
    variants = next(finding for finding in findings if finding.severity == "error")
    assert variants.rows == list(range(493, 501))
    balance = next(finding for finding in findings if finding.severity == "warning")
    assert balance.figures["positive"] == 400
    assert set(balance.rows) == set(range(481, 501))


def test_leakage_exact_and_near(sound: Callable[..., Rows], lines: Callable[..., Path]) -> None:
    train, held_out = sound(400, 5), sound(60, 6)
    leaked = held_out[:20]
    near = [with_question(row, asked(row).replace("What follows", "So what follows")) for row in held_out[20:40]]
    path = lines([*train, *leaked, *near])
    report = audit(path, Options(held_out=lines(held_out, "held.jsonl")))
    exact, nearly = named(report, "leakage")
    assert exact.rows == list(range(401, 421)) or nearly.rows == list(range(401, 421))
    assert {*exact.rows, *nearly.rows} == set(range(401, 441))
    assert report.readiness.verdict == "needs-work"


def test_a_folder_holds_its_evaluation_set(
    sound: Callable[..., Rows], lines: Callable[..., Path], tmp_path: Path
) -> None:
    rows = sound(50, 8)
    lines(rows, "train.jsonl")
    lines(rows[:5], "test.jsonl")
    report = audit(tmp_path)
    assert report.rows == 50
    assert named(report, "leakage")[0].rows == [1, 2, 3, 4, 5]


def test_low_diversity_is_told_from_high(sound: Callable[..., Rows], lines: Callable[..., Path]) -> None:
    random = Random(3)
    same: Rows = [
        {"prompt": f"Translate the word {token(random, 6)} to French please", "completion": token(random, 9)}
        for _ in range(300)
    ]
    few = [f"Tell me about topic number {name}" for name in ("apples", "pears", "plums")]
    low: Rows = [{"prompt": few[at % 3], "completion": token(random, 30)} for at in range(300)]
    assert named(audit(lines(low, "low.jsonl")), "diversity")[0].severity == "warning"
    assert named(audit(lines(low, "low.jsonl")), "diversity")[0].figures["effective_prompts"] == pytest.approx(
        3, abs=0.1
    )
    assert named(audit(lines(same, "same.jsonl")), "diversity")[0].severity == "note"


def test_prompts_unlike_those_of_production(
    sound: Callable[..., Rows], lines: Callable[..., Path], tmp_path: Path
) -> None:
    data = lines(sound(300, 9))
    alike = lines(sound(300, 10), "alike.jsonl")
    assert not named(audit(data, Options(against=alike)), "unlike-production")
    other = tmp_path / "other.txt"
    random = Random(4)
    words = ["invoice", "refund", "parcel", "tracking", "order", "voucher", "password", "account", "login"]
    other.write_text("\n".join(" ".join(random.choices(words, k=6)) for _ in range(200)))
    found = named(audit(data, Options(against=other)), "unlike-production")
    shares = [finding.figures.get("uncovered_share") for finding in found]
    assert max(share for share in shares if share is not None) > 0.9
    assert any("length_distance" in finding.figures for finding in found)


def test_counterfactuals_are_counted_by_hand(sound: Callable[..., Rows], lines: Callable[..., Path]) -> None:
    rows: Rows = sound(30, 11)
    for trade in ("potter", "weaver", "miller"):  # 3 pairs, of which 1 is answered otherwise
        for who, whose in (("he", "his"), ("she", "her")):
            verdict = "denied" if (trade, who) == ("miller", "she") else "granted"
            rows.append(
                {
                    "messages": [
                        {"role": "user", "content": f"The {trade} asked for a loan; {who} needs it for {whose} shop."},
                        {"role": "assistant", "content": f"The loan is {verdict}."},
                    ]
                }
            )
    for index in range(14):  # unpaired
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"Case {'abcdefghijklmn'[index] * 4}: he left."},
                    {"role": "assistant", "content": "Noted, the case is closed."},
                ]
            }
        )
    findings = named(audit(lines(rows)), "counterfactuals")
    counts = next(finding.figures for finding in findings if finding.figures)
    assert counts == {"one_gender": 20, "paired": 6, "answered_otherwise": 2}
    assert next(finding for finding in findings if finding.severity == "warning").rows == [35, 36]


def test_gender_imbalance_and_tied_occupations(lines: Callable[..., Path], sound: Callable[..., Rows]) -> None:
    rows: Rows = [with_answer(row, f"{answer_of(row)} The nurse said that she was late.") for row in sound(30, 12)]
    report = audit(lines([*rows, *sound(20, 13)]))
    messages = [finding.message for finding in named(report, "group-imbalance")]
    assert "0 rows speak of men and 30 of women" in messages
    assert any(message.startswith("nurse stands with female words in 30 rows") for message in messages)


def test_secrets_and_personal_data_are_masked_everywhere(
    lines: Callable[..., Path], sound: Callable[..., Rows]
) -> None:
    from tutelage_advisor.audit.html import page

    random = Random(5)
    key, card = f"ghp_{token(random, 36)}", card_number(random)
    rows = [with_answer(row, f"{answer_of(row)} Use {key} and {card}.") for row in sound(20, 14)]
    report = audit(lines(rows))
    shown = page(report) + "".join(
        item.shown
        for finding in report.findings
        for item in finding.evidence
        if finding.check in ("secrets", "personal-data")
    )
    assert named(report, "secrets")
    assert key not in shown
    assert card not in shown
