"""A training step of the true model, simulated: no GPU, no weights, no arithmetic.

torch's FakeTensorMode runs transformers' and PEFT's own code on tensors that have shapes and no storage, and its
MemTracker adds up what would be allocated. It is run in a child process (`python -m
tutelage_advisor.estimates.simulating`), so that the advisor imports no torch.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.errors import TutelageError
from tutelage_advisor.catalog import Catalog
from tutelage_advisor.estimates.models import configuration
from tutelage_advisor.estimates.request import EstimateRequest

if TYPE_CHECKING:
    import torch
    from torch import nn

LONGEST_SIMULATION = 900
GIB = 2**30


class Simulation(msgspec.Struct, kw_only=True):
    """GiB that the allocator would hold at the peak of the second step, without CUDA's context and fragmentation."""

    peak_gib: float
    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float


class _Task(msgspec.Struct):
    config: dict[str, Any]
    request: EstimateRequest


def simulate(request: EstimateRequest, catalog: Catalog, precision: str) -> Simulation:
    """Simulate two training steps on one device and report the second's peak.

    Args:
        precision: decided, not `auto`.
    Raises:
        TutelageError: for QLoRA and sharding, which can't be simulated; when torch is missing or the model unknown.
    """
    if request.adapter == "qlora":
        raise TutelageError.at(
            "--simulate", "4-bit kernels can't be simulated", "simulate lora, or leave --simulate out"
        )
    if request.strategy not in ("auto", "ddp") or request.offload:
        wrong = "one device is simulated, and shards need several"
        raise TutelageError.at("--simulate", wrong, "leave --simulate out, or simulate without a strategy")
    config = dict(configuration(request.model, catalog, "model"))
    task = _Task(config, msgspec.structs.replace(request, precision=precision))
    try:
        child = subprocess.run(
            [sys.executable, "-m", "tutelage_advisor.estimates.simulating"],
            input=msgspec.json.encode(task),
            capture_output=True,
            timeout=LONGEST_SIMULATION,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TutelageError.at("--simulate", f"took over {LONGEST_SIMULATION} s", "leave it out") from None
    if child.returncode == 0:
        return msgspec.json.decode(child.stdout, type=Simulation)
    lines = child.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
    fix = "install 'tutelage[train]'" if "No module named" in lines[-1] else "leave --simulate out"
    raise TutelageError.at("--simulate", lines[-1][:300], fix)


def run(task: _Task) -> Simulation:
    """Simulate here. Imports torch, transformers and PEFT."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    request = task.request
    with torch.device("meta"):
        model = _model(task.config, request)
    if request.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if request.adapter != "full":
            model.enable_input_require_grads()
    with FakeTensorMode():
        _materialise(model)
        model.train()
        learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = _optimizer(request, learnt)
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        _skip_frozen(tracker, model)
        ids = torch.randint(0, int(model.config.get_text_config().vocab_size), (request.micro_batch, request.seq_len))
        with tracker:
            for step in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=request.precision == "bf16"):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if step == 0:
                    tracker.reset_mod_stats()
        peaks: dict[Any, dict[Any, int]] = tracker.get_tracker_snapshot("peak")
    return _summed(peaks)


def _model(config: dict[str, Any], request: EstimateRequest) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {
        key: value for key, value in config.items() if key not in ("model_type", "auto_map", "dtype", "torch_dtype")
    }
    settings = AutoConfig.for_model(str(config["model_type"]), **values)
    for name, value in settings.to_dict().items():  # the engine trains without the base model's own dropout
        if "drop" in name and isinstance(value, float):
            setattr(settings, name, 0.0)
    wide = request.precision == "fp32" or (request.precision == "bf16" and request.adapter == "full")
    half = torch.float16 if request.precision == "fp16-true" else torch.bfloat16
    attention = "eager" if request.attention == "eager" else "sdpa"
    model = AutoModelForCausalLM.from_config(
        settings, attn_implementation=attention, dtype=torch.float32 if wide else half
    )
    if request.adapter == "full":
        return model
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    if request.adapter == "prompt":
        prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=request.virtual_tokens)
        return get_peft_model(model, prompt)
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=request.rank, target_modules=request.targets, lora_dropout=request.dropout
    )
    return get_peft_model(model, adapter, autocast_adapter_dtype=request.precision == "bf16")


def _optimizer(request: EstimateRequest, learnt: list[Any]) -> torch.optim.Optimizer:
    import torch

    if request.optimizer in ("sgd", "sgd-momentum"):
        return torch.optim.SGD(learnt, lr=1e-3, momentum=0.9 if request.optimizer == "sgd-momentum" else 0.0)
    return torch.optim.AdamW(learnt, foreach=request.optimizer == "adamw-foreach")


def _materialise(model: nn.Module) -> None:
    """Replace tensors on the meta device by fake ones on the CPU; tied ones stay tied."""
    import torch
    from torch import nn

    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fake = made.get(id(parameter))
                if fake is None:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    fake = made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = fake
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    for name, tokens in getattr(model, "prompt_tokens", {}).items():
        model.prompt_tokens[name] = torch.empty(tokens.shape, dtype=tokens.dtype)  # type: ignore[operator]


class _NoHandle:
    def remove(self) -> None:
        """There is no hook to remove."""


def _skip_frozen(tracker: Any, model: nn.Module) -> None:
    """MemTracker hooks every parameter, which frozen ones refuse; it skips those that it thinks it has hooked."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            tracker._param_to_grad_hook_handles[parameter] = (_NoHandle(), _NoHandle())


def _summed(peaks: dict[Any, dict[Any, int]]) -> Simulation:
    snapshot = next(iter(peaks.values()))
    held = {getattr(kind, "name", str(kind)): value / GIB for kind, value in snapshot.items()}
    return Simulation(
        peak_gib=held["Total"],
        weights_gib=held.get("PARAM", 0.0) + held.get("BUFFER", 0.0),
        gradients_gib=held.get("GRAD", 0.0),
        optimizer_gib=held.get("OPT", 0.0),
        activations_gib=held.get("ACT", 0.0) + held.get("TEMP", 0.0),
    )


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore")
    sys.stdout.buffer.write(msgspec.json.encode(run(msgspec.json.decode(sys.stdin.buffer.read(), type=_Task))))
