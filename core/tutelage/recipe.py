"""A recipe: what a model is to learn. Settings, their defaults and bounds, and how a file becomes one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tutelage.adapter import Adapter
from tutelage.config import Config, convert_into, join, override, read_file
from tutelage.errors import Problem, TutelageError
from tutelage.governance import Governance
from tutelage.marks import DATA, FILE, MODEL, asks_for
from tutelage.phase import Phase
from tutelage.plugins import Host
from tutelage.tracker import Tracker

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]


class Source(Config):
    """One part of a data mix."""

    source: Annotated[str, DATA, Meta(description="A file, a folder or a hub data set, as in `train`.")]
    weight: Annotated[float, Meta(gt=0, le=1000, description="How many times its rows are used in an epoch.")] = 1.0
    format: Annotated[str, asks_for("format"), Meta(description="Its format, where it differs from `data.format`.")] = (
        ""
    )


class Data(Config):
    """What a stage learns from."""

    train: Annotated[
        str,
        DATA,
        Meta(
            description="A JSON, JSONL (also .gz), CSV, Parquet or text file, a folder of them, or "
            "`hub:OWNER/NAME[:SPLIT]`. Paths are relative to the recipe. `stage:NAME` is what an earlier stage made."
        ),
    ] = ""
    eval: Annotated[str, DATA, Meta(description="Held-out data of the same format, for evaluation while training.")] = (
        ""
    )
    eval_split: Annotated[
        float,
        Meta(
            ge=0,
            le=0.5,
            description="Share of the training rows to hold out when `eval` is not given; chosen by the seed.",
        ),
    ] = 0.0
    format: Annotated[
        str, asks_for("format"), Meta(description="The data format; found out by looking when empty.")
    ] = ""
    mix: Annotated[list[Source], Meta(description="Several sources with weights, instead of `train`.")] = []
    learn_from: Annotated[
        Literal["assistant", "last", "all"],
        Meta(description="Which tokens are learnt: every assistant turn, the last assistant turn, or everything."),
    ] = "assistant"
    too_long: Annotated[
        Literal["drop", "cut", "split"],
        Meta(
            description="An example longer than `trainer.max_length` is dropped, cut at the end, or split into several."
        ),
    ] = "drop"
    documents: Annotated[
        Literal["line", "paragraph", "file"],
        Meta(
            description="What is a document in text files (.txt): each line, what stands between blank lines, or the "
            "whole file."
        ),
    ] = "paragraph"
    allow_loss: Annotated[
        float, Meta(ge=0, le=1, description="Share of rows that may be lost (dropped or cut) before it is an error.")
    ] = 0.01

    def __post_init__(self) -> None:
        if bool(self.train) == bool(self.mix):
            raise ValueError("give either train or mix" if self.train else "names no data; give train (or mix)")
        if self.eval and self.eval_split:
            raise ValueError("give either eval or eval_split, not both")


class Trainer(Config):
    """How a stage trains. What is `auto` or null is chosen by the device, the adapter and the data."""

    epochs: Annotated[float | None, Meta(description="Passes over the data; 3 unless max_steps is given.")] = None
    max_steps: Annotated[
        Annotated[int, Meta(ge=1, le=10_000_000)] | None, Meta(description="Optimizer steps, instead of epochs.")
    ] = None
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0, le=10)] | None,
        Meta(
            description="Peak learning rate; null takes the adapter's (LoRA 2e-4, full 2e-5, prompt 3e-2), or, for a "
            "new model, one by its size."
        ),
    ] = None
    optimizer: Annotated[
        Literal["adamw", "muon"],
        Meta(description="muon: orthogonal updates of matrices (Jordan, 2024), AdamW for embeddings and all else."),
    ] = "adamw"
    schedule: Annotated[
        Literal["cosine", "linear", "wsd", "constant"],
        Meta(
            description="How the learning rate falls after warm-up; wsd keeps it (warm-up, stable, decay) until the "
            "last steps (Hu et al., 2024)."
        ),
    ] = "cosine"
    decay: Annotated[Share, Meta(description="Share of the steps, the last ones, in which wsd falls.")] = 0.2
    warmup: Annotated[Share, Meta(description="Share of the steps in which the learning rate rises from 0.")] = 0.03
    final_learning_rate: Annotated[Share, Meta(description="Where the schedule ends, as a share of the peak.")] = 0.0
    weight_decay: Annotated[
        float,
        Meta(ge=0, le=10, description="Decoupled decay of matrices; norms, biases and embeddings are left alone."),
    ] = 0.01
    betas: Annotated[tuple[Decay, Decay], Meta(description="AdamW's moments.")] = (0.9, 0.999)
    clip: Annotated[float, Meta(ge=0, description="Largest norm of a step's gradient; 0 clips nothing.")] = 1.0
    max_length: Annotated[int, Meta(ge=8, le=10_000_000, description="Longest example, in tokens.")] = 1024
    tokens_per_step: Annotated[
        int, Meta(ge=8, description="Tokens in one optimizer step, over all devices and micro-batches.")
    ] = 4096
    tokens_per_micro_batch: Annotated[
        Annotated[int, Meta(ge=8)] | Literal["auto"],
        Meta(description="Tokens that one device computes at a time; changes memory and speed, never the result."),
    ] = "auto"
    packing: Annotated[
        bool | Literal["auto"],
        Meta(description="Several examples in one row, none seeing another; auto packs where that is exact."),
    ] = "auto"
    share_prefixes: Annotated[
        bool,
        Meta(
            description="Compute once what sequences of a packed row have in common at their beginning (a system "
            "prompt, the prompt of several answers), where that is exact."
        ),
    ] = True
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        Meta(
            description="bf16: frozen weights and products in bfloat16, learnt ones in float32. fp32: all in float32."
        ),
    ] = "auto"
    devices: Annotated[Positive | Literal["auto"], Meta(description="Devices (processes) of this machine to use.")] = (
        "auto"
    )
    accelerator: Annotated[Literal["auto", "cpu", "cuda", "mps"], Meta(description="Kind of device.")] = "auto"
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp"], Meta(description="How devices share the work: copies (ddp) or shards (FSDP2).")
    ] = "auto"
    activation_checkpointing: Annotated[
        bool, Meta(description="Recompute activations in the backward pass: less memory, about a third more time.")
    ] = False
    compile: Annotated[
        bool | Literal["auto"],
        Meta(
            description="Compile the model's layers with torch.compile; auto compiles where the steps that are left "
            "are expected to gain more than that costs, and says so."
        ),
    ] = False
    eval_every: Annotated[
        Positive | None, Meta(description="Steps between evaluations; null evaluates after every epoch.")
    ] = None
    patience: Annotated[
        Positive | None,
        Meta(description="Stop after this many evaluations without a better eval_loss; null never stops early."),
    ] = None
    checkpoint_every: Annotated[Positive, Meta(description="Steps between checkpoints.")] = 50
    keep_checkpoints: Annotated[Positive, Meta(description="How many of the newest checkpoints stay on disk.")] = 2
    rehearsal: Annotated[
        bool, Meta(description="Try two steps, an evaluation and a save before the first real step; leaves no trace.")
    ] = True
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1, description="Decides data order, initial weights and dropout.")] = 0

    def __post_init__(self) -> None:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give either epochs or max_steps, not both (epochs: null takes one away)")
        if self.epochs is not None and not 0 < self.epochs <= 10_000:
            raise ValueError("epochs must be over 0 and at most 10000")


class Tokens(Config):
    """Changes to the model's tokenizer."""

    chat_template: Annotated[
        str, FILE, Meta(description="A Jinja file with the chat template to use instead of the model's.")
    ] = ""
    add: Annotated[list[str], Meta(description="New special tokens; their embeddings are learnt and saved.")] = []


