"""`tutelage estimate` and `tutelage catalog` as a person and a script meet them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tutelage.errors import TutelageError
from tutelage_advisor.cli.estimate import catalog, estimate


def ask(*arguments: str) -> str:
    result = CliRunner().invoke(estimate, list(arguments), catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0
    return result.output


def test_json_answers_and_a_page():
    arguments = [
        "--model",
        "Llama-3.1-8B",
        "--adapter",
        "qlora",
        "--gpu",
        "rtx 4090",
        "--seq-len",
        "512",
        "--examples",
        "100",
    ]
    data = json.loads(ask(*arguments, "--json"))
    assert data["fits"] is True
    assert data["gpu"] == "RTX 4090"
    assert data["usd"] > 0
    page = ask(*arguments)
    assert "fits" in page
    assert "assumed:" in page
    assert "41,943,040 learn" in page


def test_lists_of_targets_and_switches():
    data = json.loads(ask("--model", "GPT-2", "--targets", "c_attn, c_fc", "--rank", "2", "--checkpointing", "--json"))
    assert data["trainable_parameters"] == 12 * 2 * ((768 + 2304) + (768 + 3072))


def test_what_fits_both_ways():
    options = json.loads(ask("--model", "SmolLM2-1.7B", "--what-fits", "--gpu", "t4", "--json"))
    assert {option["gpu"] for option in options} == {"T4"}
    found = json.loads(ask("--what-fits", "--gpu", "l4", "--json"))
    assert [entry["adapter"] for entry in found] == ["full", "lora", "qlora"]
    assert "largest model" in ask("--what-fits", "--gpu", "l4")
    assert "fits on none" in ask("--what-fits", "--model", "DeepSeek-V3", "--adapter", "full")


def test_serving():
    data = json.loads(ask("--model", "Qwen3-8B", "--inference", "--context", "32768", "--batch", "2", "--json"))
    assert data["cache_gib"] == pytest.approx(2 * 32768 * 144 / 2**20)
    assert "key-value cache" in ask("--model", "Qwen3-8B", "--inference")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "Llama-3.1-8B", "--gpus", "-2"], "gpus: expected int >= 1"),
        (["--model", "Llama-3.1-8B", "--epochs", "nan"], "not a finite number"),
        (["--model", "Llama-3.1-8B", "--gpu", "H1000"], "did you mean"),
        (["--gpu", "h100"], "neither a recipe nor a model"),
        (["--what-fits"], "neither a model nor a GPU"),
        (["recipe.yaml", "--rank", "3"], "the recipe says so itself"),
        (["--model", "GPT-2", "--inference", "--context", "0"], "at least 1"),
    ],
)
def test_bad_input_is_a_sentence(arguments, said):
    with pytest.raises(TutelageError, match=said) as caught:
        ask(*arguments)
    assert caught.value.exit_code == 2


def test_catalog_lists_everything_with_its_sources():
    for kind, key in (("gpus", "memory_gib"), ("models", "config"), ("prices", "vendor")):
        result = CliRunner().invoke(catalog, [kind, "--json"], standalone_mode=False)
        assert all(key in entry for entry in json.loads(result.output))
        assert CliRunner().invoke(catalog, [kind], standalone_mode=False).exit_code == 0
    assert "genai" in CliRunner().invoke(catalog, ["sources"], standalone_mode=False).output


def test_no_torch_is_imported():
    code = (
        "import sys\n"
        "from tutelage_advisor.cli.estimate import estimate\n"
        "estimate(['--model', 'Llama-3.1-8B', '--gpu', 'l4', '--json'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'peft', 'lightning', 'datasets', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
