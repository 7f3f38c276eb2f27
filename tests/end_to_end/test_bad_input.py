"""Bad recipes, data and models, through the real command line: a sentence, exit code 2, and nothing written."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from tutelage.cli.main import main

Recipe = dict[str, Any]
Refused = Callable[..., list[str]]
Models = Callable[..., Path]

CHAT = {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}]}
PAIR = {"prompt": "the cat", "completion": "sat on the mat"}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, where good data lies and where runs would be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUTELAGE_RUNS", raising=False)
    (tmp_path / "rows.jsonl").write_bytes(lines(*[CHAT] * 8))
    return tmp_path


@pytest.fixture
def recipe(here: Path, tiny_model: Models) -> Recipe:
    """A recipe that trains as it stands."""
    trainer = {"max_steps": 2, "max_length": 200, "precision": "fp32", "devices": 1, "accelerator": "cpu"}
    stage = {
        "name": "tune",
        "phase": {"kind": "sft"},
        "adapter": {"kind": "lora", "rank": 4},
        "data": {"train": "rows.jsonl"},
        "trainer": trainer,
    }
    return {"name": "bad", "model": str(tiny_model("llama-tied")), "stages": [stage], "trackers": [{"kind": "csv"}]}


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused with these words, and returns the lines that it said."""

    def run(words: list[str], recipe: Recipe | None = None, arguments: list[str] | None = None) -> list[str]:
        if recipe is not None:
            (here / "recipe.json").write_text(json.dumps(recipe))
        before = tree(here)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments or ["train", "recipe.json"])
        captured = capsys.readouterr()
        assert ended.value.code == 2, captured.err
        assert captured.out == ""
        assert tree(here) == before
        said = captured.err.splitlines()
        for word in words:
            assert any(word in line for line in said), (word, said)
        assert "Traceback" not in captured.err
        assert "should not be" not in captured.err
        for line in said:
            assert line.startswith("error: "), line
            assert ": " in line.removeprefix("error: "), line
        return said

    return run


def changed(path: str, value: Any) -> Callable[[Recipe], None]:
    """Sets a field of the recipe; of its stage where the path starts with a dot."""

    def change(recipe: Recipe) -> None:
        *parents, last = path.strip(".").split(".")
        target = recipe["stages"][0] if path.startswith(".") else recipe
        for name in parents:
            target = target[name]
        target[last] = value

    return change


def without(path: str) -> Callable[[Recipe], None]:
    def change(recipe: Recipe) -> None:
        target = recipe["stages"][0] if path.startswith(".") else recipe
        del target[path.strip(".")]

    return change


def twice(recipe: Recipe) -> None:
    recipe["stages"] *= 2


def second_stage(**fields: Any) -> Callable[[Recipe], None]:
    return lambda recipe: recipe["stages"].append({**recipe["stages"][0], "name": "more", **fields})


