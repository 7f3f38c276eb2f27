"""An answer's tokens become text in pieces that add up, whatever characters and stop strings they are cut at."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tokenizer, write_model

from tutelage_server.openai.answering import Voice

TOKENIZER = tokenizer()


def said(ids: list[int], stop: list[str]) -> tuple[list[str], str]:
    voice = Voice(TOKENIZER, stop)
    pieces = []
    for token in ids:
        pieces.append(voice.take(token, is_end=False))
        if voice.ended:
            return pieces, voice.ended
    return [*pieces, voice.finish("length")], voice.ended


@settings(max_examples=200)
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_the_pieces_are_the_text_up_to_the_first_stop_string(text, stop):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    whole = TOKENIZER.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    pieces, ended = said(ids, stop)
    found = [whole.find(each) for each in stop if each in whole]
    if found and ended == "stop":
        assert whole.startswith("".join(pieces))
        assert not any(each in "".join(pieces) for each in stop)
    else:
        assert "".join(pieces) == whole
    if not found:
        assert ended == "length"


def test_half_a_character_waits_for_its_rest():
    ids = TOKENIZER("é😀", add_special_tokens=False)["input_ids"]
    assert len(ids) > 2
    pieces, _ = said(ids, [])
    assert "".join(pieces) == "é😀"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(write_model(tmp_path_factory.mktemp("voice"), "llama-tied"))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_token_by_token_the_same_is_drawn_as_at_once_also_when_two_take_turns(model, temperature):
    from tutelage.models.sampling import draw, ends_of, sample

    prompts = [TOKENIZER("the cat")["input_ids"], TOKENIZER("2 + 3 =")["input_ids"]]
    options = {"max_new_tokens": 12, "temperature": temperature, "top_p": 0.9, **ends_of(model, TOKENIZER)}
    seeds = [5, 6]
    wanted = [sample(model, [prompt] * 2, seeds=seeds, batch_size=2, **options) for prompt in prompts]
    drawing = [draw(model, prompt, seeds=seeds, **options) for prompt in prompts]
    got = [[[], []], [[], []]]
    for _ in range(13):
        for answers, each in zip(got, drawing, strict=True):
            for row, token in next(each, []):
                answers[row].append(token)
    assert got == [[answer.ids for answer in answers] for answers in wanted]


def test_questions_share_the_model_and_one_that_nobody_waits_for_is_dropped(model):
    import queue

    from tutelage_server.openai.answering import serve
    from tutelage_server.openai.protocol import Ask, Ended, Leave, Piece, Refused

    def ask(name: str, tokens: int) -> Ask:
        messages = [{"role": "user", "content": name}]
        options = {"temperature": 1.0, "top_p": 1.0, "stop": [], "most_tokens": 200}
        return Ask(id=name, messages=messages, seeds=[1, 2, 3, 4], max_tokens=tokens, **options)

    orders: queue.Queue = queue.Queue()
    for each in (ask("long", 200), ask("left", 200), ask("short", 3), ask("too long", 400)):
        orders.put(each)
    told = []

    def tell(reply) -> None:
        if isinstance(reply, Piece) and reply.id == "left":
            orders.put(Leave(id="left"))
        told.append(reply)
        if isinstance(reply, Ended) and reply.id == "long" and sum(isinstance(each, Ended) for each in told) == 8:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        serve(model, TOKENIZER, orders, tell)
    ended = [reply.id for reply in told if isinstance(reply, Ended)]
    assert sorted(ended) == ["long"] * 4 + ["short"] * 4
    assert ended.index("short") < len(ended) - 1
    assert [reply.id for reply in told if isinstance(reply, Refused)] == ["too long"]
