"""Tutelage beside TRL's SFTTrainer: the same rows, model, optimizer and machine, in turns.

    python bench/sft_beside_trl.py [--data FILE] [--rows N] [--rounds N] [--out results.json]

Every contender is a process of its own that starts from the same model folder, trains one epoch and saves. Of each:

- tokens/s: tokens of examples (no padding) by the time of the steps, the first two left out;
- first step: seconds from the command to the end of the first step; total: to the end of the process;
- peak memory: the largest resident set of the process;
- eval loss: mean negative log-likelihood of the answers to held-out rows, in float32, computed here by transformers and
  peft from what was saved: the same code for all.

TRL is given its fastest settings that keep examples apart: packed without padding, bf16 autocast, and for LoRA the base
in bf16. Rows are conversations whose last turn is learnt.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
LEARNING_RATES = {"lora": 2e-4, "full": 2e-5}
DEMO = ROOT / "examples" / "demo" / "train.jsonl"
LENGTH, TOKENS_PER_STEP, SEED = 512, 4096, 0
Rows = list[list[dict[str, str]]]


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), default=ROOT / "examples" / "demo" / "train.jsonl"
)
@click.option("--model", default="starter:smollm2-135m-instruct", show_default=True)
@click.option(
    "--rows", "count", type=int, default=320, show_default=True, help="Rows to train on; 32 more are held out."
)
@click.option("--rounds", type=int, default=1, show_default=True, help="How often each contender has its turn.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write all figures as JSON.")
def main(data: Path, model: str, count: int, rounds: int, out: Path | None) -> None:
    """Let each contender have its turns, and print a table."""
    from tutelage.models.locating import fetch, locate
    from tutelage.plugins import host

    folder = fetch(locate(model, Path.cwd(), "model", host()), "model").path
    rows = read_rows(data)[: count + 32]
    results = []
    with tempfile.TemporaryDirectory() as work:
        train, held_out = rows[:-32], rows[-32:]
        file = Path(work) / "train.jsonl"
        file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in train), encoding="utf-8")
        for turn in range(rounds):
            for adapter in LEARNING_RATES:
                for name, contend in (("tutelage", tutelage), ("trl", trl)):
                    figures = contend(Path(work) / f"{name}-{adapter}-{turn}", folder, file, adapter)
                    figures["eval_loss"] = eval_loss(figures.pop("artifact"), folder, held_out)
                    results.append({"contender": name, "adapter": adapter, "round": turn, **figures})
                    click.echo(json.dumps(results[-1]), err=True)
    show(results)
    if out is not None:
        told = {"data": data.name, "rows": len(train), "model": model, "cores": os.cpu_count(), "results": results}
        out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def read_rows(file: Path) -> Rows:
    """Conversations from JSONL with `messages`, or from a JSON list in Alpaca's format."""
    if file.suffix == ".jsonl":
        return [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    made = []
    for row in json.loads(file.read_text(encoding="utf-8")):
        asked = "\n\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
        made.append([{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}])
    return made


def tutelage(work: Path, model: str, data: Path, adapter: str) -> dict[str, Any]:
    """Train with `tutelage train`."""
    recipe = {
        "name": "bench",
        "model": model,
        "stages": [
            {
                "name": "tune",
                "phase": "sft",
                "adapter": adapter,
                "data": {"train": str(data), "learn_from": "last", "too_long": "cut", "allow_loss": 1.0},
                "trainer": {
                    "epochs": 1,
                    "max_length": LENGTH,
                    "tokens_per_step": TOKENS_PER_STEP,
                    "precision": "bf16",
                    "seed": SEED,
                    "learning_rate": LEARNING_RATES[adapter],
                },
            }
        ],
    }
    work.mkdir()
    (work / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    program = str(Path(sys.executable).with_name("tutelage"))
    command = [program, "train", str(work / "recipe.json"), "--out", str(work / "run"), "--json"]
    lines, costs = timed(command, work)
    steps = [(event, at) for event, at in lines if event.get("event") == "step"]
    timings = [(event["tokens"], event["seconds"]) for event, _ in steps]
    return {**costs, **summed(timings, steps[0][1]), "artifact": lines[-1][0]["stages"][0]["artifact"]}


def trl(work: Path, model: str, data: Path, adapter: str) -> dict[str, Any]:
    """Train with TRL, in a process that runs `train_with_trl` below."""
    work.mkdir()
    lines, costs = timed([sys.executable, __file__, "--trl", str(work), model, str(data), adapter], work)
    steps = [(event, at) for event, at in lines if "seconds" in event]
    timings = [(event["tokens"], event["seconds"]) for event, _ in steps]
    return {**costs, **summed(timings, steps[0][1]), "artifact": str(work / "artifact")}


def train_with_trl(work: str, model: str, data: str, adapter: str) -> None:
    """TRL's side, in its own process: prints tokens and seconds of every step as a line of JSON."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    counted = {"tokens": 0, "at": 0.0}

    class Timed(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
            mask = inputs.get("attention_mask")
            counted["tokens"] += int(inputs["input_ids"].numel() if mask is None else mask.sum())
            return super().training_step(model, inputs, *rest, **options)

    class Tell(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            counted.update(tokens=0, at=time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            told = {"tokens": counted["tokens"], "seconds": time.perf_counter() - counted["at"]}
            print(json.dumps(told), flush=True)

    settings = SFTConfig(
        output_dir=work,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=TOKENS_PER_STEP // LENGTH // 2,
        max_length=LENGTH,
        packing=True,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        weight_decay=0.01,
        optim="adamw_torch",
        model_init_kwargs={"dtype": torch.bfloat16 if adapter == "lora" else torch.float32},
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
        learning_rate=LEARNING_RATES[adapter],
    )
    conversations = [json.loads(line)["messages"] for line in Path(data).read_text(encoding="utf-8").splitlines()]
    trainer = Timed(
        model,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in conversations]),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        if adapter == "lora"
        else None,
        callbacks=[Tell()],
    )
    trainer.train()
    trainer.save_model(str(Path(work) / "artifact"))


def timed(command: list[str], work: Path) -> tuple[list[tuple[dict[str, Any], float]], dict[str, float]]:
    """Run a process: its lines of JSON, each with the seconds since the start, and what the process took.

    Raises:
        click.ClickException: with the end of its log, when it fails.
    """
    caches = {"TUTELAGE_CACHE": str(work / "cache"), "HF_DATASETS_CACHE": str(work / "datasets")}
    lines = []
    started = time.perf_counter()
    with (work / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **caches}, cwd=work
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"'):
                lines.append((json.loads(line), time.perf_counter() - started))
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = (work / "log.txt").read_text(encoding="utf-8")[-3000:]
        raise click.ClickException(f"{command[0]} ended with {process.returncode}:\n{end}")
    unit = 1 if sys.platform == "darwin" else 1024
    return lines, {"total_seconds": time.perf_counter() - started, "peak_gib": usage.ru_maxrss * unit / 2**30}


def summed(timings: list[tuple[int, float]], first: float) -> dict[str, float]:
    """Speed of the steps after the first two, and when the first ended."""
    steady = timings[2:] or timings
    speed = sum(tokens for tokens, _ in steady) / sum(seconds for _, seconds in steady)
    return {"tokens_per_second": speed, "first_step_seconds": first, "steps": len(timings)}


def eval_loss(artifact: str, base: str, rows: Rows) -> float:
    """Mean negative log-likelihood, in nats, of the tokens of the last turn of each row, its end included."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    is_adapter = (Path(artifact) / "adapter_config.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(base if is_adapter else artifact, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, artifact).eval() if is_adapter else model.eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    total, learnt = 0.0, 0
    for row in rows:
        asked = str(tokenizer.apply_chat_template(row[:-1], tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template(row, tokenize=False)).rstrip("\n")
        begin = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"][:LENGTH]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, begin - 1 : -1]
        targets = ids[0, begin:]
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum")) if len(targets) else 0.0
        learnt += len(targets)
    return total / learnt if learnt else math.nan


def show(results: list[dict[str, Any]]) -> None:
    """A table of medians over the rounds."""
    columns = ["tokens_per_second", "first_step_seconds", "total_seconds", "peak_gib", "eval_loss"]
    click.echo(f"{'':16}{'tokens/s':>12}{'first step s':>14}{'total s':>10}{'peak GiB':>10}{'eval loss':>11}")
    for adapter in LEARNING_RATES:
        for name in ("tutelage", "trl"):
            own = [row for row in results if (row["contender"], row["adapter"]) == (name, adapter)]
            speed, first, total, peak, loss = (statistics.median(row[column] for row in own) for column in columns)
            click.echo(f"{f'{name} {adapter}':16}{speed:12.0f}{first:14.1f}{total:10.1f}{peak:10.2f}{loss:11.4f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trl"]:
        train_with_trl(*sys.argv[2:6])
    else:
        main()
