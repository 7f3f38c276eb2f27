"""`tutelage login`, `keys` and `doctor` against a server that listens."""

from __future__ import annotations

import io
import json
import stat

import pytest

from tutelage.cli.main import main
from tutelage_server.accounts.caller import SCOPES
from tutelage_server.cli.serve import keep
from tutelage_server.client.servers import config_file, find_server, read_known, remember


def login(tutelage, monkeypatch, *arguments, typed=""):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return tutelage("login", *arguments)


def test_login_tries_the_key_and_keeps_it_for_this_user_alone(tutelage, server, monkeypatch):
    config_file().unlink()
    outcome = login(tutelage, monkeypatch, server.url, typed=server.key + "\n")
    assert outcome.code == 0
    assert stat.S_IMODE(config_file().stat().st_mode) == 0o600
    assert server.key not in outcome.out + outcome.err
    assert find_server().key == server.key
    assert tutelage("keys", "list", "--json").lines[0][0]["scopes"] == sorted(SCOPES)


def test_a_key_that_does_not_work_is_not_kept(tutelage, server, monkeypatch):
    config_file().unlink()
    outcome = login(tutelage, monkeypatch, server.url, "--key", "tut_nonsense_x", "--json")
    assert outcome.code == 2
    assert outcome.lines[0]["error"]["problems"][0]["place"] == "the key"
    assert not config_file().exists()


def test_no_key_is_a_sentence(tutelage, server, monkeypatch):
    assert "--key: is empty" in login(tutelage, monkeypatch, server.url).err


def test_several_servers_have_names_and_one_is_the_default(server):
    remember("https://two:1", "b", "second", default=False)
    assert find_server().url == server.url
    assert find_server("second").key == find_server("https://two:1").key == "b"
    assert len(read_known().servers) == 2


