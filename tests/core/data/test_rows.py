"""Rows from files: every kind yields the same, and what is wrong is told with its place."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data.problems import RowProblems
from tutelage.data.reading import detect, files_of, fingerprint, rows
from tutelage.errors import TutelageError
from tutelage.formats import DataFormat, Text
from tutelage.plugins import Host

ROWS = [{"prompt": "Was ist 1 + 1?", "completion": "Zwei,\nnatürlich"}, {"prompt": "ok", "completion": 'say "yes"'}]


def write(path: Path, records: list[dict]) -> None:
    kind = path.name.partition(".")[2]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records).encode()
    if kind in ("jsonl", "ndjson"):
        path.write_bytes(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif kind == "json":
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    elif kind == "json.gz":
        path.write_bytes(gzip.compress(json.dumps(records).encode()))
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    else:
        parquet.write_table(pa.Table.from_pylist(records), path)


def read(folder: Path, name: str) -> list[tuple[str, dict]]:
    return list(rows(files_of(name, folder, "data.train")))


def problems_of(folder: Path, name: str) -> list[str]:
    with pytest.raises(TutelageError) as caught:
        read(folder, name)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("jsonl", ["line 1", "line 2"]),
        ("ndjson", ["line 1", "line 2"]),
        ("jsonl.gz", ["line 1", "line 2"]),
        ("json", ["row 1", "row 2"]),
        ("json.gz", ["row 1", "row 2"]),
        ("csv", ["line 2", "line 4"]),
        ("tsv", ["line 2", "line 4"]),
        ("parquet", ["row 1", "row 2"]),
    ],
)
def test_every_kind_of_file_yields_the_same_rows_with_their_places(tmp_path, kind, places):
    write(tmp_path / f"x.{kind}", ROWS)
    assert read(tmp_path, f"x.{kind}") == [(f"x.{kind} {place}", row) for place, row in zip(places, ROWS, strict=True)]


json_rows = st.dictionaries(
    st.text(max_size=8), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20), max_size=3
)


@settings(max_examples=40, deadline=None)
@given(records=st.lists(json_rows, min_size=1, max_size=5), blank=st.booleans(), bom=st.booleans())
def test_json_lines_are_what_json_says(tmp_path_factory, records, blank, bom):
    folder = tmp_path_factory.mktemp("rows")
    text = ("\n \n" if blank else "\n").join(json.dumps(row) for row in records)
    (folder / "x.jsonl").write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    assert [row for _, row in read(folder, "x.jsonl")] == records


def test_json_may_hold_an_object_a_line_and_a_byte_order_mark(tmp_path):
    write(tmp_path / "x.jsonl", ROWS)
    (tmp_path / "y.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "x.jsonl").read_bytes())
    (tmp_path / "z.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS).encode())
    (tmp_path / "z.csv").write_bytes(b"\xef\xbb\xbfprompt,completion\nok,fine\n")
    assert read(tmp_path, "y.json")[1] == ("y.json line 2", ROWS[1])
    assert read(tmp_path, "z.json")[1] == ("z.json row 2", ROWS[1])
    assert read(tmp_path, "z.csv") == [("z.csv line 2", {"prompt": "ok", "completion": "fine"})]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_may_be_parted_as_spreadsheets_do(tmp_path, delimiter):
    with (tmp_path / "x.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["prompt", "a;b,c\td", "completion"], ["1, 2; 3", "x", "4\n5\t6"], ["7", "8", "9"]])
    assert [row for _, row in read(tmp_path, "x.csv")] == [
        {"prompt": "1, 2; 3", "a;b,c\td": "x", "completion": "4\n5\t6"},
        {"prompt": "7", "a;b,c\td": "8", "completion": "9"},
    ]


def test_a_folder_is_its_data_files_by_name_and_hidden_ones_are_left_out(tmp_path):
    for name in ("b.jsonl", "a.csv", "deep/c.json", ".hidden/d.jsonl", ".e.jsonl"):
        target = tmp_path / "set" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, ROWS) if not name.startswith(".") else target.write_text("not data")
    (tmp_path / "set" / "README.md").write_text("about")
    assert [place for place, _ in read(tmp_path, "set/")] == [
        "set/a.csv line 2",
        "set/a.csv line 4",
        "set/b.jsonl line 1",
        "set/b.jsonl line 2",
        "set/deep/c.json row 1",
        "set/deep/c.json row 2",
    ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", b"", "x.jsonl: is empty"),
        ("x.jsonl", b"\n\n", "x.jsonl: holds no rows"),
        ("x.json", b"[]", "x.json: holds no rows"),
        ("x.csv", b"a,b\n", "x.csv: holds no rows"),
        ("x.jsonl", b'{"a": 1}\n{"a": 2\n{"a": 3}\n', "x.jsonl line 2: malformed JSON: it ends too early"),
        (
            "x.jsonl",
            b'{"a": 1}\n{"a": NaN}\n',
            "x.jsonl line 2: malformed JSON: invalid character at character 7 or so",
        ),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "x.jsonl line 2: is not UTF-8 text"),
        ("x.jsonl", b'{"a": 1}\n\n[1, 2]\n', "x.jsonl line 3: is a list, not an object"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl line 1: "),
        ("x.jsonl", b"\x7fELF\x00\x01", "x.jsonl: is a binary file"),
        ("x.jsonl", '{"a": 1}'.encode("utf-16"), "x.jsonl: is UTF-16, not UTF-8"),
        ("x.json", b'[{"a": 1},\n{"a": }]', "x.json line 2: malformed JSON: invalid character"),
        ("x.json", b'[{"a": 1},\n{"a": 2}', "x.json line 2: malformed JSON: it ends too early"),
        ("x.json", b'[{"a": 1}, 7]', "x.json row 2: is a number, not an object"),
        ("x.json", b'{\n "data": []}', "x.json: holds one object, not a list of rows"),
        ("x.json", b'"text"', "x.json: holds something else, not a list of rows"),
        ("x.json", b"\x00\x01", "x.json: is a binary file"),
        ("x.json", '["\xe9"]'.encode("latin-1"), "x.json: is not UTF-8 text"),
        ("x.csv", b"a,b,a\n1,2,3\n", "x.csv line 1: the column 'a' appears twice"),
        ("x.csv", b"a,b\n1,2\n3\n", "x.csv line 3: has 1 fields where the header has 2"),
        ("x.csv", b'a,b\n1,2\n"3,4\n', "x.csv line 3: malformed: "),
        ("x.csv", b"a,b\n1,2\n3,\xff\n", "x.csv line 3: is not UTF-8 text"),
        ("x.csv", b"PK\x03\x04\x00\x00", "x.csv: is a binary file"),
        ("x.jsonl.gz", b'{"a": 1}\n', "x.jsonl.gz: can't be read: Not a gzipped file"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-12], "x.jsonl.gz: can't be read: "),
        ("x.parquet", b"PAR1 but not really", "x.parquet: is not a Parquet file that can be read"),
        ("x.xlsx", b"PK", "x.xlsx: is a kind of file that is not known (.xlsx)"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_a_bad_file_is_told_of_with_its_place(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    found = problems_of(tmp_path, name)
    assert found[0].startswith(expected)
    assert "\n" not in found[0]


def test_problems_are_collected_and_good_rows_go_on(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\nnonsense\n{"a": 3}\n[]\n{"a": 5}\n')
    problems = RowProblems()
    good = [row["a"] for _, row in rows(files_of("x.jsonl", tmp_path, "data"), problems)]
    assert good == [1, 3, 5]
    assert [problem.place for problem in problems.first] == ["x.jsonl line 2", "x.jsonl line 4"]


def test_of_a_flood_of_problems_three_of_a_kind_are_told_and_the_rest_counted(tmp_path):
    (tmp_path / "x.jsonl").write_text("nonsense\n" * 1233 + "[]\n")
    found = problems_of(tmp_path, "x.jsonl")
    assert [line.partition(":")[0] for line in found] == [*(f"x.jsonl line {n}" for n in (1, 2, 3, 1234)), "x.jsonl"]
    assert found[-1] == "x.jsonl: and 1,230 more rows with problems"


def test_of_many_kinds_of_problems_twenty_are_told():
    problems = RowProblems()
    for number in range(50):
        problems.add(f"x line {number}", f"is wrong in way {number}")
    assert len(problems.listed("x")) == 21
    assert str(problems.listed("x")[-1]) == "x: and 30 more rows with problems"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("trian.jsonl", "there is no file or folder trian.jsonl; did you mean train.jsonl?"),
        ("tatsu-lab/alpaca", "for a data set of the hub write hub:tatsu-lab/alpaca"),
        ("empty", "the folder empty holds no data files (there is notes.md)"),
        ("hub:alpaca", "'hub:alpaca' names no hub data set; write hub:OWNER/NAME"),
        ("hub:../../etc", "names no hub data set"),
    ],
)
def test_a_source_that_is_not_there_gets_a_hint(tmp_path, source, expected):
    (tmp_path / "train.jsonl").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("x")
    with pytest.raises(TutelageError) as caught:
        files_of(source, tmp_path, "stages.tune.data.train")
    assert str(caught.value).startswith("stages.tune.data.train: ")
    assert expected in str(caught.value)


def test_a_hub_data_set_is_read_by_the_datasets_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    write(tmp_path / "owner" / "name" / "train.jsonl", ROWS)
    write(tmp_path / "owner" / "name" / "test.jsonl", ROWS[:1])
    source = files_of("hub:owner/name:test", tmp_path, "data.train")
    assert list(rows(source)) == [("hub:owner/name:test row 1", ROWS[0])]
    whole = files_of("hub:owner/name", tmp_path, "data.train")
    assert [row for _, row in rows(whole)] == ROWS
    assert fingerprint(source) != fingerprint(whole)
    with pytest.raises(TutelageError, match=r"^data.train: hub:owner/name:dev can't be had: "):
        list(rows(files_of("hub:owner/name:dev", tmp_path, "data.train")))


def test_lines_are_read_as_they_are_asked_for_and_all_bytes_are_counted(tmp_path):
    (tmp_path / "y.jsonl").write_text(('{"text": "' + "x" * 90 + '"}\n') * 20_000)
    (tmp_path / "y.csv").write_text("text\n" + ("x" * 99 + "\n") * 20_000)
    for name in ("y.jsonl", "y.csv"):
        source = files_of(name, tmp_path, "data")
        done: list[int] = []
        found = rows(source, None, done.append)
        next(found)
        assert 0 < sum(done) < source.size / 10
        assert sum(1 for _ in found) == 19_999
        assert sum(done) == source.size


def test_the_fingerprint_follows_the_contents_alone(tmp_path):
    def of(name: str) -> str:
        return fingerprint(files_of(name, tmp_path, "data"))

    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        write(tmp_path / name, ROWS)
    write(tmp_path / "c.jsonl", ROWS[::-1])
    assert of("a.jsonl") == of("b.jsonl")
    assert of("a.jsonl") != of("c.jsonl")


class Plain(DataFormat):
    """Text."""

    name = "plain"
    columns = ("text",)

    def matches(self, row):
        return "text" in row

    def convert(self, row):
        return Text(row["text"])


class Poem(Plain):
    """Poems."""

    name = "poem"
    columns = ("text", "verses")

    def matches(self, row):
        return "verses" in row


class Module:
    @staticmethod
    def register_formats(register):
        register(Plain)
        register(Poem)


def test_the_format_is_the_only_one_that_recognises_a_row():
    host = Host()
    assert not host.register(Module, "toy").error
    assert detect({"text": "a"}, host, "x").name == "plain"
    with pytest.raises(
        TutelageError, match=r"x line 1: its columns \(text, verses\) fit the formats plain and poem; say which"
    ):
        detect({"text": "a", "verses": 2}, host, "x line 1")
    with pytest.raises(
        TutelageError, match=r"its columns \(words\) fit no data format; formats want plain: text; poem: text, verses"
    ):
        detect({"words": "a"}, host, "x line 1")


def test_reading_and_preparing_import_no_torch():
    code = (
        "import sys, tutelage.data.reading, tutelage.data.preparing, tutelage.data.showing\n"
        "heavy = {'torch', 'transformers', 'peft', 'lightning', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
