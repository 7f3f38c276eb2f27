"""Trains a stage: model and adapter, plan, Lightning's loop with checkpoints and evaluation, and the saved result."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from tutelage.data.batches import Examples, Plan
from tutelage.engine import checkpoints
from tutelage.engine.attention import choose_packed_attention, shares_exactly
from tutelage.engine.checkpoints import Progress
from tutelage.engine.compiling import Compiling
from tutelage.engine.context import StageContext
from tutelage.engine.devices import micro_batch_tokens, peak_memory_gib
from tutelage.engine.forward import base_of
from tutelage.engine.heartbeat import Heartbeat
from tutelage.engine.interrupts import Interrupts
from tutelage.engine.keeping import save_and_verify
from tutelage.engine.kernels.blocks import fuse_blocks
from tutelage.engine.learner import Learner, Steps, is_out_of_memory
from tutelage.engine.references import referenced
from tutelage.engine.rehearsal import rehearse
from tutelage.engine.sharding import shard
from tutelage.engine.tracking import Trackers
from tutelage.errors import RunFailed, RunStopped, TutelageError
from tutelage.models.loading import load_model, resize_for
from tutelage.phase import Artifact, TrainingPhase

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from tutelage.recipe import Trainer


def train_stage(phase: TrainingPhase, context: StageContext) -> Artifact:
    """Train to the end, from the newest checkpoint if there is one, and save and verify what was learnt.

    Raises:
        RunFailed: when training can't go on.
        RunStopped: when asked to stop, after saving a checkpoint.
    """
    assert context.data is not None
    settings = context.stage.trainer
    L.seed_everything(settings.seed, verbose=False)
    built = build_model(context)
    start = Start.of(context)
    plan = plan_of(settings, context.data.train.lengths, settings.tokens_per_step)
    learner = Learner(
        phase, built.model, context.data.train, plan, settings, start.progress, **options_of(context, built)
    )
    loop = TrainingLoop(context, learner, start, context.data.eval)
    return carry_out(loop, lambda: _keep(loop, built.attention))


@dataclass
class Start:
    """Where a stage begins or goes on: the folder of its checkpoints, the newest of them, and how far it is."""

    folder: Path
    checkpoint: Path | None
    progress: Progress

    @classmethod
    def of(cls, context: StageContext) -> Start:
        """A stage's start, its folder made."""
        folder = context.folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        checkpoint = checkpoints.latest(folder)
        progress = Progress(micro_batch_tokens=micro_batch_tokens(context.stage.trainer, context.devices))
        if checkpoint is not None:
            progress = checkpoints.read_progress(checkpoint)
        if context.micro_batch_limit:
            progress.micro_batch_tokens = min(progress.micro_batch_tokens, context.micro_batch_limit)
        return cls(folder, checkpoint, progress)


def options_of(context: StageContext, built: BuiltModel) -> dict[str, Any]:
    """The keyword arguments of a stage's `Learner`."""
    settings = context.stage.trainer
    return {
        "learning_rate": settings.learning_rate or context.phase.learning_rate(context, built.model),
        "packed": built.packed,
        "shares": built.shares,
        "filler": _filler(context),
        "notice": lambda text: context.emit("notice", text=text),
        "heartbeat": Heartbeat(context.folder / "ranks", _rank()),
        "shard": shard if context.devices.strategy == "fsdp" else None,
    }


def carry_out(loop: TrainingLoop, keep: Callable[[], Artifact]) -> Artifact:
    """Train to the end, and `keep` what was learnt.

    Raises:
        RunFailed: when training can't go on.
        RunStopped: when asked to stop, after saving a checkpoint.
    """
    context, learner = loop.context, loop.learner
    progress, plan = learner.progress, learner.plan
    trainer = L.Trainer(
        accelerator="gpu" if context.devices.accelerator == "cuda" else context.devices.accelerator,
        devices=context.devices.count,
        num_nodes=context.devices.nodes,
        plugins=[_environment(context)],
        strategy=_strategy(context),
        precision=context.devices.lightning_precision,
        max_epochs=1,
        callbacks=[loop],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=context.folder,
    )
    with loop.trackers.told_the_end():
        _fit(trainer, learner, Steps(plan, progress.step), context)
        if loop.interrupts.received is not None:
            raise _stopped(loop.interrupts.received, context)
        if not progress.finished:
            raise RunFailed.at(context.stage.name, f"training ended at step {progress.step} of {len(plan)}")
        return keep()


