"""`/v1/advice`, estimates, audits, reviews, and what they rest on: catalog, plugins, schema."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, Parameter

from tutelage_advisor.advice import Advice
from tutelage_advisor.audit import Audit
from tutelage_advisor.catalog import Catalog
from tutelage_advisor.estimates import Estimate
from tutelage_advisor.estimates.recipes import RecipeEstimate
from tutelage_advisor.situation import Situation
from tutelage_server.accounts.caller import Caller, requires
from tutelage_server.advice import answering
from tutelage_server.advice.schemas import (
    AuditQuestion,
    ModelQuestion,
    PluginList,
    RecipeQuestion,
    ReviewQuestion,
    ReviewShown,
    WhatFits,
)
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store

Asked = Request[Caller, Any, Any]
MOST_DRAWS = 100_000


def _settings_and_store(request: Asked) -> tuple[Settings, Store]:
    """What the framework would give too, but by a task for each, which takes as long as to read the question."""
    return request.app.state.settings, request.app.state.store


@post(
    "/v1/advice",
    guards=[requires("advise")],
    status_code=200,
    tags=["advice"],
    opt={"body": (Situation,)},
)
async def give_advice(
    request: Asked,
    body: bytes,
    draws: Annotated[int, Parameter(ge=0, le=MOST_DRAWS, description="Of the Monte Carlo over costs.")] = 10_000,
    seed: Annotated[int, Parameter(ge=0, le=2**31, description="Of those draws.")] = 0,
) -> Advice:
    """Say whether to prompt, retrieve, collect data or fine-tune; how, and at what cost.

    Only `task` must be given; what is left out is assumed, and the advice says how much each assumption matters. `data`
    is `file:ID`: its first rows are then audited.
    """
    settings, store = _settings_and_store(request)
    asked = answering.read_situation(body)
    if answering.is_quick(asked, draws):
        return answering.answer_situation(settings, store, request.user, asked, draws, seed)
    return await run_sync(answering.answer_situation, settings, store, request.user, asked, draws, seed)


@post(
    "/v1/estimates",
    guards=[requires("advise")],
    status_code=200,
    tags=["advice"],
    opt={"body": (ModelQuestion, RecipeQuestion)},
)
async def give_estimate(request: Asked, body: bytes) -> Estimate | RecipeEstimate | WhatFits:
    """Predict memory, time and money of a recipe, or of a model and settings, on given hardware."""
    settings, store = _settings_and_store(request)
    asked = answering.read_json(body)
    if answering.is_quick_estimate(asked):
        return answering.answer_estimate(settings, store, request.user, asked)
    return await run_sync(answering.answer_estimate, settings, store, request.user, asked)


@post("/v1/audits", guards=[requires("advise")], status_code=200, sync_to_thread=True, tags=["advice"])
def give_audit(
    request: Asked,
    store: NamedDependency[Store],
    settings: NamedDependency[Settings],
    data: JSONBody[AuditQuestion],
) -> Audit:
    """Find what is wrong with a dataset, row by row, and say whether it is ready.

    Answered within two minutes or not at all (422 `too_slow`): then look at fewer rows (`limit`).
    """
    return answering.answer_audit(settings, store, request.user, data)


@post("/v1/reviews", guards=[requires("rank")], status_code=200, sync_to_thread=True, tags=["advice"])
def review_file(
    request: Asked,
    store: NamedDependency[Store],
    settings: NamedDependency[Settings],
    data: JSONBody[ReviewQuestion],
) -> ReviewShown:
    """Begin the review of a dataset, decide on rows of it, sign for it.

    What the key says is kept in a record to which lines are only added, each with the last one's hash. A recipe with
    `governance: reviewed` trains on the file once it is signed.
    """
    return answering.go_on_reviewing(settings, store, request.user, data)


@get("/v1/reviews/{file_id:str}", guards=[requires("read")], sync_to_thread=True, tags=["advice"])
def show_review(
    request: Asked,
    store: NamedDependency[Store],
    settings: NamedDependency[Settings],
    file_id: Annotated[FromPath[str], Parameter(max_length=64, description="The file's id.")],
) -> ReviewShown:
    """Where the review of a file stands."""
    return answering.show_review(settings, store, request.user, file_id)


@get("/v1/catalog", guards=[requires("advise")], tags=["advice"])
async def show_catalog() -> Catalog:
    """GPUs, models and prices that advice and estimates rest on, each figure with its source."""
    return answering.catalog()


@get("/v1/plugins", guards=[requires("advise")], sync_to_thread=True, tags=["advice"])
def list_plugins(settings: NamedDependency[Settings]) -> PluginList:
    """What is installed: phases, adapters, formats, rewards and more."""
    return answering.plugins(settings)


@get("/v1/schema", guards=[requires("advise")], sync_to_thread=True, tags=["advice"])
def show_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, with the settings of every installed plugin."""
    return answering.schema()


ROUTES: list[Any] = [
    give_advice,
    give_estimate,
    give_audit,
    review_file,
    show_review,
    show_catalog,
    list_plugins,
    show_schema,
]
