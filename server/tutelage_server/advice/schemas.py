"""What requests about advice look like beside the advisor's own structs, and answers that only the server has."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tutelage.config import Config
from tutelage_advisor.estimates import EstimateRequest, Option
from tutelage_advisor.estimates.request import Count

FileRef = Annotated[str, Meta(pattern="^(file:)?[A-Za-z0-9-]{1,64}$", description="A file of yours, by its id.")]
Overrides = Annotated[float, Meta(gt=0, le=100_000)]


class RecipeQuestion(Config):
    """A recipe, and the hardware on which it is to run."""

    recipe: Annotated[dict[str, Any], Meta(description="The recipe; it names files as file:ID, and models as jobs do.")]
    gpu: Annotated[str | None, Meta(description="A GPU of the catalog; null estimates memory alone.")] = None
    gpus: Annotated[int, Meta(ge=1, le=1024, description="GPUs in one node.")] = 1
    nodes: Annotated[int, Meta(ge=1, le=10_000, description="Nodes.")] = 1
    usd_per_gpu_hour: Annotated[
        Annotated[float, Meta(ge=0, le=100_000)] | None, Meta(description="What a GPU costs; null takes the catalog.")
    ] = None
    network_gb_s: Annotated[Overrides, Meta(description="GB/s between nodes, for each GPU.")] = 50.0


class ModelQuestion(EstimateRequest):
    """A model and settings, and the hardware on which it is to be tuned."""

    what_fits: Annotated[
        bool, Meta(description="Whether to answer which hardware (or, with gpu, which settings) the run fits on.")
    ] = False


class WhatFits(msgspec.Struct, kw_only=True):
    """Hardware and settings that a run fits on, the cheapest first."""

    options: Annotated[list[Option], Meta(description="Each with what it costs.")]


class AuditQuestion(Config):
    """A dataset to audit."""

    file: FileRef
    eval: Annotated[FileRef | None, Meta(description="The evaluation set, to find rows that leaked.")] = None
    against: Annotated[FileRef | None, Meta(description="Prompts seen in production.")] = None
    max_length: Annotated[int, Meta(ge=8, le=10_000_000, description="As in the recipe's trainer.")] = 1024
    skip: Annotated[list[str], Meta(max_length=100, description="Checks to leave out.")] = []
    limit: Annotated[
        Count, Meta(description="Rows to look at, at most; a verdict needs no more than some thousands.")
    ] = 200_000


class ReviewQuestion(Config):
    """A dataset to review: rows are chosen, decided on, and then somebody signs for all of it."""

    file: FileRef
    sample: Annotated[int, Meta(ge=1, le=10_000, description="Rows to look at, when the review begins.")] = 50
    seed: Annotated[int, Meta(ge=0, le=2**31, description="Chooses other rows.")] = 0
    decisions: Annotated[
        list[RowDecision],
        Meta(max_length=10_000, description="What you say of rows of the sample; the last one counts."),
    ] = []
    sign: Annotated[bool, Meta(description="Sign that the data is accurate, unbiased and appropriate.")] = False


class RowDecision(Config):
    """What a person says of one row."""

    row: Annotated[int, Meta(ge=1, description="Its number.")]
    accurate: bool
    unbiased: bool
    appropriate: bool
    note: Annotated[str, Meta(max_length=2000)] = ""


class PendingRow(msgspec.Struct, kw_only=True):
    """A row of the sample that nobody has decided on."""

    row: Annotated[int, Meta(description="Its number.")]
    place: Annotated[str, Meta(description="Where it is.")]
    why: Annotated[str, Meta(description="Why it was chosen.")]
    turns: Annotated[list[tuple[str, str]], Meta(description="Role and text of each turn.")]
    error: Annotated[str, Meta(description="Why it is no valid record, where it is none.")]


class SignatureShown(msgspec.Struct, kw_only=True):
    """Who signed, and when."""

    who: Annotated[str, Meta(description="The key's name and id.")]
    at: Annotated[str, Meta(description="When, in UTC.")]


class ReviewShown(msgspec.Struct, kw_only=True):
    """Where a review stands."""

    signed: Annotated[bool, Meta(description="Whether people signed for the file as it is.")]
    problems: Annotated[list[str], Meta(description="Why not, in sentences.")]
    pending: Annotated[list[PendingRow], Meta(description="Rows that are still to be decided on.")]
    decided: Annotated[int, Meta(description="How many of the sample are decided.")]
    signatures: Annotated[list[SignatureShown], Meta(description="Who signed.")]
    head: Annotated[str, Meta(description="Hash of the record's last entry; empty when there is no record.")]


class Brought(msgspec.Struct, kw_only=True):
    """Something that a plugin brings."""

    name: Annotated[str, Meta(description="By what name recipes know it.")]
    summary: Annotated[str, Meta(description="What it is, in a line.")]
    allowed: Annotated[bool, Meta(description="Whether recipes may use it on this server.")]


class PluginShown(msgspec.Struct, kw_only=True):
    """An installed plugin."""

    name: Annotated[str, Meta(description="Its entry point.")]
    distribution: Annotated[str, Meta(description="The package that brings it.")]
    version: Annotated[str, Meta(description="That package's version.")]
    provides: Annotated[dict[str, list[Brought]], Meta(description="What it brings, by kind.")]
    error: Annotated[str, Meta(description="Why it is switched off; empty when it is not.")]


class PluginList(msgspec.Struct, kw_only=True):
    """The installed plugins."""

    items: Annotated[list[PluginShown], Meta(description="All of them.")]
