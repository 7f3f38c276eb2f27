from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import pytest
import tiny_models as tiny
from hypothesis import given
from hypothesis import strategies as st

import tutelage
from tutelage.plugins import host
from tutelage.reward import rewards_of, total


def reward(kind: str, **settings):
    """A reward as a recipe asks for it."""
    problems = []
    found = rewards_of([{"kind": kind, **settings}], host(), "rewards", problems)
    assert not problems, problems
    return found[0].reward


def problems_of(kind: str, **settings) -> str:
    problems = []
    rewards_of([{"kind": kind, **settings}], host(), "rewards", problems)
    return "\n".join(map(str, problems))


def scores(made, answers, references=None):
    references = references or [""] * len(answers)
    return made.score([tutelage.Prompted("why?", reference) for reference in references], answers)


@pytest.mark.parametrize(
    ("settings", "lengths", "expected"),
    [
        ({"target": 4}, [0, 2, 4, 5, 8, 40], [-1, -0.5, 0, -0.25, -1, -1]),
        ({"least": 2, "most": 4}, [0, 1, 2, 4, 5, 9], [-1, -0.5, 0, 0, -0.25, -1]),
        ({"most": 10, "penalty": 3}, [0, 10, 15], [0, 0, -1.5]),
        ({"most": 0}, [0, 1, 7], [0, -1, -1]),
        ({"target": 0}, [0, 2], [0, -1]),
    ],
)
def test_length(settings, lengths, expected):
    assert scores(reward("length", **settings), [" ".join(["ab"] * n) for n in lengths]) == pytest.approx(expected)


def test_length_in_characters_and_in_tokens():
    tokenizer = tiny.tokenizer()
    answer = "the cat sat on the mat"
    assert scores(reward("length", unit="characters", target=22), [answer]) == [0]
    in_tokens = reward("length", unit="tokens", target=len(tokenizer(answer)["input_ids"]))
    in_tokens.load(SimpleNamespace(tokenizer=tokenizer))
    assert scores(in_tokens, [answer]) == [0]
    assert scores(in_tokens, [answer + " " + answer])[0] < 0


@given(st.integers(1, 50), st.integers(0, 400))
def test_length_is_best_at_its_target(target, length):
    (score,) = scores(reward("length", target=target, penalty=2.5), ["a " * length])
    assert -2.5 <= score <= 0
    assert (score == 0) == (length == target)


def test_length_needs_one_kind_of_setting():
    assert "either a target, or limits" in problems_of("length")
    assert "either a target, or limits" in problems_of("length", target=3, most=4)
    assert "least (5) is more than most (4)" in problems_of("length", least=5, most=4)


def test_regex():
    answers = ["it is 42", "It Is", "42", "a\n42\nb"]
    assert scores(reward("regex", pattern=r"\d+"), answers) == [1, 0, 1, 1]
    assert scores(reward("regex", pattern=r"\d+", whole=True, found=2, missing=-1), answers) == [-1, -1, 2, -1]
    assert scores(reward("regex", pattern="^it is", ignore_case=True), answers) == [1, 1, 0, 0]
    assert scores(reward("regex", pattern="^a.*b$"), answers) == [0, 0, 0, 1]
    assert "is no regular expression" in problems_of("regex", pattern="(a")


def test_a_pattern_without_end_does_not_stop_the_run():
    told = []
    made = reward("regex", pattern="(a|aa)+$", seconds=0.2)
    made.load(SimpleNamespace(emit=lambda event, text: told.append((event, text))))
    began = time.monotonic()
    assert scores(made, ["a" * 60 + "!", "aab aaa"]) == [0, 1]
    assert time.monotonic() - began < 60  # without its limit it would take longer than anybody lives
    assert [event for event, _ in told] == ["notice"]
    assert "takes too long" in told[0][1]


VALID = ['{"a": 1, "b": [true, null]}', " [1, 2] ", '"text"', "1e3", '```json\n{"a": 1}\n```']
INVALID = [
    "",
    "{'a': 1}",
    "{a: 1}",
    '{"a": 1,}',
    "NaN",
    "Infinity",
    "[1, 2",
    '{"a": 1} {"b": 2}',
    "[" * 200_000,
    "None",
]


def test_json():
    assert scores(reward("json"), VALID) == [1] * 5
    assert scores(reward("json", invalid=-1), INVALID) == [-1] * len(INVALID)
    assert scores(reward("json", fenced=False), VALID) == [1, 1, 1, 1, 0]
    assert scores(reward("json", keys=["a"]), VALID) == [1, 0, 0, 0, 1]
    assert scores(reward("json", keys=["a", "b"]), VALID) == [1, 0, 0, 0, 0]


@given(st.text(max_size=40) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_json_is_what_the_standard_library_reads(answer):
    def refuse(constant):
        raise ValueError(constant)

    try:
        json.loads(answer, parse_constant=refuse)
        expected = 1.0
    except ValueError:
        expected = 0.0
    assert scores(reward("json", fenced=False), [answer]) == [expected]


def test_json_schema():
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0}, "of": {"$ref": "#/$defs/name"}},
        "required": ["age"],
        "$defs": {"name": {"type": "string", "minLength": 2}},
    }
    made = reward("json", schema=schema)
    answers = ['{"age": 3}', '{"age": -1}', '{"age": 3, "of": "x"}', '{"age": 3, "of": "xy"}', "[]", "no"]
    assert scores(made, answers) == [1, 0, 0, 1, 0, 0]
    assert "schema is no JSON Schema" in problems_of("json", schema={"type": "nothing"})


