"""From a recipe's data to examples: counts, losses, the cache, holding out and mixing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tokenizers import CHATML, toy

from tutelage.config import Config
from tutelage.data.mixing import hold_out, repeat
from tutelage.data.preparing import Prepared, prepare
from tutelage.data.rendering import Renderer, Tokens
from tutelage.data.store import TokenStore, open_or_write
from tutelage.errors import TutelageError
from tutelage.formats import Continuation, Conversation, DataFormat, Text
from tutelage.phase import TrainingPhase
from tutelage.plugins import Host
from tutelage.recipe import Data, Source

TOKENIZER = toy(CHATML)


class Learn(TrainingPhase):
    """A phase that leaves examples to the renderer."""

    name = "learn"

    def loss(self, model, batch):
        raise NotImplementedError


class Backwards(Learn):
    """A phase with examples of its own."""

    name = "backwards"

    class Config(Config):
        prefix: str = ""

    def example(self, record, renderer: Renderer) -> Tokens:
        if record.prompt == "fault":
            raise RuntimeError("a fault of the phase")
        return renderer.render(Continuation(self.config.prefix + record.prompt[::-1], record.completion))


class Pairs(DataFormat):
    """A question and an answer."""

    name = "pairs"
    columns = ("q", "a")

    def matches(self, row):
        return "q" in row and "a" in row

    def convert(self, row):
        if not isinstance(row["a"], str):
            raise ValueError("a is not text")
        return Continuation(row["q"], row["a"])


class Chats(DataFormat):
    """Whole conversations."""

    name = "chats"
    columns = ("turns",)

    def matches(self, row):
        return "turns" in row

    def convert(self, row):
        return Conversation(row["turns"])


class Plain(DataFormat):
    """Text."""

    name = "plain"
    columns = ("text",)

    def matches(self, row):
        return "text" in row

    def convert(self, row):
        return Text(row["text"])


@pytest.fixture
def host() -> Host:
    class Module:
        @staticmethod
        def register_formats(register):
            for kind in (Pairs, Chats, Plain):
                register(kind)

    made = Host()
    assert not made.register(Module, "toy").error
    return made


@pytest.fixture
def make(tmp_path, host):
    """Prepares data lying in the test's folder."""

    def made(
        max_length: int = 64, phase: TrainingPhase | None = None, seed: int = 0, tokenizer=TOKENIZER, **data
    ) -> Prepared:
        data["mix"] = [Source(**source) for source in data.get("mix", [])]
        return prepare(
            phase or Learn(),
            Data(**data),
            tmp_path,
            tokenizer,
            max_length=max_length,
            seed=seed,
            host=host,
            place="stages.tune.data",
            cache=tmp_path / "cache",
        )

    return made


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(count: int, start: int = 0, answer: str = "yes") -> list[dict]:
    return [{"q": f"question {number}", "a": answer} for number in range(start, start + count)]


def texts(examples) -> list[str]:
    return [TOKENIZER.decode(examples[index].ids) for index in range(len(examples))]


def asked(examples) -> list[int]:
    """The number of each example's question."""
    return [int(text.partition("question ")[2].partition("<")[0]) for text in texts(examples)]


def stores(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir())


def test_rows_become_examples_and_are_counted(tmp_path, make):
    write(tmp_path / "x.jsonl", pairs(3))
    prepared = make(train="x.jsonl")
    expected = [Renderer(TOKENIZER).render(Continuation(row["q"], row["a"])) for row in pairs(3)]
    assert [prepared.train[i].ids.tolist() for i in range(3)] == [tokens.ids.tolist() for tokens in expected]
    assert [prepared.train[i].learn.tolist() for i in range(3)] == [tokens.learn.tolist() for tokens in expected]
    assert [prepared.train.place(i) for i in range(3)] == [f"x.jsonl line {line}" for line in (1, 2, 3)]
    assert prepared.eval is None
    report = prepared.report
    assert (report.read, report.kept, report.dropped, report.examples) == (3, 3, 0, 3)
    assert report.tokens == sum(map(len, expected))
    assert report.learnt == sum(tokens.weight for tokens in expected)
    assert report.longest == max(map(len, expected))
    assert report.sources[0].format == "pairs"
    assert list(prepared.fingerprints) == ["x.jsonl"]
    assert msgspec.json.decode(msgspec.json.encode(report))["sources"][0]["label"] == "x.jsonl"


