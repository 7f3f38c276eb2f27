"""A check is a plugin: one from outside joins, and one that breaks stops only itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from tutelage import TutelageError
from tutelage.cli.main import main
from tutelage.datacheck import DataCheck, Example, Finding
from tutelage.plugins import Host, hookimpl, host
from tutelage_advisor.audit import Options, audit
from tutelage_advisor.audit.html import page
from tutelage_advisor.cli.audit import audit as command


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


class Shouting(DataCheck):
    """Answers in capitals."""

    name = "shouting"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.rows: list[int] = []

    def look(self, example: Example) -> None:
        if example.answer.isupper():
            self.rows.append(example.number)

    def findings(self) -> Iterable[Finding]:
        yield Finding(check=self.name, severity="warning", message="<b>loud</b>", advice="speak softly", rows=self.rows)


class Breaking(Shouting):
    """Breaks at the second row."""

    name = "breaking"

    def look(self, example: Example) -> None:
        if example.number == 2:
            raise RuntimeError("no good")


class LateBreaking(Shouting):
    """Breaks at the end, in a generator."""

    name = "late-breaking"

    def findings(self) -> Iterable[Finding]:
        yield from super().findings()
        raise KeyError("late")


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with the installed plugins and three checks of a stranger."""
    module = ModuleType("stranger")

    @hookimpl
    def register_checks(register: Callable[[type[DataCheck]], None]) -> None:
        for check in (Shouting, Breaking, LateBreaking):
            register(check)

    module.register_checks = register_checks  # type: ignore[attr-defined]
    made = Host()
    made.discover()
    assert not made.register(module, "stranger").error
    for target in ("tutelage_advisor.audit.runner.host", "tutelage_advisor.audit.reading.host"):
        monkeypatch.setattr(target, lambda: made)


@pytest.mark.usefixtures("foreign")
def test_a_strangers_check_joins_and_a_broken_one_is_named(lines: Callable[..., Path]) -> None:
    rows = [{"prompt": f"ask {at}", "completion": "YES SIR" if at == 3 else "well then"} for at in range(1, 6)]
    report = audit(lines(rows))
    assert next(finding.rows for finding in report.findings if finding.check == "shouting") == [3]
    assert report.failed_checks == {"breaking": "RuntimeError: no good", "late-breaking": "KeyError: 'late'"}
    assert "breaking" not in report.checks
    assert "&lt;b&gt;loud" in page(report)
    assert "<b>loud" not in page(report)


def test_unknown_checks_and_settings_are_refused(lines: Callable[..., Path]) -> None:
    path = lines([{"text": "a b c"}])
    with pytest.raises(TutelageError, match="did you mean malformed"):
        audit(path, Options(skip=("malformd",)))
    with pytest.raises(TutelageError, match="max_length"):
        audit(path, Options(settings={"too-long": {"max_length": -4}}))


def test_the_limit_is_said(lines: Callable[..., Path]) -> None:
    path = lines([{"text": f"some words {at}"} for at in range(30)])
    assert (audit(path, Options(limit=10)).rows, audit(path, Options(limit=10)).whole) == (10, False)
    assert (audit(path, Options(limit=30)).rows, audit(path, Options(limit=30)).whole) == (30, True)


def test_a_tokenizer_counts_exactly(lines: Callable[..., Path], tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    path = lines([{"text": "word " * count} for count in (10, 17, 16)])
    settings = {"too-long": {"max_length": 20, "tokenizer": str(tmp_path)}}  # 4 tokens are the template's
    report = audit(path, Options(settings=settings))
    found = next(finding for finding in report.findings if finding.check == "too-long")
    assert found.rows == [2]
    assert found.figures["counted"] == str(tmp_path)
    with pytest.raises(TutelageError, match="no such tokenizer"):
        audit(path, Options(settings={"too-long": {"tokenizer": "nowhere"}}))


def test_the_command_prints_json_and_writes_the_page(lines: Callable[..., Path], tmp_path: Path) -> None:
    path = lines([{"text": f"some words {at // 2}"} for at in range(6)])
    shown = tmp_path / "audit.html"
    result = CliRunner().invoke(command, [str(path), "--json", "--report", str(shown)], catch_exceptions=False)
    told = json.loads(result.stdout)
    assert told["readiness"]["verdict"] == "insufficient"
    text = shown.read_text()
    assert "exact-duplicates" in text
    assert not [word for word in ("http:", "https:", "<script", "url(") if word in text]


def test_data_fix_writes_what_is_safe_to_keep(
    lines: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines([{"text": f"some words {at // 2}"} for at in range(6)])
    before, out = path.read_bytes(), tmp_path / "mended.jsonl"
    assert run("data", "fix", path, "--out", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"out": str(out), "kept": 3, "dropped": 3, "by_check": {"exact-duplicates": 3}}
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [
        f"some words {at}" for at in range(3)
    ]
    assert path.read_bytes() == before
    assert run("data", "fix", path, "--out", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert run("data", "fix", path) == 2
    assert run("data", "fix", path, "--out", tmp_path / "other.jsonl") == 0
    assert "3 rows were written to" in capsys.readouterr().out


def test_the_group_lists_core_s_commands_and_the_advisor_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "--help") == 0
    shown = capsys.readouterr().out
    assert "\n  show " in shown
    assert "\n  fix " in shown
    assert run("--help") == 0
    assert "data fix" not in capsys.readouterr().out


def test_the_command_speaks_to_people(lines: Callable[..., Path]) -> None:
    path = lines([{"text": f"some words {at // 2}"} for at in range(6)])
    result = CliRunner().invoke(command, [str(path)], catch_exceptions=False)
    assert "insufficient; 3 usable of 6 rows" in result.stdout
    assert "exact-duplicates: 3 rows repeat an earlier row" in result.stdout


def test_every_built_in_check_says_what_it_does() -> None:
    classes = host().classes("check")
    assert len(classes) >= 25
    assert all(made.summary().endswith(".") for made in classes.values())


def test_the_docs_name_every_check() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    missing = [
        name
        for name, made in host().classes("check").items()
        if f"| `{name}` |" not in docs and "tutelage" in made.__module__
    ]
    assert not missing