def test_json_schema_asks_no_one_else():
    made = reward("json", schema={"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(tutelage.RunFailed, match="reward json: failed"):
        total(rewards([made]), [tutelage.Prompted("why?")], ["{}"])


def rewards(made):
    from tutelage.reward import Weighted

    return [Weighted(each.name, 1.0, each) for each in made]


@pytest.mark.parametrize(
    ("how", "answer", "reference", "expected"),
    [
        ("equals", " Paris. ", "paris", 1),
        ("equals", "in Paris", "Paris", 0),
        ("equals", "ＰＡＲＩＳ", "paris", 1),  # full-width letters
        ("equals", "new   york", "New York", 1),
        ("equals", "?!", "?!", 1),
        ("equals", "?!", "...", 0),
        ("contains", "The answer is 4.", "4", 1),
        ("contains", "The answer is 14.", "4", 0),
        ("contains", "It is 3.5, I think", "3.5", 1),
        ("contains", "It is -3", "-3", 1),
        ("ends", "first 4, then 5", "5", 1),
        ("ends", "first 5, then 4", "5", 0),
    ],
)
def test_matches(how, answer, reference, expected):
    assert scores(reward("matches", how=how), [answer], [reference]) == [expected]


def test_matches_exactly():
    made = reward("matches", exact=True, right=5, wrong=-5)
    assert scores(made, ["Paris ", "paris"], ["Paris", "Paris"]) == [5, -5]
    assert scores(reward("matches", exact=True, how="contains"), ["14"], ["4"]) == [1]


def test_a_row_without_reference_answer_is_named():
    with pytest.raises(tutelage.RunFailed, match="the prompt 'why\\?' has no reference answer"):
        scores(reward("matches"), ["x"])


@pytest.mark.parametrize(
    "phase",
    [
        {"kind": "grpo", "rewards": ["matches"], "max_new_tokens": 8},
        {"kind": "ppo", "rewards": ["length"], "held_out_rewards": ["matches"], "max_new_tokens": 8},
        {"kind": "evaluation", "judge": ["matches"], "max_new_tokens": 8},
    ],
)
def test_a_row_without_reference_answer_is_found_before_anything_runs(tiny_model, tmp_path, phase):
    data = tmp_path / "questions.jsonl"
    data.write_text('{"prompt": "the cat", "answer": "sat"}\n{"prompt": "two birds"}\n')
    stage = {"name": "it", "phase": phase, "data": str(data), "trainer": {"max_length": 64}}
    told = tutelage.check({"name": "tiny", "model": str(tiny_model("qwen2")), "stages": [stage]}).problems
    (problem,) = [problem for problem in told if "reference answer" in problem.wrong]
    assert "questions.jsonl" in problem.place
    assert "2" in problem.place


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module of functions that score."""
    (tmp_path / "some_rewards.py").write_text(
        "calls = []\n"
        "def kind(prompts, answers):\n"
        "    calls.append((prompts, answers))\n"
        "    return [len(answer) + len(prompt.answer) for prompt, answer in zip(prompts, answers)]\n"
        "def short(prompts, answers): return [1.0] * (len(answers) - 1)\n"
        "def odd(prompts, answers): return [float('nan')] * len(answers)\n"
        "def failing(prompts, answers): return [1 / 0 for _ in answers]\n"
        "constant = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "some_rewards"
    sys.modules.pop("some_rewards", None)


def test_function(package):
    made = reward("function", function=f"{package}:kind")
    assert scores(made, ["ab", "__import__('os').abort()"], ["x", ""]) == [3, 24]
    prompts, answers = sys.modules[package].calls[0]
    assert answers == ["ab", "__import__('os').abort()"]
    assert prompts == [tutelage.Prompted("why?", "x"), tutelage.Prompted("why?")]


def test_functions_that_can_not_be_imported(package):
    assert "No module named 'nowhere'" in problems_of("function", function="nowhere:name")
    assert "has no attribute 'other'" in problems_of("function", function=f"{package}:other")
    assert "constant is int, not a function" in problems_of("function", function=f"{package}:constant")
    for text in ("some_rewards", "some_rewards:kind()", "some rewards:kind", "a:b:c", ":kind", "../x:y", "a:b.c"):
        assert "rewards.0.function" in problems_of("function", function=text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", "gave 1 scores for 2 answers"),
        ("odd", "gave nan for the answer 'ab' to 'why\\?'"),
        ("failing", "failed: ZeroDivisionError"),
    ],
)
def test_what_is_no_score_ends_the_run_with_a_sentence(package, name, said):
    found = rewards_of([{"kind": "function", "function": f"{package}:{name}", "name": "mine"}], host(), "rewards", [])
    with pytest.raises(tutelage.RunFailed, match=f"reward mine: {said}"):
        total(found, [tutelage.Prompted("why?")] * 2, ["ab", "c"])


def test_model(tiny_model, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tiny_model("llama-untied")
    torch.manual_seed(1)
    judge = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<|im_start|>"
    judge.config.pad_token_id = tokenizer.pad_token_id
    judge.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    made = reward("model", model="stage:judge", batch_size=2)
    assert made.references() == {"model": "stage:judge"}
    from tutelage.models.locating import Located

    context = SimpleNamespace(
        locate=lambda reference, place: Located("model", str(tmp_path / "judge")),
        stage=SimpleNamespace(name="align"),
        devices=SimpleNamespace(accelerator="cpu"),
    )
    made.load(context)
    answers = ["the mat", "a cat sat", "5"]
    expected = []
    for answer in answers:
        turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": answer}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"]
        with torch.no_grad():
            expected.append(float(judge(torch.tensor([ids])).logits[0, 0]))
    assert scores(made, answers) == pytest.approx(expected, abs=1e-5)
