"""What two processes hold when FSDP2 shards a model: half each, measured.

    python -m bench.scaling.sharding [--json]

A small model with random weights learns for two steps, all its weights, by `trainer.strategy: fsdp` on two CPU
processes, and again on one. A phase of this bench's own, found by the workers as any plugin is, weighs what each
process holds when it has learnt: its part of the parameters, and of the optimizer's state.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from tutelage.engine.learner import Learner

STEPS = 2
FOLDER = "SCALING_WEIGHED"
"The variable that names the folder into which workers write what they weighed."


class Weighed(msgspec.Struct, frozen=True):
    """Bytes that one process holds."""

    parameters: int
    optimizer: int


class Sharded(msgspec.Struct, frozen=True):
    """What one process holds that is alone, and what each of two does."""

    alone: Weighed
    each: list[Weighed]

    def share(self, process: int) -> float:
        """A process's part of all that one alone holds."""
        held = self.each[process]
        return (held.parameters + held.optimizer) / (self.alone.parameters + self.alone.optimizer)


def measure(folder: Path) -> Sharded:
    """Train on one and on two processes, and weigh.

    Raises:
        TutelageError: when a run fails.
    """
    model = small_model(folder / "model")
    data = folder / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"text": f"word{row % 500} word{row % 7} word3 " * 8}) + "\n" for row in range(64))
    )
    found = []
    for devices in (1, 2):
        weighed = folder / f"weighed-{devices}"
        weighed.mkdir()
        with _found_by_workers(folder / "site", weighed):
            _train(model, data, devices, folder / f"run-{devices}")
        files = sorted(weighed.glob("*.json"))
        found.append([msgspec.json.decode(file.read_bytes(), type=Weighed) for file in files])
    (alone,), each = found
    return Sharded(alone, each)


def weigh(learner: Learner) -> Weighed:
    """Bytes of the tensors that this process holds: of sharded ones, its own part alone."""
    import torch

    def held(tensor: Any) -> int:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        return int(local.numel() * local.element_size())

    optimizer: Any = learner.optimizers(use_pl_optimizer=False)
    state = sum(
        held(value)
        for values in optimizer.state.values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    )
    return Weighed(sum(held(parameter) for parameter in learner.model.parameters()), state)


def write_weighed(learner: Learner) -> None:
    """Weigh, and write it where the process that measures looks; called in each worker."""
    file = Path(os.environ[FOLDER]) / f"{os.environ.get('RANK', '0')}.json"
    file.write_bytes(msgspec.json.encode(weigh(learner)))


def small_model(folder: Path) -> Path:
    """A Llama of about a million random weights with the streaming bench's tokenizer, as a folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from bench.scaling.streaming import word_tokenizer

    tokenizer = word_tokenizer()
    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    LlamaForCausalLM(LlamaConfig(**{**shape, **heads, **ids})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _train(model: Path, data: Path, devices: int, out: Path) -> None:
    import tutelage

    trainer = {
        "devices": devices,
        "accelerator": "cpu",
        "strategy": "fsdp" if devices > 1 else "auto",
        "precision": "fp32",
        "max_steps": STEPS,
        "max_length": 64,
        "tokens_per_step": 512,
        "rehearsal": False,
    }
    stage = {"name": "weigh", "phase": "weighing", "adapter": "full", "data": {"train": str(data)}, "trainer": trainer}
    tutelage.train({"name": "sharding", "model": str(model), "stages": [stage]}, out=out)


PLUGIN = """
import tutelage
from tutelage_plugins.phases.pretrain import Pretrain
from bench.scaling.sharding import write_weighed

class Weighing(Pretrain):
    name = "weighing"
    def conclude(self, learner, held_out):
        write_weighed(learner)
        return super().conclude(learner, held_out)

@tutelage.hookimpl
def register_phases(register):
    register(Weighing)
"""


@contextmanager
def _found_by_workers(site: Path, weighed: Path) -> Iterator[None]:
    """Install the phase as another package would, for this process and those it starts."""
    from tutelage.plugins import host

    notes = site / "weighing_phase-1.dist-info"
    notes.mkdir(parents=True, exist_ok=True)
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: weighing-phase\nVersion: 1\n")
    (notes / "entry_points.txt").write_text("[tutelage]\nweighing = weighing_phase\n")
    (site / "weighing_phase.py").write_text(PLUGIN)
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", FOLDER)}
    paths = [str(site), str(Path(__file__).parents[2]), *filter(None, [before["PYTHONPATH"]])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), FOLDER: str(weighed)}
    sys.path.insert(0, str(site))
    host.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(site))
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        host.cache_clear()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(as_json: bool) -> None:
    """Train on two processes that share the state, and tell what each holds."""
    with tempfile.TemporaryDirectory() as work:
        found = measure(Path(work))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for line in lines_of(found):
        click.echo(line)


def lines_of(found: Sharded) -> Iterator[str]:
    """What was measured, in lines."""
    yield f"alone: {found.alone.parameters:,} bytes of parameters, {found.alone.optimizer:,} of optimizer state"
    for process, held in enumerate(found.each):
        share = f"{found.share(process):.1%} of the whole"
        yield f"process {process} of 2: {held.parameters:,} and {held.optimizer:,}: {share}"


if __name__ == "__main__":
    main()
