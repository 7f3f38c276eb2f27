"""`tutelage plan`: what a budget buys, before anything is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tutelage.cli.output import json_option, print_json, table

if TYPE_CHECKING:
    from tutelage.scaling import Allocation

_LEAST, _MOST = 1e5, 1e12
"Parameters that a recipe is written for."


@click.group()
def plan() -> None:
    """Work out what to train with a budget."""


@plan.command()
@click.option("--budget-flops", metavar="FLOPS", help="Floating-point operations to spend: 1e20.")
@click.option("--gpu-hours", metavar="HOURS", help="Hours of a GPU to spend.")
@click.option("--parameters", metavar="COUNT", help="The model's size, if that is settled: 10M.")
@click.option(
    "--tflops",
    type=click.FloatRange(min=0, min_open=True),
    default=312.0,
    show_default=True,
    help="A GPU's peak in 10^12 operations a second (312: A100, dense bfloat16).",
)
@click.option(
    "--utilisation",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=0.4,
    show_default=True,
    help="The share of that peak that training reaches.",
)
@json_option
def pretrain(
    budget_flops: str | None,
    gpu_hours: str | None,
    parameters: str | None,
    tflops: float,
    utilisation: float,
    as_json: bool,
) -> None:
    """Say how large a model to pretrain, and on how many tokens, so that its loss is the least for the budget.

    Give one of --budget-flops, --gpu-hours and --parameters. The answer is that of two published scaling laws, which
    differ; training takes about 6 operations for each parameter and token (Kaplan et al. 2020, section 2.1).
    """
    from tutelage.errors import TutelageError
    from tutelage.scaling import LAWS

    given = {"--budget-flops": budget_flops, "--gpu-hours": gpu_hours, "--parameters": parameters}
    named = {name: _number(name, text) for name, text in given.items() if text is not None}
    if len(named) != 1:
        wrong = f"{' and '.join(named)} are given" if named else "no budget is given"
        raise TutelageError.at("tutelage plan pretrain", wrong, "give one of --budget-flops, --gpu-hours, --parameters")
    speed = tflops * 1e12 * utilisation
    if parameters is not None:
        answers = [law.best_for(named["--parameters"]) for law in LAWS]
    else:
        flops = named["--budget-flops"] if budget_flops is not None else named["--gpu-hours"] * 3600 * speed
        answers = [law.best(flops) for law in LAWS]
    stub, notes = _recipe(answers[0]), _notes(answers)
    if as_json:
        told = [
            {
                **{name: getattr(answer, name) for name in answer.__struct_fields__},
                "gpu_hours": answer.flops / speed / 3600,
            }
            for answer in answers
        ]
        print_json({"answers": told, "tflops": tflops, "utilisation": utilisation, "notes": notes, "recipe": stub})
        return
    _print(answers, speed, notes, stub)


def _number(name: str, text: str) -> float:
    from tutelage.errors import TutelageError
    from tutelage.scaling import amount

    try:
        return amount(text)
    except ValueError as error:
        raise TutelageError.at(name, str(error)) from None


def _print(answers: list[Allocation], speed: float, notes: list[str], stub: dict[str, Any] | None) -> None:
    from tutelage._yaml import dump
    from tutelage.scaling import brief

    rows = [
        [
            answer.law,
            brief(answer.parameters),
            brief(answer.tokens),
            f"{answer.tokens / answer.parameters:.1f}",
            f"{answer.flops:.3g}",
            f"{answer.flops / speed / 3600:,.3g}",
            f"{answer.loss:.3f}",
        ]
        for answer in answers
    ]
    columns = ["law", "parameters", "tokens", "tokens/parameter", "flops", "gpu hours", "loss"]
    table(columns, rows, right=columns[1:])
    for answer in answers:
        click.echo(f"{answer.law}: {answer.source}")
    for note in notes:
        click.echo(f"note: {note}")
    if stub is not None:
        click.echo(f"\nA recipe to begin with ({answers[0].law}):\n\n{dump(stub)}", nl=False)


def _notes(answers: list[Allocation]) -> list[str]:
    """What to keep in mind about these answers."""
    from tutelage.scaling import LARGEST, SMALLEST, brief

    notes = [
        "loss is in nats per token of the laws' own data and 32,000-token vocabulary; compare it within a law only"
    ]
    if any(not SMALLEST <= answer.parameters <= LARGEST for answer in answers):
        notes.append(f"the laws were fitted to models of {brief(SMALLEST)} to {brief(LARGEST)}; this is beyond them")
    if not _LEAST <= answers[0].parameters <= _MOST:
        notes.append(f"there is no recipe for it: models here have {brief(_LEAST)} to {brief(_MOST)} parameters")
    notes.append("a model that will be used much is better trained smaller and longer than this (Sardana et al. 2024)")
    return notes


def _recipe(answer: Allocation) -> dict[str, Any] | None:
    """A recipe of this size: steps of a published size, as many as read the tokens. None of what nobody can train."""
    from tutelage.scaling import brief, tokens_per_step

    if not _LEAST <= answer.parameters <= _MOST:
        return None
    length = 1024 if answer.parameters < 1e8 else 2048
    step = max(length, round(tokens_per_step(answer.flops) / length) * length)
    return {
        "name": f"pretrain-{brief(answer.parameters)}",
        "model": "new",
        "stages": [
            {
                "name": "pretrain",
                "phase": {
                    "kind": "pretrain",
                    "architecture": "llama",
                    "parameters": brief(answer.parameters),
                    "vocabulary": 8192 if answer.parameters < 3e7 else 32000,
                },
                "data": {"train": "text", "eval_split": 0.005},
                "trainer": {
                    "max_steps": max(1, round(answer.tokens / step)),
                    "max_length": length,
                    "tokens_per_step": step,
                    "schedule": "wsd",
                },
            }
        ],
    }
