"""Answers to questions, by the advisor: the same as on the command line, with nothing of this machine in reach."""

from __future__ import annotations

import contextlib
import datetime
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select

from tutelage._yaml import dump
from tutelage.config import convert
from tutelage.errors import TutelageError
from tutelage.plugins import KINDS, host
from tutelage.references import renamed
from tutelage.schema import recipe_schema
from tutelage_advisor import estimates
from tutelage_advisor.advice import Advice
from tutelage_advisor.advising import advise_in
from tutelage_advisor.audit import Audit
from tutelage_advisor.catalog import Catalog, load
from tutelage_advisor.estimates import Estimate
from tutelage_advisor.estimates.recipes import RecipeEstimate
from tutelage_advisor.situation import Situation, situation_from
from tutelage_advisor.world import World
from tutelage_server.accounts.caller import Caller
from tutelage_server.advice.schemas import (
    AuditQuestion,
    Brought,
    ModelQuestion,
    PluginList,
    PluginShown,
    RecipeQuestion,
    ReviewQuestion,
    ReviewShown,
    WhatFits,
)
from tutelage_server.advice.working import AdviceTask, AuditTask, EstimateTask, ReviewTask, work
from tutelage_server.files.borrowing import borrowed, local_name
from tutelage_server.files.finding import whole_file
from tutelage_server.files.storage import place_file, reviews_folder
from tutelage_server.jobs.confining import Confiner
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Key, StoredFile, new_id

with contextlib.suppress(ImportError):
    import numpy  # noqa: F401 - the advisor draws by it where it is loaded, many times as fast


QUICK_DRAWS = 10_000


@functools.lru_cache(maxsize=1)
def world_of(day: datetime.date) -> World:
    """What the advisor looks things up in, kept for the day."""
    return World(load(), day)


def catalog() -> Catalog:
    """GPUs, models and prices."""
    return world_of(datetime.date.today()).catalog


def read_situation(body: bytes) -> Situation:
    """The situation in a request.

    Raises:
        TutelageError: with every problem, as the command line says it.
    """
    try:
        return msgspec.json.decode(body, type=Situation)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return situation_from(read_json(body))


def read_json(body: bytes) -> Any:
    """A request's JSON.

    Raises:
        TutelageError: when it is none.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TutelageError.at("the body", f"is not JSON: {error}", "send a JSON object") from None


def answer_situation(
    settings: Settings, store: Store, caller: Caller, asked: Situation, draws: int, seed: int
) -> Advice:
    """Advice. Data is read by a process of its own, of its first rows as everywhere.

    Raises:
        TutelageError: as `advise`; a model is one of the catalog, and data is a file of the tenant.
    """
    world = world_of(datetime.date.today())
    if asked.model is not None and world.hosted(asked.model) is None:
        check_model(asked.model, world)
    if asked.data is None:
        return advise_in(world, asked, draws, seed)
    if not asked.data.startswith("file:"):
        raise TutelageError.at("data", f"{asked.data!r} is no file of yours", "upload it, and write file:ID")
    file = _file(store, caller, asked.data, "data")
    with borrowed(settings, [file]) as (folder, [name]):
        plain = {key: value for key, value in msgspec.to_builtins(asked).items() if value is not None}
        task = AdviceTask(situation={**plain, "data": name}, draws=draws, seed=seed, shown=f"file:{file.id}")
        return work(task, folder, Advice)


def is_quick(asked: Situation, draws: int) -> bool:
    """Whether advice takes some milliseconds at most, so that it may be given where all requests are handled: that is
    faster than to hand it to a thread, which would need the interpreter's lock all the same."""
    known = asked.model is None or world_of(datetime.date.today()).is_known(asked.model)
    return asked.data is None and draws <= QUICK_DRAWS and known


def is_quick_estimate(asked: Any) -> bool:
    """The same of an estimate: that of a recipe reads files, and what fits is found by trying much."""
    if not isinstance(asked, dict) or asked.get("what_fits") or "recipe" in asked:
        return False
    model = asked.get("model")
    return isinstance(model, str) and world_of(datetime.date.today()).is_known(model)


def check_model(model: str, world: World) -> None:
    """Refuse a model that the catalog doesn't know: elsewhere such a name may be a path, which here it never is.

    Raises:
        TutelageError: with the nearest that it knows.
    """
    if world.entry(model) is None:
        world.catalog.model(model)


def answer_estimate(
    settings: Settings, store: Store, caller: Caller, asked: Any
) -> Estimate | RecipeEstimate | WhatFits:
    """Memory, time and money of a recipe, or of a model and settings.

    Raises:
        TutelageError: as `estimate`; a recipe may name what a job's may.
    """
    if isinstance(asked, dict) and "recipe" in asked:
        return _estimate_recipe(settings, store, caller, convert(asked, RecipeQuestion))
    question = convert(asked, ModelQuestion) if isinstance(asked, dict) else None
    if question is None:
        raise TutelageError.at("the body", "is not a mapping", "give at least a recipe, or a model")
    world = world_of(datetime.date.today())
    check_model(question.model, world)
    if question.what_fits:
        return WhatFits(options=estimates.what_fits(question, world.catalog, question.gpu))
    return estimates.estimate(question, world.catalog, world.shape(question.model))


