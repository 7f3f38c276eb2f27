"""Tutelage beside TRL's trainers of alignment: the same rows, seeds and hyperparameters, and so the same loss curve.

    python bench/alignment_beside_trl.py [--phase dpo] [--model REFERENCE] [--data FILE] [--rows N] [--out results.json]

Both train all weights in float32 without dropout, from the same model. What TRL makes of what it is given, its losses,
its gradients and its optimizer steps, is its own:

- dpo, reward_model: TRL is given the tokens of every pair, and the pairs of every step, as Tutelage planned them.
- grpo: TRL is given the answers that Tutelage's policy drew, and scores them by itself. Two updates are taken on each
  iteration's answers, and the mean of their losses is compared, for that of the first does not depend on the weights.

Ends with an error where losses differ by more than 1 % of TRL's mean loss (mean absolute loss: GRPO's lie around 0).
Preference data is JSONL with prompt, chosen and rejected as messages; without `--data`, the answers of the demo are
preferred to those of other rows.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).parents[1]
TOKENS_PER_STEP, EPOCHS, SEED, CLIP, LEARNING_RATE = 2048, 2.0, 0, 1.0, 2e-5
PROMPTS, SAMPLES, NEW_TOKENS, WORDS, UPDATES = 4, 4, 32, 8, 2
PHASES: dict[str, dict[str, Any]] = {
    "dpo": {"kind": "dpo", "beta": 0.1},
    "reward_model": {"kind": "reward_model", "centring": 0.01},
    "grpo": {
        "kind": "grpo",
        "rewards": [{"kind": "length", "target": WORDS, "unit": "words"}],
        "prompts_per_step": PROMPTS,
        "samples": SAMPLES,
        "max_new_tokens": NEW_TOKENS,
        "inner_epochs": UPDATES,
        "kl_coefficient": 0.04,
        "clip": 0.2,
        "clip_high": 0.28,
    },
}
Curve = list[float]


@click.command()
@click.option("--phase", "phases", type=click.Choice(list(PHASES)), multiple=True, help="All unless named.")
@click.option("--model", default="starter:smollm2-135m-instruct", show_default=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Preferences, as JSONL.")
@click.option("--rows", type=int, default=48, show_default=True, help="How many rows of the data.")
@click.option("--length", type=int, default=512, show_default=True, help="Rows with longer answers are left out.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write both curves as JSON.")
def main(phases: tuple[str, ...], model: str, data: Path | None, rows: int, length: int, out: Path | None) -> None:
    """Train both, and print their curves side by side."""
    results: dict[str, Any] = {}
    largest = []
    with tempfile.TemporaryDirectory() as work:
        for phase in phases or tuple(PHASES):
            folder = Path(work) / phase
            (folder / "trl").mkdir(parents=True)
            file = write_rows(folder / "rows.jsonl", data, rows, prompts_only=phase == "grpo")
            ours, theirs = compare(phase, model, file, length, folder)
            largest.append(show(phase, ours, theirs))
            results[phase] = {"tutelage": ours, "trl": theirs, "largest_difference": largest[-1]}
    if out is not None:
        out.write_text(json.dumps({"model": model, "rows": rows, **results}, indent=2) + "\n", encoding="utf-8")
    if max(largest) > 0.01:
        sys.exit(1)


def write_rows(file: Path, data: Path | None, count: int, *, prompts_only: bool) -> Path:
    """The first rows of the data, or pairs made of the demo's conversations; or prompts, as many as fill all steps."""
    if data is not None:
        rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()[:count]]
    else:
        demo = (ROOT / "examples" / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines()[: count + 1]
        chats = [json.loads(line)["messages"] for line in demo]
        rows = [{"prompt": c[:-1], "chosen": c[-1:], "rejected": other[-1:]} for c, other in pairwise(chats)]
    if prompts_only:
        rows = [{"prompt": row["prompt"]} for row in rows[: len(rows) // PROMPTS * PROMPTS]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def compare(phase: str, model: str, data: Path, length: int, work: Path) -> tuple[Curve, Curve]:
    """The losses of every step, of Tutelage and of TRL."""
    import tutelage
    from tutelage.engine.context import make_ready
    from tutelage.plugins import host
    from tutelage.recipe import resolve
    from tutelage.runs.folder import RunFolder

    trainer = {
        "epochs": EPOCHS,
        "max_length": length,
        "tokens_per_step": TOKENS_PER_STEP,
        "precision": "fp32",
        "seed": SEED,
        "learning_rate": LEARNING_RATE,
        "schedule": "constant",
        "warmup": 0.0,
        "weight_decay": 0.0,
        "clip": CLIP,
        "devices": 1,
        "rehearsal": False,
    }
    source = {"train": str(data), "too_long": "drop", "allow_loss": 1.0}
    stage = {"name": "tune", "phase": PHASES[phase], "adapter": "full", "data": source, "trainer": trainer}
    recipe = {"name": "bench", "model": model, "stages": [stage], "trackers": []}
    with answers_noted() as rollouts:
        run = RunFolder.open(tutelage.train(recipe, out=work / "run").folder)
    events = map(json.loads, (run.path / "events.jsonl").read_text(encoding="utf-8").splitlines())
    ours = [event["loss"] for event in events if event["event"] == "step"]
    resolved = resolve(run.recipe, Path(run.record.base), host())
    context = make_ready(run, resolved, resolved.recipe.stages[0], host())
    return ours, grpo_by_trl(context, rollouts, work) if rollouts else PAIRWISE[phase](context, work)


@contextlib.contextmanager
def answers_noted() -> Iterator[list[Any]]:
    """The rollouts of the policy that is trained meanwhile."""
    from tutelage.engine.answering import AnsweringLearner

    rollouts: list[Any] = []
    answer = AnsweringLearner.answer

    def noted(*arguments: Any, **named: Any) -> Any:
        rollouts.append(answer(*arguments, **named))
        return rollouts[-1]

    AnsweringLearner.answer = noted  # type: ignore[method-assign]
    try:
        yield rollouts
    finally:
        AnsweringLearner.answer = answer  # type: ignore[method-assign]


def dpo_by_trl(context: Any, work: Path) -> Curve:
    """TRL's DPOTrainer, with a reference model of its own."""
    from trl import DPOConfig, DPOTrainer

    rows = []
    for chosen, rejected in pairs_of(context):
        start, end = np.flatnonzero(chosen.learn)[[0, -1]]
        other = np.flatnonzero(rejected.learn)[-1]
        prompt, better, worse = chosen.ids[:start], chosen.ids[start : end + 1], rejected.ids[start : other + 1]
        rows.append({"prompt_ids": prompt.tolist(), "chosen_ids": better.tolist(), "rejected_ids": worse.tolist()})
    settings = DPOConfig(beta=PHASES["dpo"]["beta"], max_length=None, **settings_of(work))
    return on_planned_steps(
        DPOTrainer, context, rows, model=language_model(context), ref_model=language_model(context), args=settings
    )


def reward_by_trl(context: Any, work: Path) -> Curve:
    """TRL's RewardTrainer, beginning with the same random head."""
    import torch
    from trl import RewardConfig, RewardTrainer

    from tutelage.models.heads import load_scorer

    rows = [
        {"chosen_ids": chosen.ids.tolist(), "rejected_ids": rejected.ids.tolist()}
        for chosen, rejected in pairs_of(context)
    ]
    model = load_scorer(context.model, dtype=torch.float32, seed=SEED)
    centring = PHASES["reward_model"]["centring"]
    settings = RewardConfig(center_rewards_coefficient=centring, max_length=None, **settings_of(work))
    return on_planned_steps(RewardTrainer, context, rows, model=model, args=settings)


PAIRWISE: dict[str, Callable[[Any, Path], Curve]] = {"dpo": dpo_by_trl, "reward_model": reward_by_trl}


def grpo_by_trl(context: Any, rollouts: list[Any], work: Path) -> Curve:
    """TRL's GRPOTrainer on noted answers, in place of its own; rewards, advantages and all else are its own."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config = PHASES["grpo"]
    waiting = iter(rollouts)

    def next_rollout(*_: Any) -> dict[str, Any]:
        rollout = next(waiting)
        told: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": []}
        for tokens, count in zip(rollout.examples, rollout.weights, strict=True):
            told["prompt_ids"].append(tokens.ids[:-count].tolist())
            told["completion_ids"].append(tokens.ids[-count:].tolist())
            told["logprobs"].append([0.0] * int(count))
        return told

    def near_the_target(completions: list[Any], **_: Any) -> list[float]:
        counts = [len(completion[0]["content"].split()) for completion in completions]
        return [-min(1.0, abs(count - WORDS) / WORDS) for count in counts]

    settings = GRPOConfig(
        loss_type="dapo",
        num_generations=SAMPLES,
        per_device_train_batch_size=PROMPTS * SAMPLES,
        num_iterations=UPDATES,
        max_completion_length=NEW_TOKENS,
        beta=config["kl_coefficient"],
        use_bias_correction_kl=False,
        epsilon=config["clip"],
        epsilon_high=config["clip_high"],
        shuffle_dataset=False,
        **settings_of(work),
    )
    rows = [{"prompt": each.prompt} for rollout in rollouts for each in rollout.prompts[::SAMPLES]]
    losses = train(
        GRPOTrainer,
        context,
        model=language_model(context),
        reward_funcs=near_the_target,
        rollout_func=next_rollout,
        train_dataset=Dataset.from_list(rows),
        args=settings,
    )
    return np.array(losses).reshape(-1, UPDATES).mean(1).tolist()


def language_model(context: Any) -> Any:
    """The model that the stage began with."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(context.model.path, dtype=torch.float32)


def pairs_of(context: Any) -> list[list[Any]]:
    """The tokens of every pair's chosen and rejected sequence, as Tutelage prepared them."""
    store = context.data.train
    return [store[index].sequences() for index in range(len(store))]


def settings_of(work: Path) -> dict[str, Any]:
    """What every trainer of TRL is to be told so that it does as Tutelage does."""
    return {
        "output_dir": str(work / "trl"),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "gradient_checkpointing": False,
        "num_train_epochs": 1,
        "bf16": False,
        "use_cpu": True,
        "seed": SEED,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "disable_dropout": True,
    }


def on_planned_steps(kind: Any, context: Any, rows: list[dict[str, Any]], **options: Any) -> Curve:
    """Train with TRL on tokens as they are, in the steps that Tutelage planned."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    from tutelage.data.batches import Plan

    lengths = context.data.train.lengths
    plan = Plan(lengths, tokens_per_step=TOKENS_PER_STEP, epochs=EPOCHS, max_steps=None, seed=SEED)
    steps = [step.examples.tolist() for step in plan.iterate(0)]

    class Planned(kind):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def get_train_dataloader(self) -> Any:
            return DataLoader(self.train_dataset, batch_sampler=steps, collate_fn=self.data_collator)

    return train(Planned, context, train_dataset=Dataset.from_list(rows), **options)


def train(kind: Any, context: Any, **options: Any) -> Curve:
    """Train with one of TRL's trainers; the loss of every optimizer step, as it computes it."""
    losses: Curve = []

    class Noted(kind):  # type: ignore[misc]
        def training_step(self, *arguments: Any, **named: Any) -> Any:
            loss = super().training_step(*arguments, **named)
            losses.append(float(loss))
            return loss

    tokenizer = context.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    Noted(processing_class=tokenizer, **options).train()
    return losses


def show(phase: str, ours: Curve, theirs: Curve) -> float:
    """Print both curves; the largest difference between them, as a share of TRL's mean absolute loss."""
    if len(ours) != len(theirs):
        raise click.ClickException(f"{phase}: {len(ours)} steps here and {len(theirs)} by TRL")
    differences = np.abs(np.subtract(ours, theirs)) / np.abs(theirs).mean()
    click.echo(f"\n{phase}\n{'step':>6}{'Tutelage':>14}{'TRL':>14}{'difference':>14}")
    for number, (own, other, difference) in enumerate(zip(ours, theirs, differences, strict=True), start=1):
        click.echo(f"{number:6}{own:14.6f}{other:14.6f}{difference:14.5%}")
    return float(differences.max())


if __name__ == "__main__":
    main()
