"""A situation: the question that the advisor answers. Everything but the task may be left out."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from tutelage.config import Config, convert
from tutelage.errors import Problem, TutelageError

if TYPE_CHECKING:
    from collections.abc import Iterator

Capability = Literal["weak", "partial", "strong"]
Speed = Literal["hours", "days", "weeks"]
Quality = Literal["noisy", "clean", "reviewed"]
Breadth = Literal["narrow", "medium", "broad"]
Knowledge = Literal["none", "some", "deep"]
Changes = Literal["never", "monthly", "weekly", "daily"]
Goal = Literal["style", "helpfulness", "harmlessness", "correctness", "expertise"]
Access = Literal["open", "api-only", "api-tunable"]

Tokens = Annotated[int, Meta(ge=0, le=10_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Agreement = Annotated[float, Meta(gt=0.5, le=1)]
Price = Annotated[float, Meta(ge=0, le=100_000)]


class Traffic(Config):
    """How the model is, or will be, used."""

    requests_per_month: Annotated[
        Annotated[int, Meta(ge=0, le=10**12)] | None, Meta(description="Calls in the first month, as a whole number.")
    ] = None
    prompt_tokens: Annotated[
        Tokens | None, Meta(description="Tokens of a whole prompt today: instructions, examples and input.")
    ] = None
    tuned_prompt_tokens: Annotated[
        Tokens | None, Meta(description="Tokens of a prompt to the tuned model, which needs fewer instructions.")
    ] = None
    output_tokens: Annotated[Tokens | None, Meta(description="Tokens of an answer.")] = None
    growth_per_month: Annotated[
        Annotated[float, Meta(ge=-0.9, le=1)] | None, Meta(description="Growth as a share: 0.05 is 5% a month.")
    ] = None
    cached_share: Annotated[
        Share | None, Meta(description="Share of the prompt's tokens read from the cache: 0.8 is 80%.")
    ] = None


class Prices(Config):
    """What you really pay, instead of the catalog's prices. US dollars."""

    input_per_million: Annotated[Price | None, Meta(description="Dollars for a million prompt tokens.")] = None
    cached_input_per_million: Annotated[
        Price | None, Meta(description="Dollars for a million cached prompt tokens.")
    ] = None
    output_per_million: Annotated[Price | None, Meta(description="Dollars for a million tokens of answers.")] = None
    tuned_input_per_million: Annotated[
        Price | None, Meta(description="The same for the tuned model, where it is hosted by the token.")
    ] = None
    tuned_cached_input_per_million: Annotated[Price | None, Meta(description="The same, cached.")] = None
    tuned_output_per_million: Annotated[Price | None, Meta(description="The same, of answers.")] = None
    training_per_million: Annotated[
        Price | None, Meta(description="Dollars for a million training tokens, where a vendor tunes.")
    ] = None
    gpu_per_hour: Annotated[Price | None, Meta(description="Dollars for one GPU for one hour.")] = None
    people_per_hour: Annotated[Price | None, Meta(description="Dollars for an hour of the people who work on it.")] = (
        None
    )


class Hardware(Config):
    """The GPUs at hand, for training and for hosting what was tuned."""

    gpu: Annotated[str, Meta(min_length=1, max_length=100, description="A GPU's name in `tutelage catalog`.")]
    count: Annotated[int, Meta(ge=1, le=1024, description="GPUs in one node.")] = 1
    nodes: Annotated[int, Meta(ge=1, le=10_000, description="Nodes.")] = 1


class Preferences(Config):
    """What people prefer among answers, where that is to be learnt too."""

    goal: Annotated[
        Goal | None,
        Meta(
            description="What makes an answer better: style, helpfulness, harmlessness, correctness (right or wrong) "
            "or expertise (what only your experts can tell)."
        ),
    ] = None
    pairs: Annotated[
        Annotated[int, Meta(ge=0, le=10**10)] | None,
        Meta(description="Comparisons in hand: pairs of a better and a worse."),
    ] = None
    prompts: Annotated[
        Annotated[int, Meta(ge=0, le=10**10)] | None, Meta(description="Prompts in hand, with or without answers.")
    ] = None
    checkable: Annotated[bool | None, Meta(description="A program can tell whether an answer is right.")] = None
    annotators_usd_per_label: Annotated[
        Price | None, Meta(description="Dollars that people's comparison of a pair costs; 0 where users choose anyway.")
    ] = None
    annotators_agree: Annotated[
        Agreement | None, Meta(description="How often two people prefer the same answer, as a share: 0.73 is 73%.")
    ] = None
    judge: Annotated[
        Annotated[str, Meta(min_length=1, max_length=500)] | None,
        Meta(description="The hosted model that would judge, by its name in `tutelage catalog prices`."),
    ] = None
    judge_agrees: Annotated[
        Agreement | None, Meta(description="How often the judge prefers what your people do, as a share: 0.7 is 70%.")
    ] = None


