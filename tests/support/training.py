"""Small training runs for tests: data, recipes, and what their events say."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "saw", "two", "birds", "in", "three", "trees"]


def write_chats(path: Path, rows: int = 60, seed: int = 0) -> Path:
    """Chats of ragged lengths whose answers follow from their questions."""
    generator = random.Random(seed)
    with path.open("w") as file:
        for _ in range(rows):
            question = generator.choices(WORDS, k=generator.randint(2, 18))
            answer = question[: generator.randint(1, 12)][::-1]
            messages = [
                {"role": "user", "content": " ".join(question)},
                {"role": "assistant", "content": " ".join(answer)},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def recipe(model: Path | str, data: Path | str, *, adapter: Any = "lora", **trainer: Any) -> dict[str, Any]:
    """A one-stage recipe on tiny data, exact in float32."""
    settings = {
        "epochs": 2,
        "learning_rate": 1e-2,
        "max_length": 200,
        "tokens_per_step": 512,
        "precision": "fp32",
        "checkpoint_every": 3,
        "devices": 1,
    }
    settings.update(trainer)
    if "max_steps" in trainer:
        settings.pop("epochs")
    source = data if isinstance(data, dict) else {"train": str(data)}
    stage = {"name": "tune", "phase": "sft", "adapter": adapter, "data": source, "trainer": settings}
    return {"name": "tiny", "model": str(model), "stages": [stage]}


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind, oldest first."""
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def losses(run: Path) -> list[float]:
    """The loss of every step; of a step told twice, after a resume, the last."""
    told = {event["step"]: event["loss"] for event in events(run, "step")}
    return [told[step] for step in sorted(told)]


def learnt(run: Path) -> dict[str, Any]:
    """What the last stage's artifact holds, by name."""
    folder = run / json.loads((run / "run.json").read_text())["stages"][-1]["artifact"]
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two sets of tensors are equal to the bit."""
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def in_child(work: Any, *arguments: Any, method: str = "forkserver") -> Any:
    """A started process, forked from a server that has the libraries imported, so that it begins at once.

    The server keeps the environment that it began with; a child that needs today's is started by `method` spawn.
    """
    import multiprocessing

    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["tutelage.engine.running", "transformers", "peft", "tiny_models"])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def train_or_resume(made: dict[str, Any], run: str, crash: str = "") -> None:
    """What a child process does: begin the run, or go on with it where it exists."""
    import sys

    import tutelage

    if crash:
        _crash_at(crash)
    try:
        if (Path(run) / "run.json").is_file():
            tutelage.resume(run)
        else:
            tutelage.train(made, out=Path(run))
    except tutelage.TutelageError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _crash_at(point: str) -> None:
    """Kill this process in the middle of its second checkpoint."""
    import os
    import signal

    from tutelage.engine import checkpoints

    calls = {"count": 0}

    def die_second_time(original: Any, before: bool) -> Any:
        def replaced(*arguments: Any, **options: Any) -> Any:
            calls["count"] += 1
            if calls["count"] == 2 and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **options)
            if calls["count"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return replaced

    name = {"half-written": "save_file", "before-rename": "_replace", "after-rename": "_replace", "pruned": "_prune"}[
        point
    ]
    before = point in ("before-rename",)
    setattr(checkpoints, name, die_second_time(getattr(checkpoints, name), before))
