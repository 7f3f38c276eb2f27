"""`tutelage submit`: shows what a job will take, asks where that is wise, and hands it to a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutelage.cli.output import json_option, print_json
from tutelage.cli.train import set_option
from tutelage_server.cli.calling import EXIT_CODES, Finite, agreed, connect, say, server_option
from tutelage_server.cli.wishes import check_key, said_as_options, wishes

if TYPE_CHECKING:
    from tutelage_server.cli.gathering import Gathered
    from tutelage_server.client.client import Client


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--on", "launcher", metavar="NAME", help="The launcher; the server's first by default.")
@click.option("--nodes", type=click.IntRange(min=1), help="Machines.")
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs of each machine.")
@click.option("--cpus", type=click.IntRange(min=1), help="CPU cores of each machine.")
@click.option("--memory", type=Finite(min=0, min_open=True), help="GiB of memory of each machine.")
@click.option("--minutes", type=click.IntRange(min=1), help="Time limit of an attempt, which saves before.")
@click.option("--priority", type=click.IntRange(-100, 100), help="Higher ones of yours come first (0).")
@click.option("--after", multiple=True, metavar="JOB", help="Begin when this job has succeeded; several are possible.")
@click.option("--retries", type=click.IntRange(min=0), help="New attempts when a machine fails.")
@click.option("--name", help="The job's name; the recipe's by default.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label, to list jobs by.")
@set_option
@click.option(
    "--sweep", multiple=True, metavar="FIELD=A,B,…", help="A job for each value (each combination, of several)."
)
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="A variable of the job's environment.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME",
    help="A variable whose value, taken from yours or asked for, is shown nowhere.",
)
@click.option("--max-cost", type=Finite(min=0), metavar="USD", help="Refuse when it may cost more.")
@click.option("--follow/--detach", default=False, help="Show events until it ends, and fetch what it made.")
@click.option("--no-fetch", is_flag=True, help="With --follow: leave what it made on the server.")
@click.option(
    "--dry-run", is_flag=True, help="Check it and show the plan; no job is made (files that the check needs are sent)."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--idempotency-key", default="", metavar="KEY", help="The same key makes one job, however often it is sent."
)
@click.option("--local", is_flag=True, help="Without a server: train here.")
@server_option
@json_option
def submit(recipe: Path, overrides: tuple[str, ...], local: bool, server: str, as_json: bool, **options: Any) -> int:
    """Send RECIPE and the files that it names to a server, which checks it and runs it when its turn comes.

    What it takes (memory, hours, money) is shown first, and asked about where it costs or looks unwise.

    Exit code 0 when it was taken; with --follow, how it ended: 0 succeeded, 1 failed, 3 waits for people, 4 cancelled.
    2: something is to be mended; 5: the connection was lost for good; 130: you left with Ctrl-C, and the job goes on.
    """
    if local:
        from tutelage_server.cli.submit_local import train_here

        return train_here(recipe, list(overrides), as_json, options)
    check_key(options["idempotency_key"])
    wanted = wishes(options)
    from tutelage_server.cli.gathering import gather

    gathered = gather(recipe, list(overrides))
    with connect(server) as client:
        body = {"recipe": _send(client, gathered), **wanted}
        plan = _check(client, body)
        if as_json and options["dry_run"]:
            print_json(plan)
        elif not as_json or options["dry_run"]:
            from tutelage_server.cli.plan_page import print_plan

            print_plan(plan)
            if wanted.get("max_usd") is not None and plan.get("max_usd") is None:
                say("note: this server has no prices, so --max-cost refuses nothing")
        if options["dry_run"]:
            return 0
        _ask(plan, options["yes"])
        with said_as_options():
            made = client.post("/v1/jobs", body, options["idempotency_key"])
        return _after(client, made.get("jobs") or [made], options["follow"], not options["no_fetch"], as_json)


def _send(client: Client, gathered: Gathered) -> dict[str, Any]:
    """Send what the server lacks, and return the recipe as it is to be submitted."""
    from tutelage.runs.words import size
    from tutelage_server.cli.files import progress
    from tutelage_server.cli.gathering import check_limits, missing, sent_recipe
    from tutelage_server.client.transfers import upload

    files = list(gathered.files.values())
    if not files:
        return gathered.recipe
    check_limits(client, files)
    ids, lacking = missing(client, files)
    if lacking:
        total = sum(file.bytes for file in lacking)
        there = f"; {len(ids)} more are there already" if ids else ""
        say(f"sending {len(lacking)} file{'s' if len(lacking) > 1 else ''} ({size(total)}){there}")
        with progress(total, "sending") as done:
            for file in lacking:
                ids[file.sha256] = upload(client, file, progress=done)["id"]
    return sent_recipe(gathered, ids)


def _check(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    """What the server says of a job before it is one.

    Raises:
        TutelageError: with everything that is to be mended.
    """
    import msgspec

    from tutelage.errors import Problem, TutelageError

    with said_as_options():
        plan: dict[str, Any] = client.post("/v1/jobs", {**body, "dry_run": True})
        problems = msgspec.convert(plan.get("problems") or [], list[Problem])
        if problems:
            raise TutelageError(problems)
    return plan


def _ask(plan: dict[str, Any], yes: bool) -> None:
    """Ask where a job costs money or looks unwise.

    Raises:
        click.Abort: when the answer is no.
        TutelageError: when there is no one to ask.
    """
    from tutelage_server.cli.plan_page import doubts

    found = doubts(plan)
    if not found or yes:
        return
    if not agreed(f"It {'; it '.join(found)}. Submit it?", f"the job {' and '.join(found)}"):
        raise click.Abort


def _after(client: Client, made: list[dict[str, Any]], follow: bool, fetch: bool, as_json: bool) -> int:
    """Say what was made, and stay with it where that is wished."""
    from tutelage_server.cli.jobs import worst

    if as_json:
        print_json(made if len(made) > 1 else made[0])
    else:
        for job in made:
            click.echo(job["id"])
    if not follow:
        if not as_json:
            say(f"taken; follow it with: tutelage jobs events -f {made[0]['id']}")
        return 0
    codes = []
    for job in made:
        codes.append(_stay(client, job["id"], fetch, as_json))
        if codes[-1] == 130:
            break
    return worst(codes)


def _stay(client: Client, job_id: str, fetch: bool, as_json: bool) -> int:
    from tutelage_server.cli.fetching import fetch_run, show_fetched
    from tutelage_server.cli.following import follow, shown, told
    from tutelage_server.cli.jobs import detached

    try:
        with shown(as_json) as show:
            job = follow(client, job_id, show)
    except KeyboardInterrupt:
        say(detached(job_id))
        return 130
    if as_json:
        print_json(job)
    fetch = fetch and job["state"] == "succeeded"
    told(job, commands=not fetch)
    if fetch:
        try:
            folder = fetch_run(client, job)
        except KeyboardInterrupt:
            say(f"left; what it made is on the server. Go on with: tutelage jobs artifacts get {job_id}")
            return 130
        if as_json:
            print_json({"job": job["id"], "folder": str(folder)})
        else:
            show_fetched(folder, job)
    return EXIT_CODES[job["state"]]