def _fit(trainer: L.Trainer, learner: Learner, steps: Steps, context: StageContext) -> None:
    try:
        trainer.fit(learner, steps)
    except SystemExit:  # what Lightning makes of a KeyboardInterrupt
        raise KeyboardInterrupt from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailed.at(
            context.stage.name,
            "memory does not suffice for the weights with their gradients and optimizer state",
            "use adapter: lora or qlora, a smaller model, or a larger device",
        ) from error


def plan_of(settings: Trainer, lengths: NDArray[np.int64], per_step: int) -> Plan:
    """The steps of a stage, of examples of these `lengths`, each step with about `per_step` in all."""
    epochs = settings.epochs if settings.epochs is not None or settings.max_steps is not None else 3.0
    return Plan(
        lengths,
        tokens_per_step=per_step,
        epochs=epochs,
        max_steps=settings.max_steps,
        seed=settings.seed,
    )


@dataclass
class BuiltModel:
    """A model with its adapter attached, how examples are laid out for it, and the attention that it came with."""

    model: nn.Module
    packed: bool
    attention: str
    shares: bool = False
    "Whether common beginnings stand in a packed row once."


def build_model(context: StageContext) -> BuiltModel:
    """Load a stage's model, choose how examples are laid out for it, and attach the adapter.

    Raises:
        TutelageError: when packing is demanded and would leak.
    """
    settings = context.stage.trainer
    devices = context.devices
    whole = context.adapter.artifact == "model"  # then weights learn, and are never rounded to what frozen ones are
    dtype = torch.float32 if whole else devices.frozen_dtype
    if devices.accelerator == "cuda":  # where bitsandbytes loads 4-bit weights to
        torch.cuda.set_device(local_rank())
    loading = context.adapter.loading(devices.frozen_dtype)
    base: Any = _load(context, dtype, loading)
    if devices.accelerator == "cuda" and devices.strategy != "fsdp" and not getattr(base, "is_quantized", False):
        base.to(torch.device("cuda"))  # packing is proved by the kernels that will compute it
    resize_for(base, context.tokenizer)
    no_dropout(base)
    attention = base.config._attn_implementation
    packed = False
    if settings.packing is not False and context.adapter.packs:
        packed = choose_packed_attention(base, len(context.tokenizer)) is not None
    shares = packed and settings.share_prefixes and shares_exactly(base, len(context.tokenizer))
    if settings.packing is True and not packed:
        place = f"stages.{context.stage.name}.trainer.packing"
        why = f"examples packed in one row of {type(base).__name__} would see each other"
        if not context.adapter.packs:
            why = f"the adapter {context.adapter.name} puts its own tokens before every example"
        raise TutelageError.at(place, why, "use packing: auto, which falls back to one example a row")
    if settings.activation_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    fuse_blocks(base)
    model = context.adapter.attach(base, context.tokenizer, context.new_tokens)
    if settings.activation_checkpointing and hasattr(base, "enable_input_require_grads"):
        base.enable_input_require_grads()
    model.train()
    if any(isinstance(each, torch.nn.Dropout) and each.p for each in model.modules()):
        shares = False  # each sequence drops out its own
    return BuiltModel(model, packed, attention, shares)


def _load(context: StageContext, dtype: torch.dtype, loading: dict[str, Any]) -> Any:
    if getattr(context.phase, "head", "language") == "score":
        from tutelage.models.heads import load_scorer

        pad: Any = context.tokenizer.pad_token_id
        return load_scorer(context.model, dtype=dtype, seed=context.stage.trainer.seed, pad=pad, **loading)
    return load_model(context.model, dtype=dtype, **loading)


