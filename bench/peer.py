"""TRL's side, in a process of its own: `python -m bench.peer REQUEST.json` trains, and tells every step as it ends.

A request names the work (lora, full, qlora, dpo, grpo), the model's folder, the data (JSONL), the output folder, and
`settings`: what TRL is free to choose. With `trials`, a list of settings, each is trained with for three steps, and how
much of the last two was done in a second is told.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import processes, scale
from bench.rows import packs
from bench.scale import LEARNING_RATES, LENGTH, PROMPTS, SAMPLES

Step = Callable[[int, float], None]


def main() -> None:
    """Answer the request."""
    request = processes.request()
    if "trials" not in request:
        train(request, request["settings"], lambda amount, seconds: processes.tell(amount=amount, seconds=seconds))
        return
    for settings in request["trials"]:
        steps: list[tuple[int, float]] = []
        try:
            train(request, settings, partial(_note, steps), max_steps=3)
        except Exception as error:  # a peer's settings may not work here; that is a finding, too
            processes.tell(settings=settings, error=f"{type(error).__name__}: {error}"[:300])
        else:
            amounts, seconds = zip(*steps[1:], strict=True)
            processes.tell(settings=settings, speed=sum(amounts) / sum(seconds))
        gc.collect()


def _note(steps: list[tuple[int, float]], amount: int, seconds: float) -> None:
    steps.append((amount, seconds))


def train(request: dict[str, Any], settings: dict[str, Any], step: Step, max_steps: int = -1) -> None:
    """Train, tell `step` of each step's amount (tokens, or answers) and seconds, and save unless it is a trial."""
    from transformers import AutoTokenizer, TrainerCallback

    made, options = {"dpo": _dpo, "grpo": _grpo}.get(request["work"], _sft)(request, settings, max_steps)
    counted = {"amount": 0, "at": 0.0}
    answers = request["work"] == "grpo"

    class Timed(made):  # type: ignore[misc, valid-type]
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            if not answers:
                mask = inputs.get("attention_mask")
                counted["amount"] += int(inputs["input_ids"].numel() if mask is None else mask.sum())
            return super().training_step(model, inputs, *rest, **named)

    class Tell(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            counted.update(amount=PROMPTS * SAMPLES if answers else 0, at=time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step(int(counted["amount"]), time.perf_counter() - counted["at"])

    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = Timed(request["model"], processing_class=tokenizer, callbacks=[Tell()], **options)
    trainer.train()
    if max_steps < 0:
        trainer.save_model(request["out"])
        rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
        if rewards:
            processes.tell(reward=rewards[-1])


def _sft(request: dict[str, Any], settings: dict[str, Any], max_steps: int) -> tuple[Any, dict[str, Any]]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    work, batch = request["work"], settings["batch"]
    length = min(settings.get("length", LENGTH), request["tokens_per_step"])
    in_all = packs(request["lengths"], length) if settings["packing"] else len(request["lengths"])
    arguments = SFTConfig(
        max_length=LENGTH if not settings["packing"] else length,
        packing=settings["packing"],
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=max(1, round(in_all / request["steps"] / batch)),
        learning_rate=LEARNING_RATES[work],
        model_init_kwargs={"dtype": "float32" if work == "full" else _dtype(settings)},
        **_common(request, settings, max_steps),
    )
    rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in _read(request)]
    options: dict[str, Any] = {"args": arguments, "train_dataset": Dataset.from_list(rows)}
    if work == "qlora":
        options["quantization_config"] = _four_bits()
    if work != "full":
        options["peft_config"] = _lora()
    return SFTTrainer, options


def _dpo(request: dict[str, Any], settings: dict[str, Any], max_steps: int) -> tuple[Any, dict[str, Any]]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(
        beta=scale.BETA,
        max_length=LENGTH,
        per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=max(1, round(request["rows_per_step"] / settings["batch"])),
        precompute_ref_log_probs=settings.get("reference_first", False),
        padding_free=settings.get("padding_free", False),
        learning_rate=LEARNING_RATES["lora"],
        model_init_kwargs={"dtype": _dtype(settings)},
        **_common(request, settings, max_steps),
    )
    return DPOTrainer, {
        "args": arguments,
        "train_dataset": Dataset.from_list(_read(request)),
        "peft_config": _lora(),
    }


def _grpo(request: dict[str, Any], settings: dict[str, Any], max_steps: int) -> tuple[Any, dict[str, Any]]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def near_the_target(completions: list[Any], **_: Any) -> list[float]:
        counts = [len(completion[0]["content"].split()) for completion in completions]
        return [-min(1.0, abs(count - scale.WORDS) / scale.WORDS) for count in counts]

    answers = PROMPTS * SAMPLES
    arguments = GRPOConfig(
        loss_type="dapo",
        num_generations=SAMPLES,
        per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=answers // settings["batch"],
        generation_batch_size=answers,
        max_completion_length=scale.NEW_TOKENS,
        temperature=1.0,
        beta=scale.KL,
        learning_rate=LEARNING_RATES["lora"],
        logging_steps=1,
        cache_implementation=settings.get("cache"),
        use_transformers_continuous_batching=settings.get("continuous", False),
        model_init_kwargs={"dtype": _dtype(settings)},
        **_common(request, settings, max_steps),
    )
    return GRPOTrainer, {
        "args": arguments,
        "train_dataset": Dataset.from_list(_read(request)),
        "peft_config": _lora(),
        "reward_funcs": near_the_target,
    }


def _common(request: dict[str, Any], settings: dict[str, Any], max_steps: int) -> dict[str, Any]:
    import torch

    return {
        "output_dir": request["out"],
        "num_train_epochs": 1,
        "max_steps": max_steps,
        "bf16": settings["bf16"],
        "torch_compile": settings.get("compile", False),
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": scale.WEIGHT_DECAY,
        "max_grad_norm": scale.CLIP,
        "optim": "adamw_torch",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": scale.SEED,
    }


def _dtype(settings: dict[str, Any]) -> str:
    return "bfloat16" if settings["bf16"] else "float32"


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=scale.RANK, lora_alpha=scale.ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def _four_bits() -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _read(request: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(request["data"]).read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