class Situation(Config):
    """What a model is wanted for. A field that is left out (null) is assumed, and the advice lists the assumption."""

    task: Annotated[str, Meta(min_length=1, max_length=20_000, description="What the model shall do, in your words.")]
    explainable_in_prompt: Annotated[
        bool | None, Meta(description="Whether instructions and a few examples can say what is wanted.")
    ] = None
    base_capability: Annotated[
        Capability | None, Meta(description="How well the model does the task when prompted well.")
    ] = None
    iteration_speed: Annotated[
        Speed | None, Meta(description="How soon a change of what is wanted must take effect.")
    ] = None
    examples: Annotated[
        Annotated[int, Meta(ge=0, le=10**10)] | None,
        Meta(description="Examples in hand: inputs with the wanted answers."),
    ] = None
    example_quality: Annotated[
        Quality | None,
        Meta(description="noisy: scraped or logged; clean: checked by rules; reviewed: checked by people."),
    ] = None
    task_breadth: Annotated[
        Breadth | None, Meta(description="narrow: one kind of input; medium: several; broad: anything that people ask.")
    ] = None
    needs_strict_format: Annotated[bool | None, Meta(description="A format or style must be held in every answer.")] = (
        None
    )
    needs_domain_knowledge: Annotated[Knowledge | None, Meta(description="Knowledge that the model lacks.")] = None
    knowledge_changes: Annotated[Changes | None, Meta(description="How often that knowledge changes.")] = None
    quality_critical: Annotated[bool | None, Meta(description="Errors on this one task are costly.")] = None
    forgetting_sensitive: Annotated[bool | None, Meta(description="The model must keep its other abilities.")] = None
    weights_access: Annotated[
        Access | None, Meta(description="open: weights can be had; api-tunable: the vendor tunes; api-only: neither.")
    ] = None
    data_may_leave: Annotated[bool | None, Meta(description="Examples may be given to a vendor.")] = None
    traffic: Annotated[Traffic | None, Meta(description="How it is used.")] = None
    prices: Annotated[Prices | None, Meta(description="What you pay, instead of the catalog's prices.")] = None
    model: Annotated[
        Annotated[str, Meta(min_length=1, max_length=500)] | None,
        Meta(description="A catalog name, a hub name or a folder."),
    ] = None
    hardware: Annotated[Hardware | None, Meta(description="GPUs at hand.")] = None
    variants: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(description="Tuned variants to be served side by side, such as one for each customer."),
    ] = None
    budget_usd: Annotated[
        Annotated[float, Meta(ge=0, le=1e12)] | None,
        Meta(description="Dollars for training: machines and vendors, not the hours of your own people."),
    ] = None
    horizon_months: Annotated[
        Annotated[int, Meta(ge=1, le=120)] | None, Meta(description="Months over which the costs count.")
    ] = None
    preferences: Annotated[
        Preferences | None, Meta(description="What is preferred among answers, where that is to be learnt too.")
    ] = None
    data: Annotated[
        Annotated[str, Meta(min_length=1, max_length=4096)] | None,
        Meta(description="Path of the examples; their number and quality are then measured."),
    ] = None


def situation_from(data: Any) -> Situation:
    """Turn plain data (or a situation made in Python) into a checked situation.

    Raises:
        TutelageError: with every problem, each saying what the field means.
    """
    if isinstance(data, Situation):
        data = {key: value for key, value in msgspec.to_builtins(data).items() if value is not None}
    if not isinstance(data, dict):
        raise TutelageError.at("situation", "is not a mapping", "give at least `task: what the model shall do`")
    with contextlib.suppress(msgspec.ValidationError, TypeError):  # all is well, which is told fastest so
        return msgspec.convert(data, Situation)
    try:
        return convert(data, Situation)
    except TutelageError as error:
        raise TutelageError([_explained(problem) for problem in error.problems]) from None


@cache
def describe(field: str) -> str:
    """What a field means, in one line. `traffic.growth_per_month` names a nested one."""
    return next((text for name, text in _descriptions(Situation) if name == field), "")


@cache
def choices(field: str) -> tuple[str, ...]:
    """The words that a field of `Situation` takes, or none."""
    return next((choice for member in _members(_hints()[field]) if (choice := get_args(member))), ())


@cache
def is_yes_or_no(field: str) -> bool:
    """Whether a field of `Situation` is answered by yes or no."""
    return bool in _members(_hints()[field])


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Situation)


def _members(hint: Any) -> list[Any]:
    return [member for member in get_args(hint) if member is not type(None)]


def _explained(problem: Problem) -> Problem:
    meaning = describe(problem.place)
    if "." not in problem.place and meaning and choices(problem.place):
        meaning = f"{meaning} It is one of {', '.join(choices(problem.place))}"
    return problem if problem.fix or not meaning else Problem(place=problem.place, wrong=problem.wrong, fix=meaning)


def _descriptions(kind: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, hint in get_type_hints(kind, include_extras=True).items():
        yield prefix + name, _description(hint)
        for member in _members(get_type_hints(kind)[name]):
            if isinstance(member, type) and issubclass(member, Config):
                yield from _descriptions(member, f"{name}.")


def _description(hint: Any) -> str:
    metas = [meta for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, Meta)]
    return next((meta.description for meta in metas if meta.description), "")
