"""What a person reads of an estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tutelage.cli.output import table
from tutelage.runs.words import duration

if TYPE_CHECKING:
    from tutelage_advisor.catalog import Catalog
    from tutelage_advisor.estimates import Estimate, EstimateRequest, InferenceMemory, Option
    from tutelage_advisor.estimates.recipes import RecipeEstimate
    from tutelage_advisor.estimates.searching import Largest
    from tutelage_advisor.estimates.simulating import Simulation

_OTHER_PARTS = {"cache": "keys and values", "others": "reference, reward model"}
_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "overhead")


def print_estimate(result: Estimate, catalog: Catalog, simulation: Simulation | None = None) -> None:
    """One compact page."""
    where = f" on {_hardware(result)}" if result.gpu else ""
    how = f"{result.phase}, {result.adapter}" if result.trainable_parameters else result.phase
    click.secho(f"{result.model}: {how}{where} ({result.strategy}, {result.precision})", bold=True)
    share = result.trainable_parameters / result.parameters
    whose = "of them learn" if result.adapter == "full" and result.phase != "ppo" else "learn beside them"
    learn = f"{result.trainable_parameters:,} {whose} ({share:.2%})" if share else "none of them learn"
    click.echo(f"{result.parameters:,} parameters, {learn}")
    rows = [
        [
            "memory of a GPU",
            f"{result.memory.peak_gib:.1f} GiB",
            _range(result, "memory.peak_gib", "{:.1f}"),
            _verdict(result, catalog),
        ]
    ]
    parts = {part: getattr(result.memory, f"{part}_gib") for part in (*_PARTS, *_OTHER_PARTS)}
    rows += [[f"  {_OTHER_PARTS.get(part, part)}", f"{gib:.2f}", "", ""] for part, gib in parts.items() if gib]
    if simulation is not None:
        rows.append(
            [
                "  simulated peak",
                f"{simulation.peak_gib:.2f}",
                "",
                f"the formula, without overhead: {result.memory.allocated_gib:.2f}",
            ]
        )
    if result.tokens_per_second is not None:
        used = result.utilisation
        rows.append(
            [
                "tokens a second",
                f"{result.tokens_per_second:,.0f}",
                _range(result, "tokens_per_second", "{:,.0f}"),
                "of prompts with their answers" if used is None else f"{used:.0%} of the rated FLOP/s",
            ]
        )
    if result.hours is not None:
        low, high = result.intervals["hours"]
        rows.append(["time", duration(result.hours * 3600), f"{duration(low * 3600)} to {duration(high * 3600)}", ""])
        if len(result.parts) > 1:
            rows += [[f"  {part}", duration(hours * 3600), "", ""] for part, hours in result.parts.items()]
    if result.usd is not None:
        rows.append(["cost", f"${result.usd:,.2f}", _range(result, "usd", "${:,.2f}"), ""])
    rows.append(["artifact", f"{result.artifact_mib:,.1f} MiB", "", ""])
    table(["", "estimate", "likely", ""], rows, right={"estimate"}, folds={""})
    click.echo("assumed:")
    for text in result.assumptions:
        click.echo(f"  {text}")


def _hardware(result: Estimate) -> str:
    return f"{result.devices} x {result.gpu}" if result.devices > 1 else str(result.gpu)


def _range(result: Estimate, name: str, form: str) -> str:
    low, high = result.intervals[name]
    return f"{form.format(low)} to {form.format(high)}"


def _verdict(result: Estimate, catalog: Catalog) -> str:
    if result.gpu is None or result.fits is None:
        return ""
    usable = catalog.gpu(result.gpu).usable
    word = "fits" if result.fits else "does not fit"
    near = result.intervals["memory.peak_gib"]
    doubt = ", closely" if near[0] <= usable <= near[1] else ""
    return f"{word}{doubt}: {usable:.1f} GiB usable"


def print_options(request: EstimateRequest, options: list[Option]) -> None:
    """Hardware by cost."""
    if not options:
        click.echo(
            f"{request.model}: {request.adapter} fits on none of the catalog's GPUs, not on 8 of them; "
            "try qlora, or shorter rows"
        )
        return
    rows = [
        [
            f"{option.gpus} x {option.gpu}",
            ", ".join(
                [
                    option.strategy,
                    *(["checkpointing"] if option.checkpointing else []),
                    *(["chunked loss"] if option.chunked_loss else []),
                ]
            ),
            f"{option.peak_gib:.1f}",
            f"{option.tokens_per_second:,.0f}",
            "–" if option.usd_per_hour is None else f"{option.usd_per_hour:.2f}",
            "–" if option.hours is None else duration(option.hours * 3600),
            "–" if option.usd is None else f"{option.usd:.2f}",
        ]
        for option in options[:20]
    ]
    columns = ["hardware", "settings", "GiB", "tokens/s", "$/h", "time", "$"]
    table(columns, rows, right=set(columns[2:]))


def print_largest(gpu: str, found: list[Largest]) -> None:
    """The largest model by adapter."""
    if not found:
        click.echo(f"no model of the catalog fits on {gpu}")
        return
    rows = [
        [entry.adapter, entry.model, f"{entry.parameters:,}", f"{entry.peak_gib:.1f}", entry.settings]
        for entry in found
    ]
    table(["adapter", "largest model", "parameters", "GiB", "settings"], rows, right={"parameters", "GiB"})


def print_recipe(result: RecipeEstimate, catalog: Catalog) -> None:
    """Every stage, then the sums."""
    for name, stage in result.stages.items():
        click.secho(f"stage {name}", bold=True)
        print_estimate(stage, catalog)
    if len(result.stages) > 1:
        time = "" if result.hours is None else f", {duration(result.hours * 3600)}"
        cost = "" if result.usd is None else f", ${result.usd:,.2f}"
        click.secho(f"{result.name}: {result.peak_gib:.1f} GiB at most{time}{cost}", bold=True)
    for name, people in result.people.items():
        asked = f"{people.judgements:,} judgements, about {people.hours:,.1f} hours of theirs, ${people.usd:,.0f}"
        click.echo(f"stage {name} waits for people: {asked}")


def print_inference(model: str, result: InferenceMemory, context: int, batch: int, weights: str) -> None:
    """Memory for serving."""
    click.secho(f"{model} in {weights}: {batch} x {context:,} tokens", bold=True)
    rows = [
        ["memory of a GPU", f"{result.peak_gib:.1f} GiB"],
        ["  weights", f"{result.weights_gib:.2f}"],
        ["  key-value cache", f"{result.cache_gib:.2f} ({result.cache_kib_per_token:.0f} KiB a token)"],
        ["  overhead", f"{result.overhead_gib:.2f}"],
    ]
    table(["", "estimate"], rows)