class Stage(Config):
    """One step of a recipe: a phase with its adapter, data and trainer settings."""

    name: Annotated[Name, Meta(description="Names the stage in --set, in the run folder and in later stages.")]
    phase: Annotated[
        dict[str, Any], asks_for("phase"), Meta(description="What is learned or made: `sft`, or `{kind: sft, …}`.")
    ]
    adapter: Annotated[
        dict[str, Any],
        asks_for("adapter"),
        Meta(description="Which parameters learn: `lora`, or `{kind: lora, rank: 8, …}`."),
    ] = msgspec.field(default_factory=lambda: {"kind": "lora"})
    data: Annotated[Data | None, Meta(description="A path, or a mapping.")] = None
    model: Annotated[
        str,
        MODEL,
        Meta(
            description="What this stage starts from: a model, or `stage:NAME`; by default the stage before, or the "
            "recipe's model."
        ),
    ] = ""
    trainer: Trainer = msgspec.field(default_factory=Trainer)


class Recipe(Config):
    """A base model and the stages that teach it."""

    name: Annotated[Name, Meta(description="Names the run.")]
    model: Annotated[
        str,
        MODEL,
        Meta(
            min_length=1,
            description="The base model: `starter:NAME`, a hub name, a folder, a .gguf file, `run:NAME` (what an "
            "earlier run made), or `new` (random weights, which the phase pretrain makes).",
        ),
    ]
    stages: Annotated[list[Stage], Meta(min_length=1, description="In the order in which they run.")]
    tokenizer: Tokens = msgspec.field(default_factory=Tokens)
    governance: Annotated[
        str,
        asks_for("governance"),
        Meta(
            description="What must be true of all data: `reviewed` refuses data that people have not signed as it is."
        ),
    ] = ""
    trackers: Annotated[
        list[dict[str, Any]],
        asks_for("tracker"),
        Meta(description="Where metrics go: `csv`, `tensorboard`, `wandb`, `mlflow`."),
    ] = msgspec.field(default_factory=lambda: [{"kind": "csv"}])