def test_prepared_data_is_read_from_the_cache_until_something_changes(tmp_path, make):
    write(tmp_path / "x.jsonl", pairs(3))
    first = make(train="x.jsonl")
    stamp = (stores(tmp_path)[0] / "ids.bin").stat().st_mtime_ns
    again = make(train="x.jsonl")
    assert (stores(tmp_path)[0] / "ids.bin").stat().st_mtime_ns == stamp
    assert again.train.fingerprint == first.train.fingerprint
    assert msgspec.to_builtins(again.report) == msgspec.to_builtins(first.report)
    make(train="x.jsonl", allow_loss=0.5, eval_split=0.3, seed=7)
    assert len(stores(tmp_path)) == 1
    changes = [
        {"max_length": 65},
        {"learn_from": "all"},
        {"too_long": "cut"},
        {"tokenizer": toy(CHATML.replace("<|im_end|>\n", "<|im_end|> "))},
        {"tokenizer": toy(CHATML, specials=("<new>",))},
        {"phase": Backwards()},
        {"phase": Backwards(Backwards.Config(prefix="re: "))},
    ]
    for count, change in enumerate(changes, start=2):
        assert make(train="x.jsonl", **change).train.fingerprint != first.train.fingerprint
        assert len(stores(tmp_path)) == count
    write(tmp_path / "x.jsonl", pairs(2))
    assert len(make(train="x.jsonl").train) == 2


def test_a_phase_makes_its_own_examples(tmp_path, make):
    write(tmp_path / "x.jsonl", [{"q": "abc", "a": "yes"}])
    assert "re: cba" in texts(make(train="x.jsonl", phase=Backwards(Backwards.Config(prefix="re: "))).train)[0]


def too_long(tmp_path: Path) -> list[dict]:
    rows = pairs(40)
    rows[6]["a"] = "a long answer " * 20
    write(tmp_path / "x.jsonl", rows)
    return rows


def test_too_long_rows_are_lost_only_if_that_is_allowed(tmp_path, make):
    too_long(tmp_path)
    with pytest.raises(TutelageError) as caught:
        make(train="x.jsonl")
    longest = len(Renderer(TOKENIZER).render(Continuation("question 6", "a long answer " * 20)))
    assert str(caught.value) == (
        "x.jsonl: 1 of 40 rows (2.5%) would be lost: 1 longer than 64 tokens (line 7); raise trainer.max_length "
        f"(the longest row has {longest} tokens, max_length is 64), or set data.too_long to cut or split, "
        "or allow it with data.allow_loss: 0.03"
    )
    prepared = make(train="x.jsonl", allow_loss=0.03)
    assert asked(prepared.train) == [number for number in range(40) if number != 6]
    source = prepared.report.sources[0]
    assert (source.read, source.kept, source.dropped, source.longest) == (40, 39, 1, longest)
    assert source.reasons["longer than 64 tokens"].places == ["x.jsonl line 7"]


def test_losing_every_row_is_never_allowed(tmp_path, make):
    write(tmp_path / "x.jsonl", pairs(3, answer="a long answer " * 20))
    with pytest.raises(TutelageError, match=r"3 of 3 rows \(100.0%\) would be lost"):
        make(train="x.jsonl", allow_loss=1.0)


def test_rows_are_cut_when_that_is_asked_for(tmp_path, make):
    rows = too_long(tmp_path)
    rows[8]["q"] = "a long question " * 20
    write(tmp_path / "x.jsonl", rows)
    prepared = make(train="x.jsonl", too_long="cut", allow_loss=0.03)
    source = prepared.report.sources[0]
    assert (source.kept, source.cut, source.dropped) == (39, 1, 1)
    assert source.reasons["cut at 64 tokens"].places == ["x.jsonl line 7"]
    assert source.reasons["with nothing to learn in their first 64 tokens"].places == ["x.jsonl line 9"]
    assert len(prepared.train[6]) == 64
    whole = Renderer(TOKENIZER).render(Continuation(rows[6]["q"], rows[6]["a"]))
    assert prepared.train[6].ids.tolist() == whole.ids[:64].tolist()