def _estimate_recipe(settings: Settings, store: Store, caller: Caller, asked: RecipeQuestion) -> RecipeEstimate:
    with store.reading() as session:
        confined = Confiner(session, settings, caller.tenant_id, host()).confine(asked.recipe)
        wanted = set(confined.files.values())
        stored = {each.id: each for each in session.scalars(select(StoredFile).where(StoredFile.id.in_(wanted)))}
    hardware = {name: getattr(asked, name) for name in ("gpus", "nodes", "network_gb_s")}
    hardware |= {name: value for name in ("gpu", "usd_per_gpu_hour") if (value := getattr(asked, name)) is not None}
    recipe = renamed(confined.recipe, {**confined.foreseen, **confined.shapes})
    with _beside_jobs(settings) as folder:
        (folder / "data").mkdir()
        for path, file_id in confined.files.items():
            place_file(settings, stored[file_id], folder / path)
        (folder / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
        return work(EstimateTask(recipe="recipe.yaml", hardware=hardware), folder, RecipeEstimate)


@contextlib.contextmanager
def _beside_jobs(settings: Settings) -> Iterator[Path]:
    """A folder from which other jobs' folders are reached as from a job's own; what a crash leaves of it is removed
    with other folders of jobs that never came to be."""
    folder = settings.folder / "jobs" / f".{new_id('estimate')}.new"
    folder.mkdir(parents=True, mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def answer_audit(settings: Settings, store: Store, caller: Caller, asked: AuditQuestion) -> Audit:
    """What `tutelage audit --json` answers, of the first `limit` rows.

    Raises:
        TutelageError: as `audit`.
        Refused: 404; 422 when it takes longer than it may.
    """
    named = {"file": asked.file, "eval": asked.eval, "against": asked.against}
    files = {field: _file(store, caller, value, field) for field, value in named.items() if value is not None}
    with borrowed(settings, list(files.values())) as (folder, names):
        called = dict(zip(files, names, strict=True))
        task = AuditTask(
            data=called["file"],
            held_out=called.get("eval", ""),
            against=called.get("against", ""),
            settings={} if "too-long" in asked.skip else {"too-long": {"max_length": asked.max_length}},
            skip=tuple(asked.skip),
            limit=asked.limit,
        )
        found = work(task, folder, Audit)
    return msgspec.structs.replace(found, data=f"file:{files['file'].id}")


def go_on_reviewing(settings: Settings, store: Store, caller: Caller, asked: ReviewQuestion) -> ReviewShown:
    """Begin a review or go on with it, in the name of the caller's key.

    Raises:
        TutelageError: as the review's own functions.
        Refused: 404
    """
    with store.reading() as session:
        name = session.get_one(Key, caller.key_id).name
    decisions = [msgspec.to_builtins(each) for each in asked.decisions]
    return _review(
        settings,
        _file(store, caller, asked.file, "file"),
        ReviewTask(
            data="",
            who=f"{name} ({caller.key_id})",
            sample=asked.sample,
            seed=asked.seed,
            decisions=decisions,
            sign=asked.sign,
        ),
    )


def show_review(settings: Settings, store: Store, caller: Caller, file_id: str) -> ReviewShown:
    """Where a file's review stands, verified against the file as it is.

    Raises:
        Refused: 404
    """
    return _review(settings, _file(store, caller, file_id, "file"), ReviewTask(data=""))


def _review(settings: Settings, file: StoredFile, task: ReviewTask) -> ReviewShown:
    """The record is kept in a folder of the file's own, beside which its bytes lie for as long as they are read."""
    folder, name = reviews_folder(settings, file.id), local_name(file)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    place_file(settings, file, folder / name)
    return work(msgspec.structs.replace(task, data=name), folder, ReviewShown)


def plugins(settings: Settings) -> PluginList:
    """The installed plugins, as `tutelage plugins` lists them."""
    found, denied = host(), set(settings.deny_plugins)
    shown = []
    for info in found.infos:
        provides = {
            kind: [
                Brought(
                    name=name,
                    summary=found.classes(kind)[name].summary() if kind in KINDS else found.commands[name].help,
                    allowed=f"{kind}:{name}" not in denied,
                )
                for name in names
            ]
            for kind, names in info.provides.items()
        }
        shown.append(
            PluginShown(
                name=info.name,
                distribution=info.distribution,
                version=info.version,
                provides=provides,
                error=info.error.splitlines()[0] if info.error else "",
            )
        )
    return PluginList(items=shown)


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe."""
    return recipe_schema(host())


def _file(store: Store, caller: Caller, named: str, _: str) -> StoredFile:
    return whole_file(store, caller.tenant_id, named.removeprefix("file:"))