class Resolved(msgspec.Struct):
    """A recipe whose plugins were found and whose settings are all valid."""

    recipe: Recipe
    base: Path
    "The folder that relative paths start from."
    phases: dict[str, Phase]
    adapters: dict[str, Adapter]
    trackers: list[Tracker]
    governance: Governance | None = None

    def spelled_out(self) -> dict[str, Any]:
        """The recipe as plain data with every default in it, the plugins' too."""
        data: dict[str, Any] = msgspec.to_builtins(self.recipe)
        for stage in data["stages"]:
            for key, plugin in (("phase", self.phases[stage["name"]]), ("adapter", self.adapters[stage["name"]])):
                stage[key] = {"kind": plugin.name, **msgspec.to_builtins(plugin.config)}
        data["trackers"] = [{"kind": plugin.name, **msgspec.to_builtins(plugin.config)} for plugin in self.trackers]
        return data


def load(
    source: str | Path | dict[str, Any] | Recipe, overrides: list[str] | None = None
) -> tuple[dict[str, Any], Path]:
    """Read a recipe into plain data with `--set` overrides applied, and say which folder its paths start from.

    Raises:
        TutelageError: when the file can't be read or an override leads nowhere.
    """
    base = Path.cwd()
    if isinstance(source, Recipe):
        data = msgspec.to_builtins(source)
    elif isinstance(source, dict):
        data = copy.deepcopy(source)
    else:
        data = read_file(Path(source))
        base = Path(source).resolve().parent
    if not isinstance(data, dict):
        wrong = "is empty" if data is None else f"is {'a list' if isinstance(data, list) else 'text'}, not a mapping"
        raise TutelageError.at(str(source), wrong, "a recipe has name, model and stages")
    problems: list[Problem] = []
    for assignment in overrides or []:
        try:
            override(data, assignment)
        except TutelageError as error:
            problems += error.problems
    if problems:
        raise TutelageError(problems)
    return data, base