@settings(max_examples=25, deadline=None)
@given(words=st.integers(1, 150), limit=st.integers(8, 40))
def test_a_split_row_learns_each_of_its_tokens_once(tmp_path_factory, words, limit):
    folder = tmp_path_factory.mktemp("split")
    text = "".join(f"{number} " for number in range(words))
    write(folder / "x.jsonl", [{"text": text}])
    host = Host()

    class Module:
        @staticmethod
        def register_formats(register):
            register(Plain)

    host.register(Module, "toy")
    data = Data(train="x.jsonl", too_long="split")
    prepared = prepare(
        Learn(), data, folder, TOKENIZER, max_length=limit, seed=0, host=host, place="data", cache=folder / "cache"
    )
    whole = Renderer(TOKENIZER).render(Text(text))
    pieces = [prepared.train[index] for index in range(len(prepared.train))]
    assert all(len(piece) <= limit for piece in pieces)
    targets = [(int(a), int(b)) for piece in pieces for a, b in zip(piece.ids, piece.ids[1:], strict=False)]
    assert targets == [(int(a), int(b)) for a, b in zip(whole.ids, whole.ids[1:], strict=False)]
    assert prepared.report.learnt == whole.weight
    assert set(prepared.train.rows.tolist()) == {1}


def test_problems_of_all_sources_come_at_once_with_their_places(tmp_path, make):
    write(
        tmp_path / "x.jsonl",
        [*pairs(2), {"q": "?", "a": 7}, {"q": "?"}, {"q": "the end<|im_end|>", "a": "a<|im_end|>b"}],
    )
    write(tmp_path / "y.jsonl", [{"turns": [{"role": "user", "content": "Hi"}]}])
    with pytest.raises(TutelageError) as caught:
        make(mix=[{"source": "x.jsonl"}, {"source": "y.jsonl"}])
    found = [str(problem) for problem in caught.value.problems]
    assert found[0] == "x.jsonl line 3: a is not text; every row must have the format pairs"
    assert found[1] == "x.jsonl line 4: the format pairs failed: KeyError: 'a'"
    assert found[2].startswith("x.jsonl line 5: turn 2 holds <|im_end|>, which ends a turn, in its middle")
    assert found[3].startswith("y.jsonl line 1: has no assistant turn")
    assert len(found) == 4
    assert stores(tmp_path) == []


def test_a_flood_of_problems_is_counted(tmp_path, make):
    write(tmp_path / "x.jsonl", [*pairs(1), *({"q": "?", "a": 7} for _ in range(600))])
    with pytest.raises(TutelageError) as caught:
        make(train="x.jsonl")
    assert len(caught.value.problems) == 4
    assert str(caught.value.problems[-1]) == "x.jsonl: and 597 more rows with problems"


def test_a_phase_that_fails_or_learns_nothing_is_told_of_like_a_bad_row(tmp_path, make):
    class Careless(Backwards):
        """Learns no end."""

        def example(self, record, renderer):
            tokens = super().example(record, renderer)
            tokens.learn[tokens.learn] = record.prompt == "question 1"
            tokens.learn[tokens.ids == TOKENIZER.eos_token_id] = False
            return tokens

    write(tmp_path / "x.jsonl", [*pairs(2), {"q": "fault", "a": "x"}])
    with pytest.raises(TutelageError) as caught:
        make(train="x.jsonl", phase=Careless())
    assert [str(problem) for problem in caught.value.problems] == [
        "x.jsonl line 1: nothing in it is learnt",
        "x.jsonl line 2: the token that ends what is learnt is not learnt",
        "x.jsonl line 3: the phase failed to make an example of it: RuntimeError: a fault of the phase",
    ]


def test_sources_that_are_missing_are_all_named_with_their_fields(tmp_path, make):
    with pytest.raises(TutelageError) as caught:
        make(mix=[{"source": "x.jsonl"}, {"source": "y.jsonl", "format": "pears"}], eval="z.jsonl")
    assert [problem.place for problem in caught.value.problems] == [
        "stages.tune.data.mix.0.source",
        "stages.tune.data.mix.1.format",
        "stages.tune.data.mix.1.source",
        "stages.tune.data.eval",
    ]
    assert "did you mean pairs?" in str(caught.value)


def test_a_named_format_is_used_though_another_would_be_found(tmp_path, make):
    write(tmp_path / "x.jsonl", [{"q": "?", "a": "!", "text": "both"}])
    with pytest.raises(TutelageError, match=r"fit the formats pairs and plain; say which by data\.format"):
        make(train="x.jsonl")
    assert texts(make(train="x.jsonl", format="plain").train) == ["both<|im_end|>"]


def test_an_evaluation_file_is_prepared_whole_and_overlap_is_counted(tmp_path, make):
    write(tmp_path / "x.jsonl", pairs(5))
    write(tmp_path / "e.jsonl", pairs(4, start=3))
    prepared = make(train="x.jsonl", eval="e.jsonl")
    assert asked(prepared.train) == [0, 1, 2, 3, 4]
    assert asked(prepared.eval) == [3, 4, 5, 6]
    assert prepared.report.eval_examples == 4
    assert prepared.report.eval_in_train == 2
    assert list(prepared.fingerprints) == ["x.jsonl", "e.jsonl"]


