"""The catalog: complete, sourced, mergeable."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

import msgspec
import pytest

from tutelage.errors import TutelageError
from tutelage_advisor.catalog import Catalog, load

CATALOG = load()


def test_it_is_as_large_as_promised():
    assert len(CATALOG.gpus) >= 25
    assert len(CATALOG.models) >= 30
    assert len(CATALOG.api_prices) >= 15


def test_every_figure_has_a_source_and_a_day():
    for gpu in CATALOG.gpus:
        figures = [gpu.memory_gib, gpu.bandwidth_gb_s, gpu.link.gb_s, *gpu.tflops.values()]
        figures += [figure for figure in (gpu.watts, gpu.usable_gib, gpu.achievable) if figure]
        for figure in figures:
            assert figure.source in CATALOG.sources
            assert date.fromisoformat(figure.read) if figure.read else figure.source == "datasheet"
        for price in gpu.prices:
            assert price.source in CATALOG.sources
            assert date.fromisoformat(price.read)
    for entry in [*CATALOG.models, *CATALOG.api_prices]:
        assert entry.source in CATALOG.sources
        assert date.fromisoformat(entry.read) if entry.read else entry.source == "hub"


def test_names_and_aliases_mean_one_thing():
    for entries in (CATALOG.gpus, CATALOG.models):
        seen: dict[str, str] = {}
        for entry in entries:
            for name in {entry.name.lower(), *(alias.lower() for alias in entry.aliases)}:
                assert seen.setdefault(name, entry.name) == entry.name


def test_names_are_found_in_any_spelling():
    assert CATALOG.gpu("rtx4090").name == "RTX 4090"
    assert CATALOG.gpu("h100").name == "H100-SXM"
    assert CATALOG.model("meta-llama/llama-3.3-70b-instruct").name == "Llama-3.1-70B"
    assert CATALOG.api_price("GPT-4.1-mini").training == 5
    with pytest.raises(TutelageError, match="did you mean RTX 4090"):
        CATALOG.gpu("RTX 4091")
    with pytest.raises(TutelageError, match="no hosted model"):
        CATALOG.api_price("gpt-nothing")


def test_figures_are_dense_and_plausible():
    for gpu in CATALOG.gpus:
        assert gpu.usable <= gpu.memory_gib.value
        if "fp8" in gpu.tflops:
            assert gpu.tflops["fp8"].value >= 1.9 * gpu.tflops["fp16"].value
        if gpu.has_bf16:
            assert gpu.tflops["bf16"].value == gpu.tflops["fp16"].value
    assert not CATALOG.gpu("T4").has_bf16
    assert CATALOG.gpu("T4").peak_tflops("bf16") == CATALOG.gpu("T4").peak_tflops("fp32") == 8.1


def test_tuning_that_ends_is_gated():
    price = CATALOG.api_price("gpt-4.1")
    assert price.tunable("2027-01-05")
    assert not price.tunable("2027-01-06")
    assert not CATALOG.api_price("claude-opus-5").tunable("2026-01-01")


def test_stale_prices_are_said():
    names = {stale.name for stale in CATALOG.stale(date(2026, 11, 24))}
    assert "gpt-4.1-mini" in names  # read 2025-07-04
    assert "claude-opus-5" not in names
    assert not CATALOG.stale(date(2025, 7, 5))
    everything = CATALOG.stale(date(2030, 1, 1))
    assert len(everything) == len(CATALOG.api_prices) + sum(len(gpu.prices) for gpu in CATALOG.gpus)


OWN = """
sources: {mine: our invoice}
gpus:
  - name: RTX 4090
    memory_gib: [48, mine, 2026-11-01]
    bandwidth_gb_s: [1008, mine, 2026-11-01]
    tflops: {bf16: [165, mine, 2026-11-01]}
    link: {kind: PCIe 4 x16, gb_s: [64, mine, 2026-11-01]}
    prices: [{provider: us, usd_per_hour: 0.1, source: mine, read: 2026-11-01}]
models:
  - {name: ours, config: {model_type: gpt2, n_embd: 64, n_layer: 2, n_head: 2, n_positions: 64, vocab_size: 100}, source: mine, read: 2026-11-01}
