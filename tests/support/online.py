"""Small stages that learn from their own answers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from training import WORDS, train_or_resume

LETTERS = {"kind": "regex", "pattern": "[a-z]{3}"}
"A reward that other processes know too: whether an answer has three small letters in a row."


def write_prompts(path: Path, rows: int = 12) -> Path:
    """Prompts of ragged lengths."""
    asked = [" ".join(WORDS[: 1 + row % 4]) + f" {row}" for row in range(rows)]
    path.write_text(
        "".join(json.dumps({"prompt": prompt, "answer": "", "row": row}) + "\n" for row, prompt in enumerate(asked))
    )
    return path


def online(
    model: Path | str,
    data: Path | str | dict[str, Any],
    phase: dict[str, Any],
    *,
    adapter: Any = "lora",
    **trainer: Any,
) -> dict[str, Any]:
    """A one-stage recipe of a phase that answers prompts itself, exact in float32."""
    settings = {
        "max_steps": 3,
        "learning_rate": 1e-2,
        "schedule": "constant",
        "max_length": 64,
        "precision": "fp32",
        "checkpoint_every": 1,
        "devices": 1,
        "rehearsal": False,
        **trainer,
    }
    config = {"rewards": [LETTERS], "prompts_per_step": 6, "max_new_tokens": 8, **phase}
    source = data if isinstance(data, dict) else {"train": str(data)}
    stage = {"name": "tune", "phase": config, "adapter": adapter, "data": source, "trainer": settings}
    return {"name": "tiny", "model": str(model), "stages": [stage]}


def train_and_die(made: dict[str, Any], run: str, tokens: int) -> None:
    """What a child process does: begin the run, or go on with it, and be killed while so many tokens are drawn."""
    import os
    import signal

    from tutelage.models import sampling

    calls = {"count": 0}
    original = sampling._choose

    def choose(*arguments: Any, **options: Any) -> Any:
        calls["count"] += 1
        if calls["count"] == tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    sampling._choose = choose
    train_or_resume(made, run)


class Recorder:
    """Keeps what each optimizer step of a stage was computed from, and its gradients."""

    def __init__(self, monkeypatch: Any) -> None:
        from tutelage.engine.iterations import OnlineLearner

        self.updates: list[dict[str, Any]] = []
        original = OnlineLearner.accumulate

        def accumulate(learner: Any, answers: Any, weight: float, number: int) -> Any:
            before = copy.deepcopy(learner.model)
            told = original(learner, answers, weight, number)
            gradients = {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}
            self.updates.append(
                {
                    "model": before,
                    "rollout": learner._rollout,
                    "answers": answers,
                    "told": told,
                    "gradients": gradients,
                    "step": number,
                }
            )
            return told

        monkeypatch.setattr(OnlineLearner, "accumulate", accumulate)


def plain_log_probs(model: Any, rollout: Any, answer: int) -> torch.Tensor:
    """Log-probabilities of an answer's new tokens, one sequence at a time, by transformers' plain forward pass."""
    tokens = rollout.examples[answer]
    ids = torch.from_numpy(tokens.ids.astype("int64"))[None]
    new = int(rollout.counts[answer])
    logits = plain(model)(input_ids=ids).logits[0].float()
    return logits[-new - 1 : -1].log_softmax(-1).gather(1, ids[0, -new:, None])[:, 0]


def plain(model: Any) -> Any:
    """The same model with transformers' own attention, in place."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation("sdpa")
    return model.eval()