RECIPES: list[tuple[str, Callable[[Recipe], None], list[str]]] = [
    # Unknown and missing fields
    ("unknown field", changed("modle", "x"), ["error: modle: unknown field; did you mean model?"]),
    ("unknown field of a stage", changed(".dta", "x"), ["stages.tune.dta: unknown field; did you mean data?"]),
    (
        "unknown field of an adapter",
        changed(".adapter.rnk", 8),
        ["stages.tune.adapter.rnk: unknown field; did you mean rank?"],
    ),
    (
        "unknown field of a trainer",
        changed(".trainer.learning_rat", 1),
        ["stages.tune.trainer.learning_rat: unknown field; did you mean learning_rate?"],
    ),
    (
        "unknown field of data",
        changed(".data.evall", "x"),
        ["stages.tune.data.evall: unknown field; did you mean eval"],
    ),
    (
        "unknown field of a tokenizer",
        changed("tokenizer", {"ad": ["<x>"]}),
        ["tokenizer.ad: unknown field; did you mean add?"],
    ),
    (
        "unknown field of a phase",
        changed(".phase", {"kind": "sft", "beta": 1}),
        ["stages.tune.phase.beta: unknown field; there are none"],
    ),
    (
        "unknown field of a tracker",
        changed("trackers", [{"kind": "csv", "fodler": "x"}]),
        ["trackers.0.fodler: unknown field"],
    ),
    ("no model", without("model"), ["error: model: missing; it has no default: add it"]),
    ("no stages", without("stages"), ["error: stages: missing; it has no default: add it"]),
    ("no phase", without(".phase"), ["stages.tune.phase: missing; it has no default: add it"]),
    ("no name of a stage", without(".name"), ["stages.0.name: missing; it has no default: add it"]),
    ("no data", without(".data"), ["stages.tune.data: missing; the phase sft needs data: name a file"]),
    ("empty data", changed(".data", {}), ["stages.tune.data: names no data; give train (or mix)"]),
    # Types and bounds
    ("stages not a list", changed("stages", {"a": 1}), ["error: stages: expected list, got", "{'a': 1}"]),
    ("no stage", changed("stages", []), ["error: stages: expected", "length >= 1"]),
    ("a stage that is text", changed("stages", ["sft"]), ["stages.0: expected a mapping (key: value), got str"]),
    (
        "text for a number",
        changed(".adapter.rank", "eight"),
        ["stages.tune.adapter.rank: expected int, got str", "'eight'"],
    ),
    ("rank 0", changed(".adapter.rank", 0), ["stages.tune.adapter.rank: expected int >= 1 (it is 0)"]),
    (
        "negative steps",
        changed(".trainer.max_steps", -1),
        ["stages.tune.trainer.max_steps: expected int >= 1 (it is -1)"],
    ),
    ("a huge number", changed(".trainer.seed", 10**40), ["stages.tune.trainer.seed: expected int", f"it is {10**40}"]),
    (
        "a huge rate",
        changed(".trainer.learning_rate", 1e9),
        ["stages.tune.trainer.learning_rate: expected float <= 10"],
    ),
    ("no data type of that name", changed(".trainer.precision", "fp64"), ["stages.tune.trainer.precision: ", "'fp64'"]),
    ("a list for a word", changed("model", ["a"]), ["error: model: expected str, got"]),
    ("a name with a slash", changed("name", "../up"), ["error: name: expected str matching", "'../up'"]),
    (
        "epochs and max_steps",
        changed(".trainer.epochs", 2),
        ["stages.tune.trainer: give either epochs or max_steps, not both"],
    ),
    (
        "train and mix",
        changed(".data.mix", [{"source": "rows.jsonl"}]),
        ["stages.tune.data: give either train or mix"],
    ),
    (
        "a weight of 0",
        changed(".data", {"mix": [{"source": "rows.jsonl", "weight": 0}]}),
        ["stages.tune.data.mix.0.weight: expected float > 0"],
    ),
    (
        "eval and eval_split",
        changed(".data", {"train": "rows.jsonl", "eval": "rows.jsonl", "eval_split": 0.1}),
        ["stages.tune.data: give either eval or eval_split, not both"],
    ),
    (
        "eval_split of everything",
        changed(".data.eval_split", 1),
        ["stages.tune.data.eval_split: expected float <= 0.5 (it is 1)"],
    ),
    ("a beta of 1", changed(".trainer.betas", [0.9, 1.0]), ["stages.tune.trainer.betas: expected float < 1"]),
    # Settings that don't go together
    (
        "patience with nothing to evaluate on",
        changed(".trainer.patience", 3),
        ["stages.tune.trainer.patience: there is nothing to evaluate on; give data.eval or data.eval_split"],
    ),
    (
        "packing with a soft prompt",
        lambda recipe: (changed(".adapter", "prompt")(recipe), changed(".trainer.packing", True)(recipe)),
        ["stages.tune.trainer.packing: the adapter prompt puts its own tokens before every example; use packing: auto"],
    ),
    # Plugins
    ("no such phase", changed(".phase", "stf"), ["stages.tune.phase.kind: ", "stf", "did you mean sft?"]),
    ("no such adapter", changed(".adapter", "lorra"), ["stages.tune.adapter.kind: ", "lorra", "did you mean lora?"]),
    ("no such tracker", changed("trackers", ["excel"]), ["trackers.0.kind: ", "excel"]),
    ("no such format", changed(".data.format", "alpacca"), ["stages.tune.data.format: ", "did you mean alpaca?"]),
    (
        "an adapter of no kind",
        changed(".adapter", {"rank": 8}),
        ["stages.tune.adapter.kind: missing; name the adapter: "],
    ),
    ("two stages of one name", twice, ["stages.tune: two stages have this name; give every stage its own"]),
    # Adapters that don't fit the model
    (
        "targets that match nothing",
        changed(".adapter.targets", ["q_prj"]),
        ["stages.tune.adapter.targets: no layer is called q_prj; did you mean q_proj?", "there are", "q_proj (2)"],
    ),
    (
        "a pattern that matches nothing",
        changed(".adapter.targets", "model[.]nothing.*"),
        ["stages.tune.adapter.targets: the pattern", "matches no layer; it must match a whole path such as"],
    ),
    (
        "a pattern that is none",
        changed(".adapter.targets", "(q_proj"),
        ["stages.tune.adapter.targets: '(q_proj' is not a regular expression"],
    ),
    (
        "layers that are not there",
        changed(".adapter.layers", [0, 9]),
        ["stages.tune.adapter.layers: there is no layer 9; there are layers 0 to 1"],
    ),
    (
        "a rank too large",
        changed(".adapter.rank", 64),
        ["stages.tune.adapter.rank: 64 is more than the 16 dimensions of", "use at most 16"],
    ),
    (
        "freezing what is not there",
        changed(".adapter", {"kind": "full", "freeze": ["modle.*"]}),
        ["stages.tune.adapter.freeze: 'modle.*' matches no parameter"],
    ),
    (
        "a prompt longer than the context",
        changed(".adapter", {"kind": "prompt", "virtual_tokens": 300}),
        ["stages.tune.adapter.virtual_tokens: 300 leave no room in this model's context of 256 tokens; use fewer"],
    ),
    # What it starts from
    (
        "a model that is not there",
        changed("model", "./nowhere"),
        ["error: model: no model is found at", "give a model's folder"],
    ),
    (
        "a file that is no model",
        changed("model", "rows.jsonl"),
        ["error: model: ", "rows.jsonl is not a model; give a model's folder"],
    ),
    ("a GGUF file that is not there", changed("model", "a.gguf"), ["error: model: there is no file", "a.gguf"]),
    (
        "no such starter",
        changed("model", "starter:smollm2"),
        ["error: model: no starter is called smollm2; did you mean smollm2-135m"],
    ),
    ("no such source", changed("model", "strater:x"), ["error: model: ", "strater", "did you mean starter?"]),
    (
        "no such run",
        changed("model", "run:yesterday"),
        ["error: model: no run is called yesterday; there are no runs in"],
    ),
    (
        "no such stage",
        second_stage(model="stage:tone"),
        ["stages.more.model: no earlier stage is called 'tone'; earlier stages are tune"],
    ),
    (
        "a stage before itself",
        changed(".model", "stage:tune"),
        ["stages.tune.model: no earlier stage is called 'tune'; there is no earlier stage"],
    ),
    # What this machine has not
    (
        "more devices than there are",
        changed(".trainer.devices", 4096),
        ["stages.tune.trainer.devices: 4096 devices are asked for and this machine has", "use at most"],
    ),
    (
        "fsdp on one device",
        changed(".trainer.strategy", "fsdp"),
        ["stages.tune.trainer.strategy: fsdp shards a model over devices and there is one device", "use more devices"],
    ),
    (
        "fsdp of 4-bit weights",
        lambda recipe: (
            changed(".trainer", {"strategy": "fsdp", "devices": 2})(recipe),
            changed(".adapter", "qlora")(recipe),
        ),
        [
            "stages.tune.trainer.strategy: a model with the adapter qlora can't be shared out among devices; use strategy"
        ],
    ),
    # The tokenizer
    (
        "new tokens that can't learn",
        lambda recipe: (changed(".adapter", "prompt")(recipe), changed("tokenizer", {"add": ["<x>"]})(recipe)),
        ["tokenizer.add: the adapter prompt of the stage tune learns no embeddings of new tokens; use lora or full"],
    ),
    ("an empty new token", changed("tokenizer", {"add": [" "]}), ["tokenizer.add: an empty token can't be added"]),
    (
        "a template that is not there",
        changed("tokenizer", {"chat_template": "chat.jinja"}),
        ["tokenizer.chat_template: there is no file", "chat.jinja; paths are relative to the recipe"],
    ),
    # Data that is not there
    (
        "a file that is not there",
        changed(".data", "rosw.jsonl"),
        ["stages.tune.data.train: there is no file or folder rosw.jsonl; did you mean rows.jsonl?"],
    ),
    (
        "held-out data that is not there",
        changed(".data.eval", "held.jsonl"),
        ["stages.tune.data.eval: there is no file or folder held.jsonl; paths start at the recipe's folder"],
    ),
    (
        "a hub data set without its prefix",
        changed(".data", "owner/set"),
        ["for a data set of the hub write hub:owner/set"],
    ),
    (
        "no name of a data set",
        changed(".data", "hub:set"),
        ["stages.tune.data.train: 'hub:set' names no hub data set; write hub:"],
    ),
    (
        "one kind of row, all held out",
        changed(".data.eval_split", 0.5),
        ["stages.tune.data.eval_split: holding out rows for evaluation leaves none to train on; give more rows"],
    ),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in RECIPES], ids=[case[0] for case in RECIPES])
