"""Files through OpenAI's own client."""

from __future__ import annotations

import io

import openai
import pytest
from openai_clients import chat_lines, lose_replies, no_sleep, openai_client
from serving import client, make_key, make_settings

from tutelage_server.openai.validating import LONGEST_LINE, check_jsonl

__all__ = ["no_sleep"]


@pytest.fixture
def http(tmp_path):
    with client(make_settings(tmp_path)) as made:
        yield made


@pytest.fixture
def api(http):
    return openai_client(http)


def test_a_file_is_sent_shown_read_and_deleted(api, http):
    data = chat_lines(12)
    file = api.files.create(file=("rows.jsonl", data), purpose="fine-tune")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(data), "rows.jsonl", "fine-tune")
    assert file.status == "processed"
    assert api.files.wait_for_processing(file.id).id == file.id
    assert api.files.retrieve(file.id) == file
    assert api.files.content(file.id).read() == data
    assert http.get(f"/v1/files/{file.id}").json()["bytes"] == len(data)
    deleted = api.files.delete(file.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (file.id, True, "file")
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        api.files.content(file.id)


def test_a_file_larger_than_a_json_body_is_streamed_to_the_storage(api):
    data = b"x" * 3_000_000
    file = api.files.create(file=io.BytesIO(data), purpose="user_data")
    assert file.bytes == len(data)
    assert b"".join(api.files.content(file.id).iter_bytes()) == data


def test_lists_come_in_pages_the_newest_first(api):
    made = [api.files.create(file=(f"{n}.jsonl", chat_lines(1)), purpose="fine-tune").id for n in range(5)]
    other = api.files.create(file=("x.txt", b"x"), purpose="user_data").id
    assert [each.id for each in api.files.list(limit=2)] == [other, *made[::-1]]
    assert [each.id for each in api.files.list(limit=2, purpose="fine-tune", order="asc")] == made
    page = api.files.list(limit=2)
    assert page.has_more
    assert not page.get_next_page().get_next_page().has_more


@pytest.mark.parametrize("data", [b"", b"hello", b'{"a": 1}\n[2]\n', b"\x89PNG\r\n", b'{"a": 1'])
def test_what_is_no_jsonl_is_refused_for_tuning_as_openai_refuses_it(api, data):
    with pytest.raises(
        openai.BadRequestError, match="Expected file to have JSONL format, where every line is"
    ) as caught:
        api.files.create(file=("rows.jsonl", data), purpose="fine-tune")
    assert caught.value.param == "file"
    assert list(api.files.list()) == []


def test_a_file_without_line_ends_is_not_taken_into_memory_whole(api, monkeypatch):
    """It may have gigabytes; what is judged of it are lines of at most 8 MiB."""
    longest = []

    def watched(lines):
        longest.append(max(map(len, lines)))
        return check_jsonl([b"x"])

    monkeypatch.setattr("tutelage_server.openai.files.check_jsonl", watched)
    with pytest.raises(openai.BadRequestError):
        api.files.create(file=("rows.jsonl", b"x" * (LONGEST_LINE + 2**21)), purpose="fine-tune")
    assert longest == [LONGEST_LINE + 1]


def test_nothing_stays_of_a_file_that_was_refused(tmp_path):
    settings = make_settings(tmp_path, limits={"file_bytes": 100_000, "stored_bytes": 150_000})
    with client(settings) as http:
        api = openai_client(http)
        with pytest.raises(openai.APIStatusError) as caught:
            api.files.create(file=("rows.txt", b"x" * 100_001), purpose="user_data")
        assert caught.value.status_code == 413
        api.files.create(file=("rows.txt", b"x" * 99_000), purpose="user_data")
        with pytest.raises(openai.PermissionDeniedError, match="may be"):
            api.files.create(file=("rows.txt", b"y" * 99_000), purpose="user_data")
        with pytest.raises(openai.BadRequestError):
            api.files.create(file=("rows.jsonl", b"no"), purpose="fine-tune")
        assert len(list(api.files.list())) == 1
    kept = [path for path in settings.folder.rglob("*") if path.is_file() and {"uploads", "files"} & set(path.parts)]
    assert sum(path.stat().st_size for path in kept) == 99_000


def test_a_file_expires_when_asked_to(api):
    file = api.files.create(
        file=("x.txt", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at in (file.created_at + 3600, file.created_at + 3601)
    with pytest.raises(openai.BadRequestError, match=r"between 3600 and 2592000"):
        api.files.create(
            file=("x.txt", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 5}
        )


def test_purposes_names_and_forms_are_checked(api, http):
    with pytest.raises(openai.BadRequestError) as caught:
        api.files.create(file=("x.txt", b"x"), purpose="mischief")
    assert caught.value.param == "purpose"
    with pytest.raises(openai.APIStatusError):
        api.files.create(file=("../../etc/passwd", b"x"), purpose="user_data")
    assert api.files.create(file=chat_lines(1), purpose="fine-tune").filename == "upload.jsonl"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    for body, status in {
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision\r\n--b--\r\n': 400,
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nhalf': 400,
        b"nothing of the kind": 400,
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 5000 + b"\r\n--b--\r\n": 400,
    }.items():
        answer = http.post("/openai/v1/files", content=body, headers=headers)
        assert answer.status_code == status, body
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert http.post("/openai/v1/files", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    parts = b"".join(b'--b\r\nContent-Disposition: form-data; name="a%d"\r\n\r\nx\r\n' % n for n in range(100))
    assert http.post("/openai/v1/files", content=parts + b"--b--\r\n", headers=headers).status_code == 400


def test_a_file_whose_answer_was_lost_is_there_once(http, no_sleep, monkeypatch):
    lose_replies(http, 1, monkeypatch)
    api = openai_client(http, retries=2)
    file = api.files.create(file=("rows.jsonl", chat_lines(3)), purpose="fine-tune")
    assert [each.id for each in api.files.list()] == [file.id]
    again = api.files.create(file=("rows.jsonl", chat_lines(3)), purpose="fine-tune")
    assert again.id != file.id
    twice = [
        api.files.create(file=("k.txt", b"k"), purpose="user_data", extra_headers={"Idempotency-Key": "one"}).id
        for _ in range(2)
    ]
    assert twice[0] == twice[1]


def test_another_tenant_sees_nothing_of_it(api, http):
    file = api.files.create(file=("x.txt", b"x"), purpose="user_data")
    other = openai_client(http, key=make_key(http.app.state.store, tenant="two"))
    assert list(other.files.list()) == []
    for ask in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(file.id)
