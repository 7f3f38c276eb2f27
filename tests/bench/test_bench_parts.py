"""The bench's parts: processes that are measured, rows, formulas, and the report it writes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bench.contests import Turn
from bench.figures import Figure, Report
from bench.processes import Ended, Failed
from bench.saving import stopped
from click.testing import CliRunner

from bench import machine, processes, report
from bench import rows as bench_rows


def python(*lines):
    return [sys.executable, "-c", "\n".join(lines)]


def test_a_process_tells_its_lines_and_its_memory(tmp_path):
    hundred = 100 * 2**20
    ended = processes.run(
        python(
            "import time",
            f"held = bytearray({hundred})",
            "print('no json')",
            'print(\'{"event": "step"}\', flush=True)',
            "time.sleep(0.3)",
            'print(\'{"event": "end"}\')',
        ),
        tmp_path / "it",
    )
    assert [line["event"] for line, _ in ended.lines] == ["step", "end"]
    (_, first), (_, second) = ended.lines
    assert second - first > 0.25
    assert ended.seconds >= second
    assert ended.peak_gib > hundred / 2**30
    assert ended.events("step") == [ended.lines[0]]


def test_a_process_that_fails_says_how(tmp_path):
    with pytest.raises(Failed, match=r"(?s)ended with 3.*out of cheese"):
        processes.run(python("import sys", "print('out of cheese', file=sys.stderr)", "sys.exit(3)"), tmp_path)


def test_a_process_that_hangs_is_ended(tmp_path):
    with pytest.raises(Failed, match="longer than 1 s"):
        processes.run(python("import time", "time.sleep(60)"), tmp_path, limit=1.0)


def test_rows_are_read_from_both_formats(tmp_path):
    alpaca = tmp_path / "rows.json"
    alpaca.write_text(json.dumps([{"instruction": "Add.", "input": "1 2", "output": "3"}]), encoding="utf-8")
    chat = [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]
    assert bench_rows.read_rows(alpaca) == [chat]
    file = bench_rows.write(tmp_path / "rows.jsonl", [{"messages": chat}])
    assert bench_rows.read_rows(file) == [chat]


def test_rows_are_taken_until_they_have_the_tokens():
    assert bench_rows.first_tokens(["a", "b", "c"], [10, 20, 30], 25) == ["a", "b"]
    assert bench_rows.first_tokens(["a", "b"], [10, 20], 35) == ["a", "b", "a"]


def test_packs_are_as_few_as_best_fit_makes_them():
    assert bench_rows.packs([6, 5, 4, 3, 2], 10) == 2  # 6 + 4 and 5 + 3 + 2
    assert bench_rows.packs([6, 6, 6], 10) == 3
    assert bench_rows.packs([25, 10], 10) == 2  # what is longer is cut


def test_every_pair_prefers_a_row_s_own_answer_to_another():
    rows = [
        [{"role": "user", "content": name}, {"role": "assistant", "content": answer}]
        for name, answer in (("q", "x"), ("r", "x"), ("s", "y"))
    ]
    pairs = bench_rows.preferences(rows)
    assert [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs] == [
        ("x", "y"), ("x", "y"), ("y", "x"),
    ]  # fmt: skip


def test_generated_rows_are_as_long_as_alpaca_s():
    made = list(bench_rows.alpaca_sized(2000))
    assert made == list(bench_rows.alpaca_sized(2000))
    words = sum(len(row["output"].split()) for row in made) / len(made)
    assert 90 < words < 130  # 150 tokens, at 1.3 to 1.4 tokens a word


def test_flops_are_those_of_the_model_s_matrices(tmp_path):
    """Against a count over the layers of a real model of that shape."""
    from torch import nn
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    model = LlamaForCausalLM(config)
    layers = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    blocks = sum(layer.weight.numel() for layer in layers)
    updates = sum(machine.RANK * (layer.in_features + layer.out_features) for layer in layers)
    output = model.lm_head.weight.numel()
    assert machine.flops_per_token(str(tmp_path), "full", 1.0) == 6 * (blocks + output)
    assert machine.flops_per_token(str(tmp_path), "lora", 0.5) == 4 * blocks + 4 * output * 0.5 + 6 * updates


def test_a_checkpoint_s_stop_is_what_lies_between_steps_beyond_the_usual():
    steps = [
        ({"event": "step", "step": 1, "tokens": 100, "seconds": 1.0}, 10.0),
        ({"event": "step", "step": 2, "tokens": 100, "seconds": 1.0}, 11.1),
        ({"event": "step", "step": 3, "tokens": 100, "seconds": 1.0}, 14.2),
        ({"event": "step", "step": 4, "tokens": 100, "seconds": 1.0}, 15.3),
    ]
    stops, speed = stopped(Ended([*steps, ({"event": "checkpoint", "step": 2}, 12.0)], 16.0, 1.0))
    assert stops == pytest.approx([2.0])
    assert speed == pytest.approx(100.0)


def test_a_whole_process_is_projected_from_its_steady_speed():
    turn = Turn(
        work="lora", who="trl", repeat=0, speed=50.0, first_step=5.0, seconds=30.0, peak_gib=1.0, steps=4, amount=1000,
        artifact="",
    )  # fmt: skip
    assert turn.seconds_for(1000) == 30.0
    assert turn.seconds_for(6000) == 130.0


def figure(**fields):
    named = {"section": "works", "name": "LoRA <r=16>", "measure": "speed, steady", "unit": "tokens/s"}
    return Figure(**{**named, "better": "higher", "ours": [40.0, 42.0], "peer": [10.0, 10.5], "target": 4.0, **fields})


def written(folder, *figures):
    made = Report(
        made="today", machine={"processor": "a", "cores": 2}, versions={"torch": "2"}, scale={"steps": 4},
        figures=list(figures), failures={"QLoRA": "no bitsandbytes"},
        settings={"lora": [{"settings": {"batch": 2}, "speed": 10.0}, {"settings": {"batch": 8}, "error": "no memory"}]},
    )  # fmt: skip
    report.write(made, folder)
    return made


def test_the_report_is_read_back_as_it_was(tmp_path):
    made = written(tmp_path, figure())
    assert report.read(tmp_path / "report.json") == made
    (tmp_path / "other.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match="no report"):
        report.read(tmp_path / "other.json")


def test_the_page_tells_figures_failures_and_settings_and_loads_nothing(tmp_path):
    written(tmp_path, figure(), figure(section="tokenising", name="rows", peer=[], target=50.0))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "LoRA &lt;r=16&gt;" in page
    for said in ("40.99 tokens/s", "10.25 tokens/s", "≥ 4", "not reached", "no bitsandbytes", "no memory", "1 of 2"):
        assert said in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def test_comparing_ends_with_1_where_something_is_worse(tmp_path):
    from bench.__main__ import main

    written(tmp_path / "old", figure())
    written(tmp_path / "new", figure(ours=[20.0, 20.1]))
    for name in ("old", "new"):  # what failed is told by another exit
        file = tmp_path / name / "report.json"
        file.write_text(file.read_text(encoding="utf-8").replace('"QLoRA": "no bitsandbytes"', ""), encoding="utf-8")
    old, new = (str(tmp_path / name / "report.json") for name in ("old", "new"))
    worse = CliRunner().invoke(main, ["--read", new, "--compare", old])
    assert worse.exit_code == 1
    assert "works: LoRA <r=16>, speed, steady: 20.05 tokens/s, and was 40.99" in worse.output
    assert CliRunner().invoke(main, ["--read", old, "--compare", new]).exit_code == 0


@pytest.mark.slow
def test_the_bench_measures_both_sides_and_writes_a_report(tmp_path):
    from tiny_models import write_model

    model = write_model(tmp_path / "model", "llama-tied")
    config = model / "config.json"  # rotary positions have no weights, so that it may read longer rows
    config.write_text(
        config.read_text(encoding="utf-8").replace('embeddings": 256', 'embeddings": 1024'), encoding="utf-8"
    )
    command = [
        sys.executable, "-m", "bench", "--quick", "--only", "lora", "--only", "tokenising", "--model", str(model),
        "--steps", "4", "--tokens-per-step", "1024", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=processes.ROOT, timeout=600)
    found = report.read(tmp_path / "out" / "report.json")
    assert not found.failures
    measured = {figure.measure: figure for figure in found.figures}
    assert {"speed, steady", "peak memory", "final loss, held out", "tokenise and pack"} <= set(measured)
    ours, theirs = measured["final loss, held out"].ours[0], measured["final loss, held out"].peer[0]
    assert ours == pytest.approx(theirs, rel=0.01)
    tokens = [turn["amount"] for turn in found.turns]
    assert len(tokens) == 2
    assert tokens[0] == pytest.approx(tokens[1], rel=0.05)  # both sides learn from the same rows