class TrainingLoop(L.Callback):
    """What happens around the steps: rehearsal, checkpoints, evaluation, events, trackers, and stopping when asked."""

    def __init__(self, context: StageContext, learner: Learner, start: Start, held_out: Examples | None) -> None:
        self.context = context
        self.trackers = Trackers(context.trackers if _rank() == 0 else (), learner.notice)
        self.learner = learner
        self.checkpoint = start.checkpoint
        self.folder = start.folder
        self.held_out = held_out
        self.interrupts = Interrupts()
        self.compiling = Compiling(learner, context)
        self.evaluations = _evaluation_steps(learner, context)
        self._writes = False

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Restore or rehearse, announce, and compile where that is wanted."""
        self._writes = trainer.is_global_zero
        progress = self.learner.progress
        self.interrupts.install()
        if self.learner.phase.needs_reference:
            self._know_reference()
        if self.checkpoint is not None:
            checkpoints.restore(self.checkpoint, self.learner.model, trainer.optimizers[0])
        self._announce()
        if self.checkpoint is None and self.context.stage.trainer.rehearsal:
            self._emit("rehearsal", **self._rehearse())
        self.compiling.settle()
        if progress.finished or progress.step >= len(self.learner.plan):
            progress.finished = True
            trainer.should_stop = True

    def _rehearse(self) -> dict[str, Any]:
        keep = self.context.stage.trainer.keep_checkpoints
        return rehearse(self.learner, self.context.adapter, self.held_out, self.folder, keep=keep)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """After a step: tell, evaluate, save, and see whether to stop."""
        progress, settings = self.learner.progress, self.context.stage.trainer
        last = progress.step == len(self.learner.plan)
        progress.metrics["loss"] = self.learner.last["loss"]
        self._tell_step()
        improved = False
        if progress.step in self.evaluations and self.held_out is not None:
            improved = self._evaluate()
            out_of_patience = settings.patience and progress.evaluations_without_gain >= settings.patience
            if out_of_patience and not last:
                said = f"no better {self.learner.judged_by} in {settings.patience} evaluations: stopped early"
                self._emit("notice", text=said)
                last = True
        progress.finished = last
        stopping = self._agreed_to_stop(trainer)
        if improved and settings.patience:
            self._save("best")
        if last or stopping or progress.step % settings.checkpoint_every == 0:
            self._save(f"step-{progress.step:08d}")
        if last or stopping:
            trainer.should_stop = True

    def on_train_end(self, *_: Any) -> None:
        """Signals belong to the caller again."""
        self._release()

    def on_exception(self, *_: Any) -> None:
        """The same, when training failed."""
        self._release()

    def _know_reference(self) -> None:
        """Have every sequence's log-probability under the starting model; before a checkpoint changes the model."""
        learner, folder = self.learner, self.context.folder
        self._emit("notice", text="computing the reference's log-probabilities once, before the first step")
        steps = [step.examples for step in learner.plan.iterate(0)]
        used = np.unique(np.concatenate(steps))
        learner.examples = referenced(learner, learner.examples, used, folder / _reference_file(learner.examples))
        if self.held_out is not None:
            everything = np.arange(len(self.held_out), dtype=np.int64)
            self.held_out = referenced(learner, self.held_out, everything, folder / _reference_file(self.held_out))

    def _release(self) -> None:
        self.interrupts.remove()
        self.compiling.end()
        self.learner.heartbeat.stop()

    def _announce(self) -> None:
        if not self._writes:
            return
        context, plan = self.context, self.learner.plan
        parameters = list(self.learner.model.parameters())
        self._emit(
            "stage_started",
            phase=context.phase.name,
            adapter=context.adapter.name,
            steps=len(plan),
            epochs=round(plan.epochs, 3),
            examples=len(self.learner.examples),
            tokens=plan.tokens,
            trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            parameters=int(base_of(self.learner.model).num_parameters()),
            resumed_from=self.learner.progress.step,
            device=context.devices.accelerator,
            devices=context.devices.world,
            strategy=context.devices.strategy,
            precision=context.devices.precision,
            packed=self.learner.packed,
            shares_prefixes=self.learner.shares,
            micro_batch_tokens=self.learner.progress.micro_batch_tokens,
        )
        self.trackers.start(
            context.folder,
            f"{context.run.path.name}/{context.stage.name}",
            context.run.recipe,
            self.learner.progress.step,
        )

    def _tell_step(self) -> None:
        if not self._writes:
            return
        told = dict(self.learner.last)
        told["memory_gib"] = peak_memory_gib(self.learner.device.type)
        step = self.learner.progress.step
        self._emit("step", step=step, steps=len(self.learner.plan), **told)
        self.trackers.log(step, told)

    def _evaluate(self) -> bool:
        """Returns whether this is the best evaluation so far."""
        assert self.held_out is not None
        progress = self.learner.progress
        with self.compiling.aside():
            metrics = self.learner.evaluate(self.held_out)
        progress.metrics.update(metrics)
        judged = metrics[self.learner.judged_by] * (-1 if self.learner.higher_is_better else 1)
        improved = progress.best_eval is None or judged < progress.best_eval
        progress.best_eval = judged if improved else progress.best_eval
        progress.evaluations_without_gain = 0 if improved else progress.evaluations_without_gain + 1
        if self._writes:
            self._emit("eval", step=progress.step, **metrics)
            self.trackers.log(progress.step, metrics)
        return improved

    def _save(self, name: str) -> None:
        started = time.perf_counter()
        self.learner.heartbeat.rest()
        path = checkpoints.save(
            self.folder,
            name,
            self.learner.model,
            self.learner.trainer.optimizers[0],
            self.learner.progress,
            keep=self.context.stage.trainer.keep_checkpoints,
            is_writer=self._writes,
        )
        if self._writes:
            self._emit(
                "checkpoint", step=self.learner.progress.step, path=str(path), seconds=time.perf_counter() - started
            )

    def _agreed_to_stop(self, trainer: L.Trainer) -> bool:
        received = self.interrupts.received or 0
        if trainer.world_size > 1:
            agreed = torch.tensor(received, device=self.learner.device)
            dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
            received = int(agreed)
            self.interrupts.received = received or None
        return bool(received)

    def _emit(self, event: str, **fields: Any) -> None:
        if self._writes:
            self.context.emit(event, **fields)


