"""Which tokens are learnt: known answers, laws over random conversations, and TRL's training templates beside ours."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_tokenizers import CHATML, END, ENDLESS, FAMILIES, GENERATION, LLAMA3, MISTRAL, PHI3, REASONING, toy

from tutelage.data.rendering import Renderer, Tokens
from tutelage.formats import Continuation, Conversation, Text


def chat(*turns: str, system: str = "") -> Conversation:
    """Turns of a user and an assistant in alternation."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return Conversation(messages)


def marked(tokens: Tokens, tokenizer) -> str:
    """The example's text with ⟦ ⟧ around what is learnt."""
    cuts = np.flatnonzero(np.diff(tokens.learn)) + 1
    parts = [tokenizer.decode(ids) for ids in np.split(tokens.ids, cuts)]
    flags = [bool(learn[0]) for learn in np.split(tokens.learn, cuts)]
    return "".join(f"⟦{part}⟧" if flag else part for part, flag in zip(parts, flags, strict=True))


def learnt(tokens: Tokens, tokenizer) -> list[str]:
    cuts = np.flatnonzero(np.diff(tokens.learn)) + 1
    runs = zip(np.split(tokens.ids, cuts), np.split(tokens.learn, cuts), strict=True)
    return [tokenizer.decode(ids) for ids, learn in runs if learn[0]]


def test_every_assistant_turn_is_learnt_with_its_end_and_nothing_else():
    tokenizer = toy(CHATML)
    tokens = Renderer(tokenizer).render(chat("Hi", "Hello.", "More?", "Yes, more.", system="Be brief."))
    assert marked(tokens, tokenizer) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n⟦Hello.<|im_end|>⟧\n<|im_start|>user\nMore?<|im_end|>\n"
        "<|im_start|>assistant\n⟦Yes, more.<|im_end|>⟧\n"
    )
    assert tokens.ids.dtype == np.int32
    assert tokens.learn.dtype == np.bool_
    assert tokens.weight == tokens.learn.sum()


@pytest.mark.parametrize(
    ("learn_from", "expected"),
    [("last", ["Yes.<|im_end|>"]), ("all", None)],
)
def test_learn_from(learn_from, expected):
    tokenizer = toy(CHATML)
    tokens = Renderer(tokenizer, learn_from).render(chat("Hi", "Hello.", "More?", "Yes."))
    if expected is None:
        assert tokens.learn.all()
        assert tokens.weight == len(tokens) - 1
    else:
        assert learnt(tokens, tokenizer) == expected


def test_a_turn_of_weight_0_is_seen_but_not_learnt():
    for template in (CHATML, GENERATION):
        tokenizer = toy(template)
        record = chat("Hi", "Hello.", "More?", "Yes.")
        record.messages[1]["weight"] = 0
        assert learnt(Renderer(tokenizer).render(record), tokenizer) == ["Yes.<|im_end|>"]


words = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<|[]"), min_size=1, max_size=24)
sentences = words.map(str.strip).filter(bool)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(turns=st.lists(sentences, min_size=2, max_size=6).map(lambda t: t[: len(t) // 2 * 2]))
def test_what_is_learnt_is_each_answer_with_its_end_after_the_tokens_of_inference(family, turns):
    tokenizer = FAMILIES[family]()
    record = chat(*turns)
    tokens = Renderer(tokenizer).render(record)
    whole = tokenizer.apply_chat_template(record.messages, tokenize=True, return_dict=True)["input_ids"]
    assert tokens.ids.tolist() == whole
    starts = np.flatnonzero(tokens.learn & ~np.concatenate(([False], tokens.learn[:-1])))
    ends = np.flatnonzero(tokens.learn & ~np.concatenate((tokens.learn[1:], [False])))
    end = END.get(family, "<|im_end|>")
    for turn, (start, stop) in enumerate(zip(starts[: len(turns) // 2], ends, strict=False)):
        seen = tokenizer.apply_chat_template(
            record.messages[: 2 * turn + 1], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        assert tokens.ids[:start].tolist() == seen
        answer = tokenizer.decode(tokens.ids[start : stop + 1])
        assert answer.removeprefix(" ") == record.messages[2 * turn + 1]["content"] + end
    assert Renderer(tokenizer).ends_learnt(tokens)


def test_many_at_once_are_what_each_is_alone_and_a_refusal_keeps_its_place():
    tokenizer = toy(CHATML)
    records = [chat("Hi", "Hello."), chat("Hi"), Text("Some text"), Continuation("One", "Two")]
    many = Renderer(tokenizer).render_many(records)
    assert isinstance(many[1], ValueError)
    for record, tokens in zip(records, many, strict=True):
        if isinstance(tokens, Tokens):
            alone = Renderer(tokenizer).render(record)
            assert tokens.ids.tolist() == alone.ids.tolist()
            assert tokens.learn.tolist() == alone.learn.tolist()


def test_an_answer_that_would_merge_with_the_prompt_is_tokenised_apart_from_it():
    tokenizer = toy(CHATML)  # its splits make one token of two newlines
    tokens = Renderer(tokenizer).render(chat("Hi", "\nHello."))
    prompt = tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    answer = tokenizer("\nHello.<|im_end|>\n")["input_ids"]
    assert tokens.ids.tolist() == prompt + answer
    assert learnt(tokens, tokenizer) == ["\nHello.<|im_end|>"]


def test_an_earlier_answer_that_would_merge_is_refused():
    with pytest.raises(ValueError, match=r"first token of turn 2 .*learn_from to last"):
        Renderer(toy(CHATML)).render(chat("Hi", "\nHello.", "More?", "Yes."))


@pytest.mark.parametrize(
    "marks",
    [
        "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n",
        "{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}",
        "{%- generation -%}{{ m.content }}<|im_end|>{%- endgeneration -%}\n",
    ],
)
def test_a_template_that_marks_generation_is_believed_but_for_where_the_turn_ends(marks):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + marks
        + "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    )
    tokenizer = toy(template)
    assert learnt(Renderer(tokenizer).render(chat("Hi", "Hello.", "Yes?", "No")), tokenizer) == [
        "Hello.<|im_end|>",
        "No<|im_end|>",
    ]
    assert learnt(Renderer(tokenizer, "last").render(chat("Hi", "Hello.", "Yes?", "No")), tokenizer) == ["No<|im_end|>"]


def test_reasoning_that_the_template_strips_is_refused_but_for_the_last_turn():
    tokenizer = toy(REASONING)
    record = chat("Hi", "<think>greet</think>Hello.", "More?", "<think>agree</think>Yes.")
    with pytest.raises(ValueError, match=r"turn 2 otherwise than it prompts.*learn_from to last"):
        Renderer(tokenizer).render(record)
    assert learnt(Renderer(tokenizer, "last").render(record), tokenizer) == ["<think>agree</think>Yes.<|im_end|>"]


def test_all_end_tokens_of_a_turn_are_learnt_and_the_newline_between_them_is_not():
    tokenizer = FAMILIES["phi3"]()
    tokens = Renderer(tokenizer).render(chat("Hi", "Hello.", "More?", "Yes."))
    assert marked(tokens, tokenizer).endswith("<|assistant|>\n⟦Yes.<|end|>⟧\n⟦<|endoftext|>⟧")
    assert learnt(tokens, tokenizer) == ["Hello.<|end|>", "Yes.<|end|>", "<|endoftext|>"]


def test_a_turn_that_only_the_next_speaker_ends_learns_that_speakers_token():
    template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    tokenizer = toy(template, eos="<|endoftext|>", specials=("<|user|>", "<|assistant|>"))
    ends = frozenset({tokenizer.convert_tokens_to_ids("<|user|>")})
    record = Conversation(chat("Hi", "Hello.", "More?").messages)
    assert learnt(Renderer(tokenizer, end_ids=ends).render(record), tokenizer) == ["Hello.<|user|>"]
    with pytest.raises(ValueError, match="no end-of-turn token follows turn 2"):
        Renderer(tokenizer, end_ids=ends).render(chat("Hi", "Hello."))


@pytest.mark.parametrize(("template", "kind"), [(LLAMA3, "llama3"), (MISTRAL, "metaspace")])
def test_bos_is_never_doubled(template, kind):
    tokenizer = toy(template, eos="</s>", bos="<s>", adds_bos=True, kind=kind, specials=("<|eot_id|>",))
    bos = tokenizer.bos_token_id
    for record in (chat("Hi", "Hello."), Text("Hello"), Text("<s>Hello"), Continuation("Hi", "Hello")):
        tokens = Renderer(tokenizer).render(record)
        assert tokens.ids[0] == bos
        assert (tokens.ids == bos).sum() == 1


def test_text_is_learnt_whole_and_ends_once():
    tokenizer = toy(eos="<|end|>", bos="<s>", adds_bos=True)
    for text in ("the quick fox", "the quick fox<|end|>"):
        tokens = Renderer(tokenizer).render(Text(text))
        assert tokenizer.decode(tokens.ids) == "<s>the quick fox<|end|>"
        assert tokens.learn.all()
        assert tokens.weight == len(tokens) - 1
        assert tokens.ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
@settings(max_examples=60, deadline=None)
@given(prompt=words, completion=words)
def test_without_a_template_the_prompt_is_as_inference_sees_it(kind, prompt, completion):
    tokenizer = toy(eos="<|end|>", bos="<s>", adds_bos=True, kind=kind)
    tokens = Renderer(tokenizer).render(Continuation(prompt, completion))
    seen = tokenizer(prompt)["input_ids"]
    assert tokens.ids[: len(seen)].tolist() == seen
    assert not tokens.learn[: len(seen)].any()
    assert tokens.learn[len(seen) :].all()
    assert tokenizer.decode(tokens.ids[len(seen) :]) == completion + "<|end|>"


def test_a_continuation_is_one_user_and_one_assistant_turn_where_there_is_a_template():
    tokenizer = toy(CHATML)
    as_chat = Renderer(tokenizer).render(chat("Question", "Answer"))
    as_continuation = Renderer(tokenizer).render(Continuation("Question", "Answer"))
    assert as_chat.ids.tolist() == as_continuation.ids.tolist()
    assert as_chat.learn.tolist() == as_continuation.learn.tolist()


def test_a_prompt_that_ends_within_a_token_of_a_tokenizer_that_marks_word_starts_is_refused():
    tokenizer = toy(eos="</s>", kind="metaspace")
    with pytest.raises(ValueError, match="prompt ends within a token"):
        Renderer(tokenizer).render(Continuation("the qui", "ck brown"))


def test_pad_that_is_also_the_end_is_learnt():
    tokenizer = toy(CHATML)
    tokenizer.pad_token = tokenizer.eos_token
    tokens = Renderer(tokenizer).render(chat("Hi", "Hello."))
    assert learnt(tokens, tokenizer) == ["Hello.<|im_end|>"]


def test_truncation_and_padding_in_a_tokenizer_file_cut_and_pad_nothing():
    tokenizer = toy(CHATML)
    plain = Renderer(tokenizer).render(chat("Hi", "Hello. " * 9))
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=500)
    assert Renderer(tokenizer).render(chat("Hi", "Hello. " * 9)).ids.tolist() == plain.ids.tolist()


TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
CALLS = [{"type": "function", "function": {"name": "now", "arguments": {}}}]


@pytest.mark.parametrize(
    ("template", "record", "sentence"),
    [
        (None, chat("Hi", "Hello."), "no chat template"),
        (CHATML, chat("Hi"), "no assistant turn"),
        (CHATML, Conversation(chat("Hi", "Hello.").messages[1:]), "starts with an assistant turn"),
        (CHATML, chat("Hi", "Stop<|im_end|>and go"), r"turn 2 holds <\|im_end\|>, which ends a turn, in its middle"),
        (
            GENERATION,
            chat("Hi", "Stop<|im_end|>and go"),
            r"turn 2 holds <\|im_end\|>, which ends a turn, in its middle",
        ),
        (CHATML, Conversation(chat("Hi", "Hello.").messages, TOOLS), "has tools, which .* would leave out"),
        (
            CHATML,
            Conversation([*chat("Hi").messages, {"role": "assistant", "content": "", "tool_calls": CALLS}]),
            "has tool_calls, which .* would leave out",
        ),
        (ENDLESS, chat("Hi", "Hello."), "no end-of-turn token follows turn 2"),
        (MISTRAL, chat("Hi", "Hello.", system="Be brief."), "refuses it: Only user and assistant roles"),
        (
            CHATML.replace("m.content", "m.content[0].text"),
            chat("Hi", "Hello."),
            "refuses it|leaves out what turn 2 says",
        ),
        (PHI3.replace("{{ m.content }}", ""), chat("Hi", "Hello."), "leaves out what turn 2 says"),
        (CHATML.replace("assistant\n{%", "assistant\n<think>{%"), chat("Hi", "Hello."), "prompt for reasoning"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_with_a_sentence(template, record, sentence):
    tokenizer = toy(template, eos="<|im_end|>", specials=("<|user|>", "<|assistant|>"))
    with pytest.raises(ValueError, match=sentence):
        Renderer(tokenizer).render(record)


def test_all_turns_of_weight_0_and_a_tokenizer_without_an_end_are_refused():
    record = chat("Hi", "Hello.")
    record.messages[1]["weight"] = 0
    with pytest.raises(ValueError, match="weight 0"):
        Renderer(toy(CHATML)).render(record)
    with pytest.raises(ValueError, match="no end-of-text token"):
        Renderer(toy(eos=None)).render(Text("the fox"))
    with pytest.raises(ValueError, match="holds the end-of-text token"):
        Renderer(toy()).render(Continuation("Hi", "Stop<|im_end|>and go"))


def test_ends_learnt_wants_an_end_in_every_run():
    tokenizer = toy(CHATML)
    renderer = Renderer(tokenizer)
    end = tokenizer.eos_token_id
    ids = np.array([5, 6, end, 7, 8, end], dtype=np.int32)

    def check(*learn: int) -> bool:
        return renderer.ends_learnt(Tokens(ids, np.array(learn, dtype=bool)))

    assert check(0, 1, 1, 0, 1, 1)
    assert check(1, 1, 1, 1, 1, 1)
    assert not check(0, 1, 1, 0, 1, 0)
    assert not check(0, 1, 0, 0, 1, 1)
    assert not check(0, 0, 0, 0, 0, 0)


# TRL ships the templates of many models, and beside each a variant with {% generation %} marks. The plain one and our
# prefixes must find what the marks of the other say; TRL's marks go on to the newline after the end, ours never do.
TEMPLATES = (
    Path(next(iter(spec.submodule_search_locations or [""]))) / "chat_templates" if (spec := find_spec("trl")) else None
)
FAMILY_END = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_OF_TURN_TOKEN|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "phi3": "<|end|>",
    "qwen2_5_vl": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
}


@pytest.mark.skipif(
    TEMPLATES is None or not TEMPLATES.is_dir(), reason="TRL, whose templates are compared with, is not installed"
)
@pytest.mark.parametrize("family", FAMILY_END)
@pytest.mark.parametrize("turns", [("Hi there", "Hello to you."), ("Hi", "Hello.", "More?", "Yes, 2 more.")])
def test_masks_are_those_of_trl_up_to_the_end_of_the_turn(family, turns):
    end = FAMILY_END[family]
    plain, training = ((TEMPLATES / f"{family}{kind}.jinja").read_text() for kind in ("", "_training"))
    tokenizer = toy(
        plain, eos=end, bos="<s>", specials=("<|user|>", "<|assistant|>", "<|im_start|>", "<start_of_turn>")
    )
    record = chat(*turns)
    ours = Renderer(tokenizer).render(record)
    theirs = tokenizer.apply_chat_template(
        record.messages, chat_template=training, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ours.ids.tolist() == theirs["input_ids"]
    differ = np.flatnonzero(ours.learn != np.array(theirs["assistant_masks"], dtype=bool))
    assert {tokenizer.decode([ours.ids[i]]) for i in differ} <= {"\n"}
    assert all(tokenizer.decode([ours.ids[i - 1]]) == end for i in differ)
    assert ours.learn.any()