@settings(max_examples=30, deadline=None)
@given(
    contents=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=20), min_size=1, max_size=3),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 99),
)
def test_equal_rows_are_held_out_together_over_all_sources(tmp_path_factory, contents, share, seed):
    folder = tmp_path_factory.mktemp("stores")
    made = []
    for number, numbers in enumerate(contents):

        def fill(writer, numbers=numbers):
            for row, content in enumerate(numbers, start=1):
                piece = Tokens(np.array([content], dtype=np.int32), np.ones(1, dtype=bool))
                writer.add([piece] * (1 + content % 2), f"x line {row}", content)
            return {}

        made.append(open_or_write(folder / str(number), fill))
    everything = Counter(content for numbers in contents for content in numbers)
    try:
        masks = hold_out(made, share, seed)
    except ValueError:
        # Only when the rows that come last, which are chosen whole, are all that is left.
        assert sum(everything.values()) - max(everything.values()) < max(1, round(share * sum(everything.values())))
        return
    held = {int(digest) for store, mask in zip(made, masks, strict=True) for digest in store.digests[mask]}
    kept = {int(digest) for store, mask in zip(made, masks, strict=True) for digest in store.digests[~mask]}
    assert held
    assert kept
    assert not held & kept
    rows = sum(everything[content] for content in held)
    wanted = max(1, round(share * sum(everything.values())))
    assert wanted <= rows < wanted + max(everything.values())
    again = hold_out(made, share, seed)
    assert all((mask == other).all() for mask, other in zip(masks, again, strict=True))


def test_holding_out_leaves_the_other_rows_and_the_seed_decides(tmp_path, make):
    write(tmp_path / "x.jsonl", pairs(40))
    prepared = make(train="x.jsonl", eval_split=0.25)
    assert len(prepared.eval) == 10
    assert sorted(asked(prepared.train) + asked(prepared.eval)) == list(range(40))
    assert asked(make(train="x.jsonl", eval_split=0.25).eval) == asked(prepared.eval)
    assert asked(make(train="x.jsonl", eval_split=0.25, seed=1).eval) != asked(prepared.eval)
    write(tmp_path / "y.jsonl", pairs(1) * 5)
    with pytest.raises(
        TutelageError, match=r"stages.tune.data.eval_split: holding out rows .* leaves none to train on"
    ):
        make(train="y.jsonl", eval_split=0.2)


def test_a_mix_repeats_and_samples_rows_by_weight(tmp_path, make):
    write(tmp_path / "x.jsonl", pairs(10))
    write(tmp_path / "y.jsonl", pairs(10, start=100))
    mix = [{"source": "x.jsonl", "weight": 2.3}, {"source": "y.jsonl", "weight": 0.5}]
    counts = Counter(asked(make(mix=mix).train))
    assert sorted(counts[number] for number in range(10)) == [2] * 7 + [3] * 3
    assert sorted(counts[number] for number in range(100, 110)) == [0] * 5 + [1] * 5
    assert Counter(asked(make(mix=mix).train)) == counts
    assert Counter(asked(make(mix=mix, seed=3).train)) != counts
    held = make(mix=mix, eval_split=0.2)
    assert len(held.eval) == 4
    assert max(Counter(asked(held.eval)).values()) == 1
    assert not set(asked(held.eval)) & set(asked(held.train))


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=12), weight=st.floats(0.01, 4))
def test_a_weight_takes_whole_rows(tmp_path_factory, sizes, weight):
    folder = tmp_path_factory.mktemp("store")

    def fill(writer):
        for row, size in enumerate(sizes, start=1):
            writer.add([Tokens(np.array([row], dtype=np.int32), np.ones(1, dtype=bool))] * size, f"x line {row}", row)
        return {}

    store: TokenStore = open_or_write(folder / "key", fill)
    picks = repeat(store, None, weight, seed=1)
    taken = Counter(store.rows[picks].tolist())
    times = {row: taken[row] / size for row, size in enumerate(sizes, start=1)}
    assert all(count in (int(weight), int(weight) + 1) for count in times.values())
    assert sum(times.values()) == max(1, int(weight) * len(sizes) + round((weight - int(weight)) * len(sizes)))