def resolve(data: dict[str, Any], base: Path, host: Host) -> Resolved:
    """Validate a recipe, plugins' own settings included.

    Raises:
        TutelageError: with every problem at once.
    """
    problems: list[Problem] = []
    data = _with_defaults(spelled_out(data), host)
    recipe = convert_into(problems, data, Recipe, "")
    phases: dict[str, Phase] = {}
    adapters: dict[str, Adapter] = {}
    for index, stage in enumerate(mappings(data.get("stages"))):
        name = str(stage.get("name", index))
        place = f"stages.{name}"
        if name in adapters:
            problems.append(Problem(place=place, wrong="two stages have this name", fix="give every stage its own"))
        if "phase" in stage:
            phases[name] = _plugin(problems, host, "phase", stage["phase"], join(place, "phase"))
        adapters[name] = _plugin(
            problems, host, "adapter", stage.get("adapter", {"kind": "lora"}), join(place, "adapter")
        )
    trackers = [
        _plugin(problems, host, "tracker", tracker, f"trackers.{index}")
        for index, tracker in enumerate(mappings(data.get("trackers", [{"kind": "csv"}])))
    ]
    governance = None
    if isinstance(data.get("governance"), str) and data["governance"]:
        governance = _plugin(problems, host, "governance", {"kind": data["governance"]}, "governance")
    if problems:
        raise TutelageError(problems)
    return Resolved(recipe, base, phases, adapters, trackers, governance)


def spelled_out(data: dict[str, Any]) -> dict[str, Any]:
    """Replace the short forms (`phase: sft`, `adapter: lora`, `data: file.jsonl`) by the mappings they stand for."""
    data = copy.deepcopy(data)
    for stage in mappings(data.get("stages")):
        for key, field in (("phase", "kind"), ("adapter", "kind"), ("data", "train")):
            if isinstance(stage.get(key), str):
                stage[key] = {field: stage[key]}
    trackers = data.get("trackers")
    if isinstance(trackers, list):
        data["trackers"] = [{"kind": item} if isinstance(item, str) else item for item in trackers]
    return data


def _with_defaults(data: dict[str, Any], host: Host) -> dict[str, Any]:
    """Give stages what their phase has by default where the recipe says nothing."""
    for stage in mappings(data.get("stages")):
        phase = host.classes("phase").get(str(_kind(stage.get("phase"))))
        if phase is None or not issubclass(phase, Phase):
            continue
        if phase.default_adapter:
            stage.setdefault("adapter", {"kind": phase.default_adapter})
        trainer = stage.get("trainer", {})
        if isinstance(trainer, dict):
            epochs = {"epochs"} if trainer.get("max_steps") is not None else set()
            given = {name: value for name, value in phase.default_trainer.items() if name not in epochs}
            stage["trainer"] = {**given, **trainer}
    return data


def _kind(settings: Any) -> Any:
    return settings.get("kind") if isinstance(settings, dict) else None


def mappings(items: Any) -> list[dict[str, Any]]:
    """The mappings in what should be a list of them."""
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _plugin(problems: list[Problem], host: Host, kind: str, settings: Any, place: str) -> Any:
    """The plugin instance that `{kind: NAME, …}` asks for, or None with the reason added to `problems`."""
    if not isinstance(settings, dict):
        return None  # the recipe's own validation says so already
    settings = dict(settings)
    name = settings.pop("kind", None)
    if not isinstance(name, str):
        known = ", ".join(sorted(host.classes(kind)))
        problems.append(Problem(place=join(place, "kind"), wrong="missing", fix=f"name the {kind}: {known}"))
        return None
    try:
        plugin = host.get(kind, name, join(place, "kind"))
    except TutelageError as error:
        problems.extend(error.problems)
        return None
    before = len(problems)
    config = convert_into(problems, settings, plugin.Config, place)
    return plugin(config) if len(problems) == before else None
