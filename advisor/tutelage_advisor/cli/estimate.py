"""`tutelage estimate` and `tutelage catalog`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutelage.cli.output import json_option, print_json, table

if TYPE_CHECKING:
    from tutelage_advisor.catalog import Catalog, Figure
    from tutelage_advisor.estimates import EstimateRequest

_RECALLED = {
    "gpus": "* quoted from memory, not read for this catalog; see tutelage catalog sources for the others",
    "models": "shapes are as known of each model's config.json; parameters were checked against the published number",
}
_CHOICES = {
    "phase": [
        *("sft", "pretrain", "dpo", "reward_model", "ppo", "grpo"),
        *("comparisons", "critique_revision", "ai_feedback", "evaluation"),
    ],
    "adapter": ["full", "lora", "qlora", "prompt"],
    "strategy": ["auto", "ddp", "fsdp", "zero1", "zero2", "zero3"],
    "precision": ["auto", "bf16", "bf16-true", "fp16-true", "fp32"],
    "optimizer": ["adamw", "adamw-foreach", "adamw-8bit", "muon", "sgd", "sgd-momentum", "lion", "adafactor"],
    "attention": ["auto", "flash", "eager"],
    "loss": ["float32", "shifted", "half"],
    "reward_model": ["none", "shared", "separate"],
}
_WHOLE = {
    "gpus": "GPUs in one node (1).",
    "nodes": "Nodes (1).",
    "rank": "LoRA rank (16).",
    "virtual_tokens": "Length of a soft prompt (20).",
    "micro_batch": "Rows that one GPU computes at a time (1).",
    "seq_len": "Tokens of a row (1024).",
    "tokens_per_step": "Tokens of an optimizer step over all GPUs.",
    "examples": "Training examples (or prompts to answer), for time and cost.",
    "answers": "Answers to a prompt, compared (2) or drawn (ppo 1, grpo 8, comparisons 4).",
    "new_tokens": "Tokens of an answer that is drawn (256).",
    "thought_tokens": "Tokens of a critique (128) or of a judge's reasoning (0).",
    "inner_epochs": "Passes over the answers of an iteration (ppo 4, grpo 1).",
    "rounds": "Revisions of an answer (1).",
    "principles": "Principles by which a pair is judged (4).",
}
_REAL = {
    "dropout": "LoRA dropout (0).",
    "tokens_per_example": "Mean tokens of an example (seq-len).",
    "epochs": "Passes over the examples (3).",
    "prompt_tokens": "Mean tokens of a prompt that is answered.",
    "usd_per_gpu_hour": "What a GPU costs you, instead of the catalog's price.",
    "network_gb_s": "GB/s between nodes, for each GPU (50).",
}
_SWITCHES = {
    "checkpointing": "Recompute activations in the backward pass.",
    "chunked_loss": "Compute the loss piece by piece.",
    "compile": "Use torch.compile.",
    "offload": "Keep shards in the host's memory.",
    "upcast": "QLoRA with norms, embeddings and output layer in float32.",
}


def _request_options(command: Any) -> Any:
    """Every field of a request as an option; one that is not given keeps the request's own default."""
    for name in reversed(_SWITCHES):
        command = click.option(_flag(name), name, is_flag=True, default=None, help=_SWITCHES[name])(command)
    for name in reversed(_REAL):
        command = click.option(_flag(name), name, type=float, help=_REAL[name])(command)
    for name in reversed(_WHOLE):
        command = click.option(_flag(name), name, type=int, help=_WHOLE[name])(command)
    for name in reversed(_CHOICES):
        command = click.option(_flag(name), name, type=click.Choice(_CHOICES[name]))(command)
    command = click.option(
        "--reference/--no-reference", default=None, help="Whether dpo, ppo or grpo asks a reference model."
    )(command)
    command = click.option("--targets", help="LoRA's layers: all-linear, attention, mlp, or names with commas.")(
        command
    )
    return command


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("--model", help="A catalog name, a hub name, a Hugging Face folder or a config.json.")
@click.option("--gpu", help="A GPU of the catalog.")
@_request_options
@click.option(
    "--what-fits", is_flag=True, help="The cheapest hardware for the model, or the largest model for the GPU."
)
@click.option(
    "--simulate", "simulated", is_flag=True, help="Also run a step of the true model on fake tensors (needs torch)."
)
@click.option("--inference", is_flag=True, help="Memory for serving instead of training.")
@click.option("--context", type=int, default=4096, show_default=True, help="With --inference: tokens of a sequence.")
@click.option("--batch", type=int, default=1, show_default=True, help="With --inference: sequences at once.")
@click.option(
    "--weights", type=click.Choice(["bf16", "fp16", "fp32", "int8", "nf4"]), default="bf16", help="With --inference."
)
@click.option("--catalog", "extra", type=click.Path(path_type=Path), help="A file of your own GPUs, models and prices.")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe.")
@json_option
def estimate(
    recipe: Path | None,
    what_fits: bool,
    simulated: bool,
    inference: bool,
    context: int,
    batch: int,
    weights: str,
    extra: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Predict memory, time and money of a RECIPE, or of a model and settings, on given hardware.

    Nothing is downloaded and no weights are needed: `tutelage estimate --model Llama-3.1-8B --adapter qlora
    --gpu "RTX 4090" --seq-len 2048 --examples 5000`.
    """
    from tutelage_advisor.catalog import load

    catalog = load(extra)
    fields = {name: value for name, value in given.items() if value is not None}
    if "targets" in fields:
        fields["targets"] = _targets(fields["targets"])
    if recipe is not None:
        _recipe(recipe, fields, catalog, list(overrides), as_json)
    elif inference:
        _inference(fields, catalog, context, batch, weights, as_json)
    elif what_fits and "model" not in fields:
        _largest(fields, catalog, as_json)
    else:
        _single(_request(fields), catalog, what_fits, simulated, as_json)


def _targets(text: str) -> str | list[str]:
    names = [name.strip() for name in text.split(",")]
    return names[0] if len(names) == 1 else names


def _request(fields: dict[str, Any]) -> EstimateRequest:
    from tutelage.config import convert
    from tutelage.errors import TutelageError
    from tutelage_advisor.estimates import EstimateRequest

    if "model" not in fields:
        raise TutelageError.at("estimate", "names neither a recipe nor a model", "give RECIPE or --model")
    return convert(fields, EstimateRequest)


def _single(request: EstimateRequest, catalog: Catalog, what_fits: bool, simulated: bool, as_json: bool) -> None:
    from tutelage_advisor import estimates
    from tutelage_advisor.cli import estimate_page as page

    if what_fits:
        options = estimates.what_fits(request, catalog, request.gpu)
        if as_json:
            print_json(options)
        else:
            page.print_options(request, options)
        return
    result = estimates.estimate(request, catalog)
    simulation = None
    if simulated:
        from tutelage_advisor.estimates.simulating import simulate

        simulation = simulate(request, catalog, result.precision)
    if as_json:
        print_json(result if simulation is None else _with(result, simulation))
    else:
        page.print_estimate(result, catalog, simulation)


def _with(result: Any, simulation: Any) -> dict[str, Any]:
    import msgspec

    return {**msgspec.to_builtins(result), "simulation": msgspec.to_builtins(simulation)}


def _recipe(recipe: Path, fields: dict[str, Any], catalog: Catalog, overrides: list[str], as_json: bool) -> None:
    from tutelage.errors import TutelageError
    from tutelage_advisor.cli import estimate_page as page
    from tutelage_advisor.estimates.recipes import estimate_recipe

    allowed = {"gpu", "gpus", "nodes", "usd_per_gpu_hour", "network_gb_s"}
    strange = sorted(set(fields) - allowed)
    if strange:
        wrong = f"{', '.join(_flag(name) for name in strange)}: the recipe says so itself"
        raise TutelageError.at("estimate", wrong, "change the recipe with --set, or name a --model instead of a recipe")
    result = estimate_recipe(recipe, fields, catalog, overrides)
    if as_json:
        print_json(result)
    else:
        page.print_recipe(result, catalog)


def _inference(fields: dict[str, Any], catalog: Catalog, context: int, batch: int, weights: Any, as_json: bool) -> None:
    from tutelage.errors import TutelageError
    from tutelage_advisor.cli import estimate_page as page
    from tutelage_advisor.estimates import architecture_of, inference_memory

    model = _request(fields).model
    try:
        result = inference_memory(architecture_of(model, catalog), context, batch, weights)
    except ValueError as error:
        raise TutelageError.at("--inference", str(error)) from None
    if as_json:
        print_json(result)
    else:
        page.print_inference(model, result, context, batch, weights)


def _largest(fields: dict[str, Any], catalog: Catalog, as_json: bool) -> None:
    from tutelage.errors import TutelageError
    from tutelage_advisor.cli import estimate_page as page
    from tutelage_advisor.estimates import largest_models

    if "gpu" not in fields:
        raise TutelageError.at("--what-fits", "names neither a model nor a GPU", "give --model or --gpu")
    found = largest_models(fields["gpu"], _request({**fields, "model": "any"}), catalog)
    if as_json:
        print_json(found)
    else:
        page.print_largest(fields["gpu"], found)


@click.command()
@click.argument("kind", type=click.Choice(["gpus", "models", "prices", "sources"]), default="gpus")
@click.option("--catalog", "extra", type=click.Path(path_type=Path), help="A file of your own GPUs, models and prices.")
@json_option
def catalog(kind: str, extra: Path | None, as_json: bool) -> None:
    """Show the GPUs, models, prices or sources that estimates and advice rest on."""
    from tutelage_advisor.catalog import load

    known = load(extra)
    if as_json:
        print_json(known.api_prices if kind == "prices" else getattr(known, kind))
    elif kind == "gpus":
        _print_gpus(known)
    elif kind == "models":
        _print_models(known)
    elif kind == "prices":
        _print_prices(known)
    else:
        table(["source", "is"], [[key, text] for key, text in known.sources.items()], folds={"is"})
    if not as_json and kind in ("gpus", "models"):
        click.echo(_RECALLED[kind], err=True)
    for stale in known.stale() if kind in ("gpus", "prices") and not as_json else []:
        click.echo(f"old: {stale}", err=True)


def _print_gpus(known: Catalog) -> None:
    rows = [
        [
            gpu.name,
            _figure(gpu.memory_gib),
            _figure(gpu.bandwidth_gb_s),
            _figure(gpu.tflops["bf16"]) if gpu.has_bf16 else "–",
            f"{gpu.link.kind}, {_figure(gpu.link.gb_s)}",
            f"{gpu.typical_price:.2f}" if gpu.typical_price is not None else "–",
        ]
        for gpu in known.gpus
    ]
    table(
        ["GPU", "GiB", "GB/s", "bf16 TFLOP/s", "link, GB/s", "$/h"], rows, right={"GiB", "GB/s", "bf16 TFLOP/s", "$/h"}
    )


def _figure(figure: Figure) -> str:
    return f"{figure.value:g}{'*' if figure.from_memory else ''}"


def _print_models(known: Catalog) -> None:
    from tutelage_advisor.estimates.models import from_config

    rows = []
    for entry in known.models:
        made = from_config(entry.config, entry.name)
        active = 2 * made.active_matrix_parameters / 1e9
        rows.append(
            [entry.name, f"{made.parameters:,}", f"{active:.1f}", str(made.longest or "–"), entry.license, entry.hub]
        )
    table(
        ["model", "parameters", "GFLOP/token", "context", "licence", "hub"],
        rows,
        right={"parameters", "GFLOP/token", "context"},
    )


def _print_prices(known: Catalog) -> None:
    rows = [
        [
            price.model,
            price.vendor,
            *(
                _dollars(value)
                for value in (price.input, price.cached_input, price.output, price.training, price.tuned_output)
            ),
            price.tuning_until or "",
            price.read,
        ]
        for price in known.api_prices
    ]
    numbers = ["input", "cached", "output", "training", "tuned output"]
    table(["model", "vendor", *numbers, "tuning ends", "read"], rows, right=set(numbers))


def _dollars(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"