def _reference_file(examples: Examples) -> str:
    """Named by the examples, so that those of other data are not taken for theirs."""
    return f"reference-{getattr(examples, 'fingerprint', '')[:16]}.npy"


def _evaluation_steps(learner: Learner, context: StageContext) -> set[int]:
    settings = context.stage.trainer
    if settings.eval_every is None:
        return learner.plan.epoch_ends()
    return {*range(settings.eval_every, len(learner.plan) + 1, settings.eval_every), len(learner.plan)}


def metrics_of_best(loop: TrainingLoop) -> dict[str, float]:
    """What the model that is kept was measured to be; where patience was asked for, that of the best evaluation."""
    best = loop.folder / "best"
    if not (loop.context.stage.trainer.patience and best.is_dir()):
        return loop.learner.progress.metrics
    checkpoints.restore(best, loop.learner.model, None)
    return checkpoints.read_progress(best).metrics


def _concluded(learner: Learner, held_out: Examples | None) -> dict[str, Any]:
    """What the phase concludes, with the model on the device it learnt on, which Lightning has moved it off."""
    kept = next(learner.model.parameters()).device
    learner.to(learner.trainer.strategy.root_device)
    try:
        return learner.phase.conclude(learner, held_out)
    finally:
        learner.to(kept)


def _keep(loop: TrainingLoop, attention: str) -> Artifact:
    """Save what was learnt, and prove it by reading it back."""
    context, learner = loop.context, loop.learner
    metrics = metrics_of_best(loop)
    told = _concluded(learner, loop.held_out)
    if told:
        numbers = {name: float(value) for name, value in told.items() if isinstance(value, int | float)}
        metrics = {**metrics, **numbers}
        if _rank() == 0:
            context.emit("conclusion", **told)
    learner.end_learning()
    base_of(learner.model).set_attn_implementation(attention)
    target = save_and_verify(context, learner.model, metrics)
    kind = "reward_model" if context.phase.makes == "reward_model" else context.adapter.artifact
    return Artifact(kind, target, metrics)


def _strategy(context: StageContext) -> Strategy | str:
    devices = context.devices
    backend = "nccl" if devices.accelerator == "cuda" else "gloo"
    if devices.strategy == "ddp":
        return DDPStrategy(process_group_backend=backend)
    if devices.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=devices.world, tensor_parallel_size=1, process_group_backend=backend
        )
    return "auto"


def _environment(context: StageContext) -> ClusterEnvironment:
    """Said outright: left to itself, Lightning would take a cluster's variables for its own business."""
    return TorchElasticEnvironment() if context.devices.world > 1 else LightningEnvironment()


def _stopped(number: int, context: StageContext) -> RunStopped:
    name = signal.Signals(number).name
    error = RunStopped.at(
        str(context.run.path),
        f"stopped by {name}, after saving a checkpoint",
        f"go on with: tutelage resume {shlex.quote(str(context.run.path))}",
    )
    error.exit_code = 128 + number
    return error


def local_rank() -> int:
    """Which of its machine's processes this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _filler(context: StageContext) -> int:
    pad = context.tokenizer.pad_token_id
    return int(pad if pad is not None else context.tokenizer.eos_token_id or 0)


def no_dropout(model: nn.Module) -> None:
    """Switch off a model's own dropout, meant for pretraining: losses are exact and repeatable."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "activation_dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