def test_a_bad_field_is_refused(change: Any, words: list[str], recipe: Recipe, refused: Refused) -> None:
    change(recipe)
    assert len(refused(words, recipe)) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("recipe.yaml", b"", ["recipe.yaml: is empty; a recipe has name, model and stages"]),
        ("recipe.yaml", b"# nothing\n", ["recipe.yaml: is empty; a recipe has name, model and stages"]),
        ("recipe.yaml", b"- a\n- b\n", ["recipe.yaml: is a list, not a mapping; a recipe has name, model and stages"]),
        ("recipe.json", b'"text"', ["recipe.json: is text, not a mapping; a recipe has"]),
        ("recipe.yaml", b"name: a\nmodel: [b\nstages: c\n", ["recipe.yaml: malformed: line 3: "]),
        ("recipe.yaml", b"name: a\n\tmodel: b\n", ["recipe.yaml: malformed: line 2: "]),
        (
            "recipe.yaml",
            b"name: a\nmodel: b\nname: c\n",
            ["recipe.yaml: malformed: line 3: the key 'name' appears twice"],
        ),
        ("recipe.yaml", b"name: !!python/name:os.system x\n", ["recipe.yaml: malformed: line 1: "]),
        ("recipe.toml", b'name = "a"\nmodel = \n', ["recipe.toml: malformed: ", "line 2"]),
        ("recipe.toml", b'name = "a"\nname = "b"\n', ["recipe.toml: malformed: ", "line 2"]),
        ("recipe.json", b'{"name": "a",\n "model": }', ["recipe.json: malformed: ", "line 2"]),
        ("recipe.json", b'{"name": "a", "name": "b"}', ["recipe.json: malformed: the key 'name' appears twice"]),
        ("recipe.json", b"[" * 100_000, ["recipe.json: malformed: "]),
        ("recipe.yaml", bytes(range(256)), ["recipe.yaml: is not UTF-8 text; save it as UTF-8"]),
        ("recipe.yaml", b"name: \x00\x01\n", ["recipe.yaml: malformed: "]),
        ("recipe.txt", b"name: a", ["recipe.txt: unknown kind of file '.txt'; use .yaml, .toml or .json"]),
        (
            "recipe.yaml/inside",
            b"",
            ["recipe.yaml: is a folder, not a file; give the path of a YAML, TOML or JSON file"],
        ),
        ("recipe.jsonl", lines(PAIR), ["recipe.jsonl: unknown kind of file '.jsonl'; use .yaml, .toml or .json"]),
        (
            "recipe.yaml",
            b"name: a\nmodel: ./m\nstages: [{name: s, phase: sft, data: rows.jsonl, trainer: {clip: .nan, warmup: .inf}}]",
            [
                "stages.s.trainer.clip: nan is not a finite number",
                "stages.s.trainer.warmup: inf is not a finite number",
            ],
        ),
        (
            "recipe.yaml",
            b"name: a\nmodel: ./m\nstages: [{name: s, phase: sft, data: rows.jsonl, trainer: {checkpoint_every: 5k}}]",
            ["stages.s.trainer.checkpoint_every: expected int, got str (it is '5k')"],
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(
    name: str, content: bytes, words: list[str], here: Path, refused: Refused
) -> None:
    (here / name).parent.mkdir(exist_ok=True)
    (here / name).write_bytes(content)
    refused(words, arguments=["train", name.partition("/")[0]])


def test_a_recipe_that_is_not_there_is_refused(refused: Refused) -> None:
    refused(["nowhere.yaml: no such file; give the path of"], arguments=["train", "nowhere.yaml"])


def corrupt_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())[:-20]


