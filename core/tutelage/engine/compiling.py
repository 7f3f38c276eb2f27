"""Compiles a model's decoder layers before the first step, where the recipe says so or where that pays.

Both ways are tried on a micro-batch of the next step, which learns nothing: how long it takes when nothing is compiled,
how long compiling takes, and how long it takes then. What was found is remembered (`engine/compile_costs.py`), and
tells the next run on this machine whether compiling pays.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

import tutelage
from tutelage.engine.compile_costs import INDUCTOR, Costs, Estimate, Expected, Measured, Subject, inductor_folder
from tutelage.engine.devices import give_memory_back
from tutelage.engine.forward import base_of
from tutelage.engine.heartbeat import COMPILING
from tutelage.engine.kernels import as_the_libraries_compute
from tutelage.engine.learner import is_out_of_memory
from tutelage.engine.sharding import decoder_layers
from tutelage.errors import RunFailed
from tutelage.phase import TrainingPhase
from tutelage.runs.words import duration

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from tutelage.data.batches import Plan
    from tutelage.engine.context import StageContext
    from tutelage.engine.kernels import Fused
    from tutelage.engine.learner import Learner
    from tutelage.recipe import Trainer

LARGEST_SHARE = 0.02
"Of the tokens that are still to do, for the passes that show how fast they go when nothing is compiled."
PASSES = 2
"Of which the fastest counts: the first finds cold caches."
FEWEST_BLOCKS = 8
"A model of fewer has all of them compiled."


@dataclass(frozen=True)
class Took:
    """Seconds that passes took: by the clock, and of the device's own work, which other programs don't disturb."""

    wall: float
    own: float


class Compiling:
    """Whether a stage's model is compiled, and the undoing of it.

    A phase that learns from its own answers compiles nothing: several models take turns on one base.
    """

    def __init__(self, learner: Learner, context: StageContext) -> None:
        settings = context.stage.trainer
        self._wanted: Literal["auto"] | bool = settings.compile if isinstance(context.phase, TrainingPhase) else False
        self._learner = learner
        self._context = context
        self._place = f"stages.{context.stage.name}.trainer.compile"
        if self._wanted:  # before a strategy shards the model, and renames its classes
            self._blocks = alike(learner.model, settings) or [learner.model]
            self._subject = _subject(self._blocks, learner, context)
        self._fused: dict[nn.Module, Fused] = {}
        self._suppressed: bool | None = None
        self._named: str | None = None
        self.on = False
        "Whether the model is compiled."

    def settle(self) -> None:
        """Compile, where the recipe says so, or where it pays; say what was decided, and why.

        Raises:
            RunFailed: when it can't be compiled and the recipe says that it must.
        """
        learner = self._learner
        if not self._wanted or learner.progress.finished or learner.progress.step >= len(learner.plan):
            return
        learner.heartbeat.rest()
        first = learner.plan[learner.progress.step + 1].examples
        rows = learner.cut(first)[0]
        left = tokens_left(learner.plan, learner.progress.step) / learner.trainer.world_size
        if self._wanted == "auto":
            expected = Costs().expected(self._subject, learner.device.type)
            if self._agreed(expected.ratio >= 1):
                self._tell(f"not compiled: a micro-batch takes {expected.ratio:.2f} of its time then", compiled=False)
                return
            plain = self._try(rows, left)
            if plain is None or not self._pays(plain.wall / self._tokens(rows), left, expected):
                return
            self._compile(rows, plain)
        else:
            self._compile(rows, self._try(rows, left))

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """The model as it is when nothing is compiled, for passes too few to compile them in their own ways."""
        if not self.on:
            yield
            return
        with torch.compiler.set_stance("force_eager"):
            yield

    def end(self) -> None:
        """Nothing is compiled from now on."""
        if not self.on:
            return
        for block in self._blocks:
            block._compiled_call_impl = None
        for module, forward in self._fused.items():
            module.forward = forward
        if self._suppressed is not None:
            torch._dynamo.config.suppress_errors = self._suppressed
        os.environ.pop(INDUCTOR, None)
        if self._named is not None:
            os.environ[INDUCTOR] = self._named
        self._fused, self._suppressed, self.on = {}, None, False

    def _begin(self) -> None:
        self.on = True
        self._named = os.environ.get(INDUCTOR)
        os.environ[INDUCTOR] = str(inductor_folder())
        for block in self._blocks:  # all share what is compiled for one
            # The compiler does as much; and of forwards that are objects it would compile each layer's anew.
            self._fused |= as_the_libraries_compute(block)
            block.compile(dynamic=True)

    def _pays(self, per_token: float, left: float, expected: Expected) -> bool:
        estimate = Estimate.of(left, per_token, expected)
        pays = self._agreed(estimate.pays)
        said = f"{'compiling' if pays else 'not compiled'}: {estimate.told()}{_BASES[expected.basis]}"
        self._tell(said, **_numbers(estimate, expected, pays))
        return pays

    def _try(self, rows: NDArray[Any], left: float) -> Took | None:
        """What `rows` take now; None where too little is left to find out, or memory does not suffice."""
        few = self._wanted == "auto" and PASSES * self._tokens(rows) > LARGEST_SHARE * left
        if self._agreed(few):
            self._tell(f"not compiled: {left:,.0f} tokens are too few to gain by it", compiled=False)
            return None
        took = None
        try:
            took = self._fastest(rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self._context.devices.strategy == "fsdp":
                raise
            self._learner.model.zero_grad(set_to_none=True)
        if not self._agreed_on_any(took is None):
            return took
        if self._wanted == "auto":
            self._tell("not compiled: memory did not suffice to find out whether it pays", compiled=False)
        return None

    def _compile(self, rows: NDArray[Any], plain: Took | None) -> None:
        """Compile by passing `rows` through the model, and see what it cost and gained."""
        self._learner.heartbeat.took(COMPILING)
        failure: Exception | None = None
        first = after = Took(0.0, 0.0)
        missed = 0
        try:
            self._begin()
            missed = _misses()
            first, after = self._pass(rows), self._fastest(rows)
        except Exception as error:  # whatever it is, it did not happen before it was compiled
            if self._learner.trainer.world_size > 1 and self._context.devices.strategy == "fsdp":
                self.end()
                raise  # the others wait within the pass: all end
            failure = error.with_traceback(None)
        if self._agreed_on_any(failure is not None):
            self._failed(failure)
            return
        seconds = max(0.0, first.wall - after.wall)
        ratio = after.own / plain.own if plain is not None else None
        cold = _misses() > missed
        if self._learner.global_rank == 0:
            measured = Measured(cold=seconds if cold else None, warm=None if cold else seconds, ratio=ratio)
            Costs().remember(self._subject, measured)
        self._conclude(seconds, ratio)

    def _conclude(self, seconds: float, ratio: float | None) -> None:
        said = f"compiled in {duration(seconds)}"
        numbers = {"compile_seconds": round(seconds, 3), "ratio": ratio}
        slower = self._agreed(ratio is not None and ratio >= 1)
        if ratio is not None:
            said += f": a micro-batch takes {ratio:.2f} of the time that it took before"
        if self._wanted == "auto" and slower:
            self.end()
            said += ", so nothing is compiled after all"
        elif self._wanted == "auto":
            self._suppressed = torch._dynamo.config.suppress_errors
            torch._dynamo.config.suppress_errors = True  # another layout of a batch may fail, and goes the plain way
        self._tell(said, compiled=self.on, **numbers)

    def _failed(self, error: Exception | None) -> None:
        self.end()
        self._learner.model.zero_grad(set_to_none=True)
        give_memory_back()
        why = _first_line(error)
        other = self._agreed_on_any(error is not None and not is_out_of_memory(error))
        if self._wanted is True and other:
            fix = "use compile: auto, which goes on without, or false; torch.compile needs a C++ compiler on a CPU"
            raise RunFailed.at(self._place, f"the model can't be compiled: {why}", fix) from error
        self._tell(f"not compiled: it can't be: {why}", compiled=False)

    def _tokens(self, rows: NDArray[Any]) -> int:
        return max(1, int(self._learner.lengths[rows].sum()))

    def _fastest(self, rows: NDArray[Any]) -> Took:
        passes = [self._pass(rows) for _ in range(PASSES)]
        return Took(min(each.wall for each in passes), min(each.own for each in passes))

    def _pass(self, rows: NDArray[Any]) -> Took:
        """What a forward and a backward pass take; nothing is learnt."""
        learner = self._learner
        _wait_for(learner.device)
        wall, own = time.perf_counter(), time.process_time()
        # Copies need not exchange gradients; shards must, as what they hold back would be in the first step's.
        copies = isinstance(learner.trainer.strategy.model, torch.nn.parallel.DistributedDataParallel)
        with learner.synchronised_on_last(not copies):
            summed, _ = learner.loss(learner.collate(rows))
            learner.manual_backward(summed / self._tokens(rows))
        _wait_for(learner.device)
        wall, own = time.perf_counter() - wall, time.process_time() - own
        learner.model.zero_grad(set_to_none=True)
        return Took(wall, own if learner.device.type == "cpu" else wall)

    def _agreed(self, decided: bool) -> bool:
        """What the first process decided."""
        if self._learner.trainer.world_size == 1:
            return decided
        told = torch.tensor(int(decided), device=self._learner.device)
        dist.broadcast(told, 0)
        return bool(told)

    def _agreed_on_any(self, happened: bool) -> bool:
        """Whether it happened to any process."""
        if self._learner.trainer.world_size == 1:
            return happened
        told = torch.tensor(int(happened), device=self._learner.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told)

    def _tell(self, text: str, **numbers: Any) -> None:
        if self._learner.trainer.is_global_zero:
            self._context.emit("notice", text=text, **numbers)


_BASES = {
    "measured": "",
    "similar": " (by what other models took here)",
    "assumed": " (assumed, as nothing was compiled here yet)",
}


def _numbers(estimate: Estimate, expected: Expected, pays: bool) -> dict[str, Any]:
    return {
        "compiled": pays,
        "planned_seconds": round(estimate.planned, 3),
        "saved_seconds": round(estimate.saves, 3),
        "compile_seconds": round(estimate.costs, 3),
        "basis": expected.basis,
    }


def tokens_left(plan: Plan, done: int) -> int:
    """Tokens of the steps that follow step `done`."""
    if not done:
        return plan.tokens
    return sum(int(plan.lengths[step.examples].sum()) for step in plan.iterate(done))


def alike(model: nn.Module, settings: Trainer) -> list[nn.Module]:
    """The repeated blocks that share what is compiled for one.

    A first block whose input nothing learns from would need its own, and is left out: half of the work saved for a
    small share of the gain.
    """
    blocks = decoder_layers(model)
    base: Any = base_of(model)
    learnt = any(each.requires_grad for each in base.get_input_embeddings().parameters())
    given_gradients = learnt or settings.activation_checkpointing
    return blocks if given_gradients or len(blocks) < FEWEST_BLOCKS else blocks[1:]


def _subject(blocks: list[nn.Module], learner: Learner, context: StageContext) -> Subject:
    devices, settings = context.devices, context.stage.trainer
    parts: list[Any] = [tutelage.__version__, len(blocks), devices.strategy, devices.precision]
    parts += [learner.packed, learner.shares]
    parts += [settings.activation_checkpointing, base_of(learner.model).config._attn_implementation]
    parts += [context.phase.name, context.adapter.name, getattr(context.adapter.config, "dropout", 0.0)]
    for each, parameter in blocks[0].named_parameters():
        parts.append((each, tuple(parameter.shape), str(parameter.dtype), parameter.requires_grad))
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    device = device_name(torch.device(devices.accelerator))
    return Subject(device, str(torch.__version__), type(blocks[0]).__name__, digest)


def device_name(device: torch.device) -> str:
    """What tells one device from another that may compile slower or gain less."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{_processor()}, threads: {torch.get_num_threads()}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _misses() -> int:
    """How often inductor's cache did not have what was asked for, in this process."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["fxgraph_cache_miss"] + counters["inductor"]["fxgraph_cache_bypass"])


def _first_line(error: Exception | None) -> str:
    if error is None:
        return "it failed in another process"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[0][:200]}"
