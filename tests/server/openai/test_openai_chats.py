"""Chats through OpenAI's own client, with a tiny model behind a real answering process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import openai
import pytest
from openai_clients import openai_client
from serving import children, client, make_key, make_settings
from tiny_models import TEMPLATE, write_model

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openai-models")
    write_model(folder / "tiny", "llama-tied")
    write_model(folder / "other", "gpt2")
    for name, template in {
        "evil": "{{ ''.__class__.__mro__[1].__subclasses__() }}" + TEMPLATE,
        "reads": "{% include '/etc/passwd' %}" + TEMPLATE,
        "long": "{% for i in range(1000000000) %}x{% endfor %}" + TEMPLATE,
    }.items():
        write_model(folder / name, "llama-tied")
        (folder / name / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module")
def served_models(models, tmp_path_factory):
    names = {each.name: str(each) for each in models.iterdir()}
    settings = make_settings(tmp_path_factory.mktemp("served"), openai_models=names)
    with client(settings) as http:
        yield http


@pytest.fixture
def api(served_models):
    return openai_client(served_models)


def test_the_same_seed_gives_the_same_answer_and_the_stream_is_the_whole_in_pieces(api):
    asked = {"model": "tiny", "messages": HI, "seed": 3, "max_tokens": 12, "n": 2}
    whole = api.chat.completions.create(**asked)
    assert whole.model_dump()["choices"] == api.chat.completions.create(**asked).model_dump()["choices"]
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.object == "chat.completion"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    chunks = list(api.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.created for chunk in chunks} == {chunks[0].created}
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for choice in whole.choices:
        pieces = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert "".join(piece.delta.content or "" for piece in pieces) == choice.message.content
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [choice.finish_reason]


def test_without_sampling_the_answer_is_what_transformers_generates(api, models):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "tiny")
    model = AutoModelForCausalLM.from_pretrained(models / "tiny")
    ids = tokenizer.apply_chat_template(HI, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=[0, 2]
        )[0, ids.shape[1] :].tolist()
    ended = next((place for place, token in enumerate(made) if token in (0, 2)), None)
    answer = api.chat.completions.create(model="tiny", messages=HI, temperature=0, max_tokens=10)
    assert answer.choices[0].message.content == tokenizer.decode(made[:ended])
    assert answer.choices[0].finish_reason == ("length" if ended is None else "stop")
    assert answer.usage.prompt_tokens == ids.shape[1]
    assert answer.usage.completion_tokens == (10 if ended is None else ended + 1)


def test_a_stop_string_ends_an_answer_before_it_also_when_it_comes_in_several_tokens(api):
    asked = {"model": "tiny", "messages": HI, "temperature": 0, "max_tokens": 40}
    free = api.chat.completions.create(**asked).choices[0].message.content
    stop = free[5:9]
    cut = free[: free.index(stop)]
    answer = api.chat.completions.create(**asked, stop=stop).choices[0]
    assert (answer.message.content, answer.finish_reason) == (cut, "stop")
    chunks = api.chat.completions.create(**asked, stop=["never said", stop], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == cut


def test_streams_have_no_line_that_the_client_takes_for_an_empty_event(served_models):
    body = {"model": "tiny", "messages": HI, "max_tokens": 5, "stream": True}
    lines = served_models.post("/openai/v1/chat/completions", json=body).text.splitlines()
    assert all(not line or line.startswith("data: ") for line in lines)
    assert lines[-2] == "data: [DONE]"
    assert all(json.loads(line[6:]) for line in lines if line and line != "data: [DONE]")


def test_an_answer_ends_at_the_context_when_no_limit_is_given(api):
    answer = api.chat.completions.create(model="tiny", messages=HI, seed=1, extra_body={"stop": None})
    if answer.choices[0].finish_reason == "length":
        assert answer.usage.total_tokens == 256
    with pytest.raises(openai.BadRequestError, match="more than the model's context of 256") as caught:
        api.chat.completions.create(model="tiny", messages=HI, max_tokens=300)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"temperature": 3}, "temperature"),
        ({"n": 100}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ],
)
def test_what_can_not_be_honoured_is_refused_and_the_field_named(api, asked, field):
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(**{"model": "tiny", "messages": HI, **asked})
    assert caught.value.param == field
    assert field.rpartition(".")[2] in caught.value.message


def test_unknown_models_and_keys_arrive_as_the_clients_own_errors(api, served_models):
    with pytest.raises(openai.NotFoundError) as caught:
        api.chat.completions.create(model="gpt-9", messages=HI)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as refused:
        openai_client(served_models, key="tut_wrong_key").models.list()
    assert refused.value.code == "invalid_api_key"
    key = make_key(served_models.app.state.store, scopes=("advise",))
    with pytest.raises(openai.PermissionDeniedError):
        openai_client(served_models, key=key).models.list()
    with pytest.raises(openai.BadRequestError):
        api.chat.completions.create(model="tiny", messages=HI, extra_body={"unheard_of": 1})
    assert caught.value.request_id


@pytest.mark.parametrize(
    "address",
    ["file:///etc/passwd", "/etc/passwd", "http://169.254.169.254/latest/meta-data/", "http://[::1]:{port}/x", "LOCAL"],
)
def test_addresses_in_messages_are_never_fetched(api, address):
    asked = []

    class Asked(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

    listener = HTTPServer(("127.0.0.1", 0), Asked)
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.server_port}/secret" if address == "LOCAL" else address
        for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "file", "file": {"file_data": url}}):
            with pytest.raises(openai.BadRequestError, match="fetches nothing"):
                api.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [part]}])
        answer = api.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"![x]({url})"}], max_tokens=3
        )
        assert answer.choices
    finally:
        listener.shutdown()
        listener.server_close()
    assert asked == []


@pytest.mark.parametrize("model", ["evil", "reads", "long"])
def test_chat_templates_are_sandboxed(api, model):
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model=model, messages=HI, max_tokens=3)
    assert "chat template" in caught.value.message
    assert "root:" not in caught.value.message
    assert "<class" not in caught.value.message


def test_messages_are_text_to_the_template_not_part_of_it(api):
    said = {}
    for text in ("{{ 7 * 7 }}", "49"):
        messages = [{"role": "user", "content": text}]
        said[text] = api.chat.completions.create(model="tiny", messages=messages, max_tokens=1, temperature=0)
    assert said["{{ 7 * 7 }}"].usage.prompt_tokens > said["49"].usage.prompt_tokens


def test_the_server_has_no_torch_and_its_processes_end_with_it(models, tmp_path):
    settings = make_settings(tmp_path, openai_models={"tiny": str(models / "tiny")})
    with client(settings) as http:
        openai_client(http).chat.completions.create(model="tiny", messages=HI, max_tokens=2)
        (pid,) = http.app.state.answerers.pids
        assert pid in children(os.getpid())
        variables = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"TUTELAGE_SERVER" not in variables
        assert b"HF_HUB_OFFLINE=1" in variables
    assert not Path(f"/proc/{pid}").exists()
    code = "import sys, tutelage_server.app, tutelage_server.openai.routes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_process_ends_when_its_server_dies(models):
    order = {"kind": "load", "model": str(models / "tiny"), "base": "/", "device": "cpu", "threads": 1}
    process = subprocess.Popen(
        [sys.executable, "-m", "tutelage_server.openai.answering"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    ask = {"id": "a", "messages": HI, "seeds": [1], "max_tokens": None, "most_tokens": 200, "temperature": 1.0}
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.write(json.dumps({"kind": "ask", **ask, "top_p": 1.0, "stop": []}).encode() + b"\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"kind": "loaded"}
    process.stdin.close()  # what the kernel does for a server that was killed
    assert process.wait(20) == 0
    process.stdout.close()


def test_models_take_turns_where_only_one_may_be_loaded_and_the_idle_end(models, tmp_path):
    names = {name: str(models / name) for name in ("tiny", "other")}
    answering = {"models": 1, "idle_seconds": 0.4}
    with client(make_settings(tmp_path, openai_models=names, answering=answering)) as http:
        api, answerers = openai_client(http), http.app.state.answerers
        pids = []
        for name in ("tiny", "other"):
            assert api.chat.completions.create(model=name, messages=HI, max_tokens=2).choices
            pids += answerers.pids
        assert len(set(pids)) == 2
        assert not Path(f"/proc/{pids[0]}").exists()
        until = time.monotonic() + 20
        while Path(f"/proc/{pids[1]}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not Path(f"/proc/{pids[1]}").exists()
        assert answerers.pids == []


def test_a_killed_process_is_an_error_that_may_be_tried_again_and_the_next_question_gets_another(models, tmp_path):
    with client(make_settings(tmp_path, openai_models={"tiny": str(models / "tiny")})) as http:
        api, answerers = openai_client(http), http.app.state.answerers
        api.chat.completions.create(model="tiny", messages=HI, max_tokens=2)
        (pid,) = answerers.pids
        os.kill(pid, 9)
        assert api.with_options(max_retries=2).chat.completions.create(model="tiny", messages=HI, max_tokens=2).choices
        assert answerers.pids != [pid]


def test_a_model_that_is_not_there_says_so(tmp_path):
    names = {"gone": str(tmp_path / "nowhere"), "none": "starter:none"}
    with client(make_settings(tmp_path, openai_models=names)) as http:
        for name in names:
            with pytest.raises(openai.InternalServerError, match="can't be loaded") as caught:
                openai_client(http).chat.completions.create(model=name, messages=HI)
            assert caught.value.status_code == 503