LONG = {"prompt": "the cat", "completion": "the mat " * 200}
ANSWERLESS = {"messages": [{"role": "user", "content": "the cat"}]}
UNLEARNT = {"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "weight": 0}]}
ENDED = {"messages": [CHAT["messages"][0], {"role": "assistant", "content": "sat <|im_end|> on the mat"}]}

DATA: list[tuple[str, str, bytes, list[str]]] = [
    ("empty", "x.jsonl", b"", ["x.jsonl: is empty; give a file with at least one row"]),
    ("blank lines", "x.jsonl", b"\n\n", ["x.jsonl: holds no rows; give a file with at least one row"]),
    ("an empty list", "x.json", b"[]", ["x.json: holds no rows; give a file with at least one row"]),
    ("a header alone", "x.csv", b"prompt,completion\n", ["x.csv: holds no rows; give a file with at least one row"]),
    ("an object", "x.json", b'{\n "a": 1}', ["x.json: holds one object, not a list of rows; give a JSON list"]),
    ("malformed JSON", "x.json", b'[\n{"prompt": "a"},\n{]', ["x.json line 3: malformed JSON", "mend the JSON there"]),
    (
        "a malformed line",
        "x.jsonl",
        lines(PAIR, PAIR) + b'{"prompt": \n' + lines(PAIR),
        ["x.jsonl line 3: malformed JSON", "each line must be one JSON object"],
    ),
    ("a number in a line", "x.jsonl", lines(PAIR, 7), ["x.jsonl line 2: is a number, not an object with named fields"]),
    ("binary", "x.jsonl", bytes(range(256)) * 9, ["x.jsonl: is a binary file, not text; save it as UTF-8 text"]),
    (
        "UTF-16",
        "x.jsonl",
        json.dumps(PAIR).encode("utf-16"),
        ["x.jsonl: is UTF-16, not UTF-8 text; save it as UTF-8 text"],
    ),
    (
        "Latin-1",
        "x.jsonl",
        lines(PAIR) + '{"prompt": "déjà", "completion": "vu"}\n'.encode("latin-1"),
        ["x.jsonl line 2: is not UTF-8 text; save the file as UTF-8"],
    ),
    (
        "Latin-1 CSV",
        "x.csv",
        "prompt,completion\na,b\ndéjà,vu\n".encode("latin-1"),
        ["x.csv line 3: is not UTF-8 text; save the file as UTF-8"],
    ),
    (
        "truncated gzip",
        "x.jsonl.gz",
        gzip.compress(lines(*[{**PAIR, "id": os.urandom(64).hex()} for _ in range(99)]))[:-200],
        ["x.jsonl.gz: can't be read: ", "is it whole and of the kind that its name says?"],
    ),
    ("no gzip", "x.jsonl.gz", lines(PAIR), ["x.jsonl.gz: can't be read: Not a gzipped file", "is it whole"]),
    (
        "a CSV row too short",
        "x.csv",
        b"prompt,completion\na,b\nc\n",
        ["x.csv line 3: has 1 fields where the header has 2; mend the row"],
    ),
    ("an open quote", "x.csv", b'prompt,completion\na,"b\n', ["x.csv line ", "malformed: ", "mend the quotes there"]),
    (
        "a column twice",
        "x.csv",
        b"prompt,prompt\na,b\n",
        ["x.csv line 1: the column 'prompt' appears twice; rename one"],
    ),
    (
        "truncated Parquet",
        "x.parquet",
        corrupt_parquet([PAIR]),
        ["x.parquet: is not a Parquet file that can be read", "write it anew"],
    ),
    ("no Parquet", "x.parquet", lines(PAIR), ["x.parquet: is not a Parquet file that can be read", "write it anew"]),
    ("an unknown kind of file", "x.docx", b"PK", ["x.docx: is a kind of file that is not known (.docx); give JSON"]),
    (
        "unknown columns",
        "x.jsonl",
        lines({"frage": "a", "antwort": "b"}),
        ["x.jsonl line 1: its columns (frage, antwort) fit no data format; formats want", "messages"],
    ),
    (
        "mixed formats",
        "x.jsonl",
        lines(CHAT, CHAT, PAIR),
        ["x.jsonl line 3: messages is missing, not a list of turns; every row must have the format messages"],
    ),
    (
        "a chat without an answer",
        "x.jsonl",
        lines(CHAT, ANSWERLESS),
        ["x.jsonl line 2: ", "no assistant turn", "nothing to learn"],
    ),
    ("nothing learnt", "x.jsonl", lines(CHAT, UNLEARNT), ["x.jsonl line 2: nothing in it is learnt", "weight 0"]),
    (
        "an unknown role",
        "x.jsonl",
        lines({"messages": [{"role": "human", "content": "a"}, CHAT["messages"][1]]}),
        ["x.jsonl line 1: messages[0].role is 'human'; known roles are system"],
    ),
    ("an empty answer", "x.jsonl", lines(PAIR, {**PAIR, "completion": " "}), ["x.jsonl line 2: completion is empty"]),
    (
        "an end within an answer",
        "x.jsonl",
        lines(CHAT, ENDED),
        ["x.jsonl line 2: turn 2 holds <|im_end|>, which ends a turn, in its middle; remove it from the text"],
    ),
    (
        "a tool that the template leaves out",
        "x.jsonl",
        lines({**CHAT, "tools": [{"name": "clock"}]}),
        ["x.jsonl line 1: has tools, which the model's chat template would leave out", "tokenizer.chat_template"],
    ),
    (
        "rows that are too long",
        "x.jsonl",
        lines(*[PAIR] * 20, LONG),
        ["x.jsonl: 1 of 21 rows (4.8%) would be lost: 1 longer than 200 tokens (line 21)", "raise trainer.max_length"],
    ),
    (
        "all rows too long",
        "x.jsonl",
        lines(LONG),
        ["x.jsonl: 1 of 1 rows (100.0%) would be lost", "set data.too_long to cut or split"],
    ),
]


@pytest.mark.parametrize(("name", "content", "words"), [case[1:] for case in DATA], ids=[case[0] for case in DATA])
def test_bad_data_is_refused(
    name: str, content: bytes, words: list[str], here: Path, recipe: Recipe, refused: Refused
) -> None:
    (here / name).write_bytes(content)
    recipe["stages"][0]["data"] = {"train": name}
    assert len(refused(words, recipe)) == 1


@pytest.mark.parametrize("data", [{"train": "rows.jsonl", "eval": "x.jsonl"}, {"mix": [{"source": "x.jsonl"}]}])
def test_bad_data_is_refused_wherever_a_recipe_names_it(
    data: dict[str, Any], here: Path, recipe: Recipe, refused: Refused
) -> None:
    (here / "x.jsonl").write_bytes(lines(PAIR, 7))
    recipe["stages"][0]["data"] = data
    assert len(refused(["x.jsonl line 2: is a number, not an object"], recipe)) == 1


def test_what_is_wrong_with_every_row_is_told_of_a_few(here: Path, recipe: Recipe, refused: Refused) -> None:
    (here / "x.jsonl").write_bytes(lines(*[ANSWERLESS] * 1000, PAIR))
    recipe["stages"][0]["data"]["train"] = "x.jsonl"
    words = [
        "x.jsonl line 1: ",
        "x.jsonl line 3: ",
        "x.jsonl line 1001: messages is missing",
        "x.jsonl: and 997 more rows",
    ]
    assert len(refused(words, recipe)) == 5


def test_a_folder_of_nothing_is_refused(here: Path, recipe: Recipe, refused: Refused) -> None:
    (here / "set").mkdir()
    recipe["stages"][0]["data"]["train"] = "set"
    refused(["stages.tune.data.train: the folder set holds no data files (there is nothing); it needs JSON"], recipe)
    (here / "set" / "notes.md").write_text("x")
    refused(["the folder set holds no data files (there is notes.md)"], recipe)


def test_rows_longer_than_the_context_are_refused_whatever_max_length_says(
    here: Path, recipe: Recipe, refused: Refused
) -> None:
    (here / "x.jsonl").write_bytes(lines(PAIR, LONG, PAIR))
    recipe["stages"][0]["data"]["train"] = "x.jsonl"
    recipe["stages"][0]["trainer"]["max_length"] = 4096
    words = [
        "stages.tune.trainer.max_length: x.jsonl line 2 has",
        "and the model can see 256; set trainer.max_length to at",
    ]
    assert len(refused(words, recipe)) == 1
    recipe["stages"][0]["data"] = {"train": "rows.jsonl", "eval": "x.jsonl"}
    assert len(refused(words, recipe)) == 1


def test_a_soft_prompt_takes_its_part_of_the_context(recipe: Recipe, refused: Refused) -> None:
    recipe["stages"][0]["adapter"] = {"kind": "prompt", "virtual_tokens": 250}
    assert len(refused(["rows.jsonl line 1 has", "and the model can see 6; set trainer.max_length"], recipe)) == 1


def test_held_out_data_of_another_format_is_refused_where_a_format_is_named(
    here: Path, recipe: Recipe, refused: Refused
) -> None:
    (here / "pairs.jsonl").write_bytes(lines(PAIR))
    recipe["stages"][0]["data"].update(eval="pairs.jsonl", format="messages")
    refused(
        ["pairs.jsonl line 1: messages is missing, not a list of turns; every row must have the format messages"],
        recipe,
    )


def copied(tiny_model: Models, here: Path) -> Path:
    return Path(shutil.copytree(tiny_model("llama-tied"), here / "model"))


def rewritten(file: str, **fields: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        settings = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps({**settings, **fields}))

    return change


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def cut_off(file: str, left: int) -> Callable[[Path], None]:
    return lambda model: (model / file).write_bytes((model / file).read_bytes()[:left]) and None


def lacking(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def template(text: str) -> Callable[[Path], None]:
    return lambda model: (model / "chat_template.jinja").write_text(text) and None


MODELS: list[tuple[str, Callable[[Path], Any], list[str]]] = [
    (
        "no config",
        lambda model: (model / "config.json").unlink(),
        ["model: the folder", "holds no model; it has neither config.json nor"],
    ),
    ("a corrupt config", cut_off("config.json", 40), ["model: ", "can't be loaded", "JSON"]),
    (
        "pickles only",
        pickled,
        ["model: the weights in", "are pickles (pytorch_model.bin), which can run code", "convert them to safetensors"],
    ),
    (
        "no weights",
        lambda model: (model / "model.safetensors").unlink(),
        ["model: ", "has no weights; it needs *.safetensors"],
    ),
    ("weights cut off", cut_off("model.safetensors", 5000), ["model: ", "can't be loaded", "safetensors"]),
    (
        "weights that lack some",
        lacking,
        ["model: ", "lacks weights that the model needs", "model.layers.1.mlp.up_proj.weight", "incomplete"],
    ),
    (
        "weights of another shape",
        rewritten("config.json", intermediate_size=80),
        [
            "model: ",
            "has weights of another shape than its config.json says (6: ",
            "is (32, 64) and should be (32, 80)",
        ],
    ),
    (
        "no causal language model",
        rewritten("config.json", model_type="t5", architectures=["T5Model"]),
        ["model: ", "can't be loaded", "it must be a causal language model"],
    ),
    (
        "an architecture unknown to transformers",
        rewritten("config.json", model_type="unheard_of"),
        ["model: ", "unheard_of", "which transformers knows without remote code"],
    ),
    (
        "no tokenizer",
        lambda model: [(model / file).unlink() for file in ("tokenizer.json", "tokenizer_config.json")],
        ["model: the tokenizer of", "can't be loaded"],
    ),
    ("a corrupt tokenizer", cut_off("tokenizer.json", 200), ["model: the tokenizer of", "can't be loaded"]),
    (
        "no chat template",
        lambda model: (model / "chat_template.jinja").unlink(),
        [
            "rows.jsonl line 1: is a conversation, but the model has no chat template; give one by tokenizer.chat_template"
        ],
    ),
    (
        "a template that ends no turn",
        template(
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
        ),
        [
            "rows.jsonl line 1: no end-of-turn token follows turn 2, so the model would not learn to stop; give a chat template"
        ],
    ),
    (
        "a template that refuses",
        template("{{ raise_exception('never') }}"),
        ["rows.jsonl line 1: the chat template refuses it: never"],
    ),
    (
        "a template with an error",
        template("{% for m in messages %}{{ m.content }}"),
        ["rows.jsonl line 1: the chat template refuses it: "],
    ),
    (
        "a template that prompts otherwise",
        template(
            "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>bot: {% endif %}"
        ),
        ["rows.jsonl line 1: the chat template writes turn 2 otherwise than it prompts for it"],
    ),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in MODELS], ids=[case[0] for case in MODELS])
def test_a_bad_model_is_refused(
    change: Callable[[Path], Any], words: list[str], here: Path, tiny_model: Models, recipe: Recipe, refused: Refused
) -> None:
    (here / "rows.jsonl").write_bytes(lines(CHAT))
    change(copied(tiny_model, here))
    recipe["model"] = "model"
    assert len(refused(words, recipe)) == 1


def test_an_adapter_that_is_no_whole_file_or_has_no_base_is_refused(
    here: Path, tiny_model: Models, recipe: Recipe, refused: Refused
) -> None:
    (here / "adapter").mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": recipe["model"]}
    recipe["model"] = "adapter"
    (here / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    refused(["model: ", "adapter has no weights; it needs adapter_model.safetensors"], recipe)
    (here / "adapter" / "adapter_model.safetensors").write_bytes(b"\x10")
    refused(["model: ", "adapter_model.safetensors can't be read", "copy it anew"], recipe)
    settings["base_model_name_or_path"] = "/nowhere/base"
    (here / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    refused(["model: /nowhere/base, the base model of the adapter", "is gone; bring it back"], recipe)


def test_a_gguf_file_that_is_none_is_refused(here: Path, recipe: Recipe, refused: Refused) -> None:
    (here / "a.gguf").write_bytes(b"no such thing")
    recipe["model"] = "a.gguf"
    refused(["model: ", "a.gguf is not a GGUF file; its first bytes are not GGUF"], recipe)


def test_a_chat_template_with_a_syntax_error_is_refused_with_its_line(
    here: Path, recipe: Recipe, refused: Refused
) -> None:
    (here / "chat.jinja").write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    recipe["tokenizer"] = {"chat_template": "chat.jinja"}
    refused(["tokenizer.chat_template: ", "chat.jinja line 2: ", "it must be a Jinja template"], recipe)


def test_a_model_that_fits_neither_memory_nor_disk_is_refused(
    recipe: Recipe, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both at once, and neither where the adapter needs less."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=300_000))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100 * 2**20 + 300_000))
    recipe["stages"][0]["trainer"].update(tokens_per_step=64, max_length=64)
    recipe["stages"][0]["adapter"] = {"kind": "full"}
    words = ["stages.tune: needs about", "use adapter: lora", "of room left and the run will need about", "--out"]
    assert len(refused(words, recipe)) == 2
    recipe["stages"][0]["adapter"] = {"kind": "lora", "rank": 4, "layers": [7]}
    assert len(refused(["there is no layer 7"], recipe)) == 1


def test_a_hub_that_can_not_be_reached_is_told(
    here: Path, recipe: Recipe, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe["stages"][0]["data"] = "hub:owner/set"
    refused(["stages.tune.data.train: hub:owner/set can't be had: ", "check its name and the network"], recipe)
    recipe["model"] = "owner/model"
    refused(["model: the hub can't be asked for owner/model: ", "give a folder, or download it"], recipe)


@pytest.mark.parametrize(
    ("change", "module", "package", "words"),
    [
        (
            changed("trackers", ["wandb"]),
            "trackers._packages",
            "wandb",
            ["trackers.0: the package wandb is not installed: pip install 'tutelage[wandb]'"],
        ),
        (
            changed("trackers", ["csv", "mlflow"]),
            "trackers._packages",
            "mlflow",
            ["trackers.1: the package mlflow is not installed"],
        ),
        (
            changed(".adapter", "qlora"),
            "adapters.qlora",
            "bitsandbytes",
            ["stages.tune.adapter: bitsandbytes is not installed; run: pip install"],
        ),
    ],
)
def test_a_package_that_is_missing_is_named(
    change: Any,
    module: str,
    package: str,
    words: list[str],
    recipe: Recipe,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"tutelage_plugins.{module}.find_spec", lambda name: None if name == package else object())
    change(recipe)
    assert len(refused(words, recipe)) == 1


def test_an_accelerator_that_is_missing_is_named(recipe: Recipe, refused: Refused) -> None:
    missing = next(kind for kind in ("mps", "cuda") if not getattr(torch, kind).is_available())
    recipe["stages"][0]["trainer"]["accelerator"] = missing
    refused([f"stages.tune.trainer.accelerator: this machine has no {missing} device", "or auto"], recipe)


def test_a_precision_that_the_device_has_not_is_refused(
    recipe: Recipe, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, answer in (
        ("is_available", True),
        ("device_count", 1),
        ("get_device_name", "Old GPU"),
        ("is_bf16_supported", False),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    recipe["stages"][0]["trainer"].update(precision="bf16", accelerator="cuda")
    refused(["stages.tune.trainer.precision: Old GPU has no bfloat16; use precision: fp32, or auto"], recipe)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "rank"], ["--set rank: is not FIELD=VALUE; write --set"]),
        (["--set", "=8"], ["--set =8: is not FIELD=VALUE"]),
        (
            ["--set", "stages.tone.adapter.rank=8"],
            ["--set stages.tone.adapter.rank=8: nothing is called tone; did you mean tune?"],
        ),
        (["--set", "stages.7.adapter.rank=8"], ["nothing is called 7; known are tune"]),
        (["--set", "name.first=8"], ["--set name.first=8: name leads into 'bad', which has no fields"]),
        (["--set", "name=[1"], ["--set name=[1: the value is malformed"]),
        (["--set", "stages.tune.adapter.rnk=8"], ["stages.tune.adapter.rnk: unknown field; did you mean rank?"]),
        (["--set", "stages.tune.trainer.seed=-1"], ["stages.tune.trainer.seed: expected int >= 0 (it is -1)"]),
        (["--set", "a", "--set", "stages.b.c=1"], ["--set a: is not", "--set stages.b.c=1: nothing is called b"]),
        (["--out", "rows.jsonl"], ["rows.jsonl: is not an empty folder; name another folder"]),
        (["--out", "full"], ["full: is not an empty folder; name another folder, or go on with an unfinished run"]),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], words: list[str], here: Path, recipe: Recipe, refused: Refused
) -> None:
    (here / "full").mkdir()
    (here / "full" / "thing").write_text("x")
    (here / "recipe.json").write_text(json.dumps(recipe))
    refused(words, arguments=["train", "recipe.json", *arguments])


def test_several_problems_are_all_told_in_one_go(here: Path, recipe: Recipe, refused: Refused) -> None:
    """Also those of different kinds: fields, model, tracker, machine, and rows."""
    (here / "x.jsonl").write_bytes(lines(PAIR, 7, CHAT))
    recipe["stages"][0]["data"] = {"train": "x.jsonl"}
    recipe["stages"][0]["trainer"].update(devices=4096)
    recipe["model"] = "./nowhere"
    rows = ["x.jsonl line 2: is a number", "x.jsonl line 3: prompt is missing"]
    said = refused(["model: no model is found", "trainer.devices: 4096 devices", *rows], recipe)
    assert len(said) == 4
    recipe["trackers"] = ["excel"]
    recipe["stages"][0]["adapter"]["rnk"] = 8
    recipe["stages"][0]["data"]["eval"] = "held.jsonl"
    recipe["stages"].append({"name": "more", "phase": "stf", "data": "gone.jsonl", "trainer": {"max_steps": "ten"}})
    words = [
        "trackers.0.kind: ",
        "stages.tune.adapter.rnk: unknown field",
        "stages.tune.data.eval: there is no file or folder held.jsonl",
        "stages.more.phase.kind: ",
        "stages.more.data.train: there is no file or folder gone.jsonl",
        "stages.more.trainer.max_steps: expected int",
        "model: no model is found",
    ]
    assert len(refused(words, recipe)) == len(words)


def test_check_says_the_same_as_train_and_for_scripts_too(
    here: Path, recipe: Recipe, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["stages"][0]["adapter"].update(rnk=8, rank=0)
    assert refused([], recipe) == refused([], recipe, arguments=["check", "recipe.json"])
    with pytest.raises(SystemExit) as ended:
        main(["check", "recipe.json", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == 2
    assert not told["ok"]
    assert [problem["place"] for problem in told["problems"]] == ["stages.tune.adapter.rnk", "stages.tune.adapter.rank"]


def test_a_good_recipe_passes_the_check_and_nothing_is_written(
    here: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the tests above refuse what they say they refuse."""
    recipe["stages"][0]["trainer"]["max_length"] = 4096  # no row is longer than the model's context
    (here / "recipe.json").write_text(json.dumps(recipe))
    before = tree(here)
    with pytest.raises(SystemExit) as ended:
        main(["check", "recipe.json"])
    assert ended.value.code == 0
    assert capsys.readouterr().err == ""
    assert tree(here) == before


def test_the_installed_program_exits_2_with_a_sentence(here: Path, recipe: Recipe) -> None:
    (here / "rows.jsonl").write_bytes(b"{")
    (here / "recipe.json").write_text(json.dumps(recipe))
    command = [sys.executable, "-c", "from tutelage.cli.main import main; main()", "train", "recipe.json"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: rows.jsonl line 1: malformed JSON: it ends too early; each line must be one JSON object\n"
    )
    assert sorted(path.name for path in here.iterdir()) == ["recipe.json", "rows.jsonl"]