"""


def test_a_file_of_ones_own_adds_and_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace("2026-11-01", '"2026-11-01"'))
    merged = load(path)
    assert merged.gpu("rtx 4090").memory_gib.value == 48
    assert merged.model("ours").config["n_embd"] == 64
    assert len(merged.gpus) == len(CATALOG.gpus)
    assert merged.source("mine") == "our invoice"
    assert merged.source("said by a friend") == "said by a friend"
    monkeypatch.setenv("TUTELAGE_CATALOG", str(path))
    assert load().gpu("rtx 4090").typical_price == 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[48,", "[-48,"), "memory_gib"),
        (("[48,", "[.nan,"), "memory_gib"),
        (("usd_per_hour: 0.1", "usd_per_hour: -1"), "usd_per_hour"),
        (("usd_per_hour: 0.1", "usd_per_hour: .nan"), "usd_per_hour"),
        (('read: "2026-11-01"', 'read: "2026-13-45"'), "is not a day"),
        (("provider: us", "provder: us"), "provder"),
        (("models:", "model:"), "model"),
    ],
)
def test_a_wrong_file_is_told_in_a_sentence(tmp_path: Path, change: tuple[str, str], said: str):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace("2026-11-01", '"2026-11-01"').replace(*change))
    with pytest.raises(TutelageError, match=said):
        load(path)


def test_catalogs_survive_json():
    assert msgspec.json.decode(msgspec.json.encode(CATALOG), type=Catalog) == CATALOG


PLUGIN = """
import tutelage


class Lab(tutelage.CatalogEntries):
    \"\"\"What our laboratory has.\"\"\"

    name = "lab"

    def entries(self):
        return {
            "sources": {"invoice": "our invoice"},
            "gpus": [{
                "name": "Lab-9000",
                "memory_gib": [64, "invoice", "2026-11-01"],
                "bandwidth_gb_s": [2000, "invoice", "2026-11-01"],
                "tflops": {"bf16": [400, "invoice", "2026-11-01"]},
                "link": {"kind": "NVLink", "gb_s": [600, "invoice", "2026-11-01"]},
                "prices": [{"provider": "us", "usd_per_hour": 0.5, "source": "invoice", "read": "2026-11-01"}],
            }],
            "api_prices": [{"model": "lab-chat", "vendor": "us", "input": 0.1, "output": 0.2, "source": "invoice", "read": "2026-11-01"}],
        }


@tutelage.hookimpl
def register_catalogs(register):
    register(Lab)
"""


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A folder with an installed distribution that brings catalog entries."""
    (tmp_path / "lab_catalog.py").write_text(PLUGIN)
    info = tmp_path / "lab_catalog-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-catalog\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tutelage]\nlab = lab_catalog\n")
    return tmp_path


def tutelage_with(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from tutelage.cli.main import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), *arguments], capture_output=True, text=True, check=False
    )


def test_a_plugin_adds_gpus_and_prices(sample: Path):
    listed = tutelage_with(sample, "catalog", "gpus")
    assert "Lab-9000\t64\t2000\t400" in listed.stdout
    asked = ("estimate", "--model", "SmolLM2-135M", "--gpu", "lab 9000", "--examples", "1000", "--json")
    answered = tutelage_with(sample, *asked)
    assert answered.returncode == 0, answered.stderr
    assert msgspec.json.decode(answered.stdout)["gpu"] == "Lab-9000"
    assert "catalog lab: What our laboratory has." in tutelage_with(sample, "plugins").stdout
    assert "lab-chat" in tutelage_with(sample, "catalog", "prices").stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[64,", "[-64,"), "catalog lab of lab_catalog: gpus.Lab-9000.memory_gib"),
        (
            ('"usd_per_hour": 0.5', '"usd_per_hour": float("nan")'),
            "catalog lab of lab_catalog: gpus.Lab-9000.prices.0.usd",
        ),
        (('"gpus": [{', '"gpu": [{'), "did you mean gpus?"),
        (('"read": "2026-11-01"}],', '"read": "2026-31-01"}],'), "2026-31-01 is not a day"),
        (
            ("        return {", "        1 / 0\n        return {"),
            "ZeroDivisionError: division by zero; mend the plugin",
        ),
    ],
)
def test_wrong_entries_of_a_plugin_are_told_in_a_sentence(sample: Path, change: tuple[str, str], said: str):
    (sample / "lab_catalog.py").write_text(PLUGIN.replace(*change))
    answered = tutelage_with(sample, "catalog", "gpus")
    assert (answered.returncode, answered.stdout) == (2, "")
    assert said in answered.stderr
    assert "Traceback" not in answered.stderr
