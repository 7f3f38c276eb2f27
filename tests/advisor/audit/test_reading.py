"""Any file gets rows, findings or a sentence; never a traceback, never the whole file in memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import TutelageError
from tutelage_advisor.audit import audit, readiness
from tutelage_advisor.audit.reading import examples, open_source

GOOD = {"prompt": "What is the colour of the sky?", "completion": "It is blue."}

BAD: dict[str, bytes] = {
    "binary.jsonl": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "empty.jsonl": b"",
    "blank.jsonl": b"\n \n\t\n",
    "damaged.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 100)[:40],
    "not.jsonl.gz": b"this is no gzip",
    "broken.json": b'[{"text": "a"}, {"text": ',
    "scalar.json": b"3",
    "picture.png": b"\x89PNG",
    "binary.csv": b"a,b\n\x00\x01,2\n",
    "quotes.csv": b'prompt,completion\n"a,b\nc,d\n',
    "no.parquet": b"PAR1 or so",
    "list.json": b"[]",
}


@pytest.mark.parametrize("name", BAD)
def test_unreadable_files_get_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(TutelageError) as caught:
        audit(tmp_path / name)
    assert str(caught.value).strip()
    assert caught.value.exit_code == 2


def test_a_path_that_is_not_there_and_a_folder_without_data(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.jsonl", tmp_path):
        with pytest.raises(TutelageError):
            audit(path)


def test_a_sparse_file_of_ten_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(GOOD).encode() + b"\n")
        file.truncate(10 * 2**30)
    with pytest.raises(TutelageError, match="binary"):
        audit(path)


def test_an_endless_line_is_one_finding_and_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        for _ in range(120):
            file.write(b"x" * 2**20)  # one line of 120 MiB
        file.write(b"\n" + json.dumps(GOOD).encode() + b"\n")
    tracemalloc.start()
    broken = [bool(example.error) for example in examples(open_source(path))]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert broken == [True, False]
    assert peak < 100 * 2**20


def test_rows_of_all_kinds_of_files_are_the_same(tmp_path: Path) -> None:
    rows = [GOOD, {"prompt": "And of grass?", "completion": "Green."}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    (tmp_path / "d.csv").write_text("prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in rows))
    read = [[(e.number, e.turns) for e in examples(open_source(path))] for path in sorted(tmp_path.iterdir())]
    assert all(each == read[0] for each in read)
    assert read[0][0] == (1, [("user", GOOD["prompt"]), ("assistant", GOOD["completion"])])


def test_malformed_rows_are_found_in_csv_and_json_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\na b,c d\nonly one\ne f,g h\n")
    (tmp_path / "b.json").write_text(json.dumps([GOOD, 7, GOOD]))
    for name in ("a.csv", "b.json"):
        report = audit(tmp_path / name)
        assert next(finding.rows for finding in report.findings if finding.check == "malformed") == [2]
        assert report.rows == 3


def test_readiness_is_insufficient_for_few_rows(lines: Callable[..., Path]) -> None:
    found = readiness(lines([GOOD] * 3))
    assert (found.verdict, found.examples) == ("insufficient", 1)
    assert "fewer than 100" in found.reasons[0]


_KEYS = [
    "messages",
    "role",
    "content",
    "from",
    "value",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "text",
    "output",
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(json_values, min_size=1, max_size=5))
def test_no_row_whatever_it_holds_stops_the_audit(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("any") / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = audit(path)
    assert report.rows == len(rows)
    assert not report.failed_checks


def test_preferences_prompts_and_judgements_are_read_as_turns(lines: Callable[..., Path]) -> None:
    asked = [{"role": "user", "content": "Why?"}]
    kinds = [
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, ["Why?", "So."]),
        ({"prompt": asked, "answers": ["No.", "So.", "Hm."], "ranks": [3, 1, 2]}, ["Why?", "So."]),
        ({"prompt": "Why?", "completion": "So.", "label": True}, ["Why?", "So."]),
        ({"prompt": asked}, ["Why?"]),
    ]
    for row, texts in kinds:
        path = lines([row])
        (example,) = examples(open_source(path))
        assert (example.error, [text for _, text in example.turns]) == ("", texts)
        assert not [finding for finding in audit(path).findings if finding.check in ("roles", "malformed")]


def test_the_readiness_of_large_data_is_judged_by_its_first_rows(lines: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"prompt": f"Count to {at} by {at % 7}.", "completion": f"It ends at {at}."} for at in range(600)]
    path = lines([*rows[:300], *([{"broken": True}] * 9), *rows[300:]])
    whole, part = readiness(path), readiness(path, most=200)
    assert whole.examples <= 600
    assert not [reason for reason in whole.reasons if "judged by" in reason]
    assert abs(part.examples - 609) < 30
    assert any("judged by the first 200 of about 6" in reason for reason in part.reasons)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert "first 200 of about 600 rows" in readiness(tmp_path / "rows.json", most=200).reasons[-1]