def test_the_environment_names_a_server(monkeypatch, server):
    monkeypatch.setenv("TUTELAGE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("TUTELAGE_KEY", "k")
    assert (find_server().url, find_server().key) == ("http://127.0.0.1:1", "k")


def test_a_key_of_the_environment_comes_before_the_kept_one(monkeypatch, server):
    monkeypatch.setenv("TUTELAGE_KEY", "k")
    assert (find_server().url, find_server().key) == (server.url, "k")
    assert find_server(server.url).key == server.key


def test_an_address_without_a_scheme_is_of_this_machine_or_has_tls(tutelage, server, monkeypatch):
    config_file().unlink()
    assert login(tutelage, monkeypatch, server.url.removeprefix("http://"), typed=server.key).code == 0
    assert find_server().url == server.url


def test_a_server_that_is_kept_becomes_the_default_again(tutelage, server, monkeypatch):
    remember("https://two:1", "b", "second")
    assert find_server().url == "https://two:1"
    name = server.url.removeprefix("http://")
    for called in (name, server.url):
        remember("https://two:1", "b", "second")
        assert login(tutelage, monkeypatch, called, "--kept").code == 0
        assert find_server().url == server.url
    assert sorted(read_known().servers) == sorted([name, "second"])
    assert "second" in login(tutelage, monkeypatch, "secnd", "--kept").err


def test_a_server_that_takes_the_place_of_the_default_says_so(server, capsys):
    remember("https://two:1", "b", "second")
    keep("http://127.0.0.1:1", "tut_a_b")
    assert "tutelage login second --kept" in capsys.readouterr().err
    assert find_server().key == "tut_a_b"


def test_without_a_server_commands_say_how_to_get_one(tutelage):
    outcome = tutelage("jobs", "list")
    assert outcome.code == 2
    assert "tutelage serve" in outcome.err
    assert "tutelage login" in outcome.err


def test_a_name_that_is_not_known_is_answered_with_the_nearest(tutelage, server):
    remember("https://two:1", "b", "office", default=False)
    assert "office" in tutelage("jobs", "list", "--server", "ofice").err


def test_a_damaged_file_is_a_sentence(tutelage):
    config_file().parent.mkdir(parents=True)
    config_file().write_text("{")
    outcome = tutelage("jobs", "list")
    assert (outcome.code, "servers.json" in outcome.err) == (2, True)


def test_keys_are_made_listed_and_revoked(tutelage, server):
    made = tutelage("keys", "make", "robot", "--scope", "read", "--days", "2", "--json").lines[0]
    assert made["scopes"] == ["read"]
    assert made["expires_at"] is not None
    listed = {key["id"]: key for key in tutelage("keys", "list", "--json").lines[0]}
    assert "key" not in listed[made["id"]]
    with type(server)(server.url, made["key"], server.store, server.settings).client() as client:
        assert client.get("/v1/me")["scopes"] == ["read"]
    assert tutelage("keys", "revoke", made["id"]).code == 0
    assert {key["id"]: key for key in tutelage("keys", "list", "--json").lines[0]}[made["id"]]["revoked_at"]


def test_a_key_is_the_only_thing_on_stdout(tutelage, server):
    outcome = tutelage("keys", "make", "robot")
    assert outcome.out.startswith("tut_")
    assert len(outcome.out.splitlines()) == 1


def test_the_operator_makes_tenants_in_the_store_itself(tutelage, server):
    home = str(server.settings.folder)
    made = tutelage("keys", "make", "first", "--tenant", "second-team", "--local", home, "--json").lines[0]
    assert made["tenant"] == "second-team"
    assert "admin" not in made["scopes"]
    with type(server)(server.url, made["key"], server.store, server.settings).client() as client:
        assert client.get("/v1/me")["tenant"] == "second-team"
    tenants = {key["tenant"] for key in tutelage("keys", "list", "--local", home, "--json").lines[0]}
    assert tenants >= {server.tenant, "second-team"}
    assert made["id"] not in [key["id"] for key in tutelage("keys", "list", "--json").lines[0]]
    assert tutelage("keys", "revoke", made["id"], "--local", home).code == 0
    assert tutelage("keys", "revoke", "key-none", "--local", home).code == 2


@pytest.mark.parametrize(("name", "tenant"), [("", "a"), ("a\nb", "a"), ("x" * 101, "a"), ("a", "x" * 101)])
def test_names_in_the_store_itself_are_as_over_http(tutelage, server, name, tenant):
    outcome = tutelage("keys", "make", name, "--tenant", tenant, "--local", str(server.settings.folder))
    assert (outcome.code, "printable" in outcome.err, outcome.out) == (2, True, "")


def test_a_folder_without_a_store_is_not_made_into_one(tutelage, tmp_path):
    outcome = tutelage("keys", "list", "--local", str(tmp_path))
    assert (outcome.code, "holds no server's store" in outcome.err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def findings(outcome):
    return {each["name"]: each for each in outcome.lines[0]["findings"]}


def test_doctor_finds_the_server_and_the_key(tutelage, server):
    outcome = tutelage("doctor", "--json")
    found = findings(outcome)
    assert found["server"]["state"] == found["key"]["state"] == "ok"
    assert server.tenant in found["key"]["detail"]
    assert found["devices"]["state"] == "ok"
    assert outcome.code == (0 if all(each["state"] != "broken" for each in found.values()) else 1)


def test_doctor_tells_a_server_that_is_gone_and_a_key_that_is_none(tutelage, server):
    remember("http://127.0.0.1:1", "k", "gone", default=False)
    remember(server.url, "tut_no_key", "wrong", default=False)
    gone, wrong = tutelage("doctor", "--server", "gone", "--json"), tutelage("doctor", "--server", "wrong", "--json")
    assert (gone.code, findings(gone)["server"]["state"]) == (1, "broken")
    assert (wrong.code, findings(wrong)["server"]["state"], findings(wrong)["key"]["state"]) == (1, "ok", "broken")
    assert "tutelage login" in json.dumps(findings(wrong)["key"]) or findings(wrong)["key"]["fix"]


def test_doctor_goes_on_where_what_is_kept_is_damaged(tutelage):
    config_file().parent.mkdir(parents=True)
    config_file().write_text("{")
    outcome = tutelage("doctor", "--json")
    assert (outcome.code, findings(outcome)["server"]["state"]) == (1, "broken")
    assert findings(outcome)["python"]["state"] == "ok"


def test_doctor_without_a_server_is_no_fault(tutelage):
    found = findings(tutelage("doctor", "--json"))
    assert found["server"]["state"] == "missing"
    assert "server" not in findings(tutelage("doctor", "--local", "--json"))


@pytest.mark.parametrize("command", [["--help"], ["submit", "--help"], ["jobs", "--help"], ["keys", "make", "--help"]])
def test_help_is_there(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 0
