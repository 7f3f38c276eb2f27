"""`tutelage jobs`: see and steer jobs, and fetch what they made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tutelage.cli.output import json_option, print_json
from tutelage_server.cli.calling import EXIT_CODES, connect, each_of, local_option, pairs, say, server_option

STATES = (
    *("queued", "starting", "running", "waiting", "pausing", "paused", "cancelling"),
    *("succeeded", "failed", "cancelled"),
)


@click.group()
def jobs() -> None:
    """See and steer jobs, and fetch what they made.

    A command that waits for a job exits with 0 when it succeeded, 1 failed, 3 waits for people, 4 was cancelled; 5 when
    the connection was lost for good, and 130 when you left with Ctrl-C: the job goes on then.
    """


@jobs.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only jobs in this state.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only jobs with this label.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many, newest first.")
@local_option
@server_option
@json_option
def list_jobs(
    states: tuple[str, ...], labels: tuple[str, ...], limit: int, local: bool, server: str, as_json: bool
) -> None:
    """List jobs, newest first."""
    from tutelage_server.cli.job_pages import print_jobs

    pairs(labels, "--label")
    if local:
        from tutelage.cli.runs import list_runs

        if states or labels:
            raise click.UsageError("--state and --label are of a server's jobs, and can't be given with --local")
        click.get_current_context().invoke(list_runs, as_json=as_json)
        return
    with connect(server) as client:
        found = list(client.pages("/v1/jobs", limit, state=list(states) or None, label=list(labels) or None))
    if as_json:
        print_json(found)
    elif not found:
        say("no jobs; start one with: tutelage submit RECIPE")
    else:
        print_jobs(found)


@jobs.command()
@click.argument("job")
@local_option
@server_option
@json_option
def show(job: str, local: bool, server: str, as_json: bool) -> None:
    """Show one JOB: its state and why, how far it is, where it runs, and what to do next."""
    from tutelage_server.cli.job_pages import print_job

    if local:
        from tutelage.cli.runs import show as show_run

        click.get_current_context().invoke(show_run, run=job, as_json=as_json)
        return
    with connect(server) as client:
        found = client.get(_place(job))
    if as_json:
        print_json(found)
    else:
        print_job(found)


@jobs.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come, until the job has ended.")
@local_option
@server_option
@json_option
def logs(job: str, follow: bool, local: bool, server: str, as_json: bool) -> int:
    """Print the log of JOB: all that its attempts wrote; with --json a line of it is an object with `line`."""
    from tutelage_server.cli.logs import follow_log, print_log

    if local:
        return _local_events(job, as_json)
    with connect(server) as client:
        if not follow:
            print_log(client, job, as_json)
            return 0
        return _attended(job, lambda: follow_log(client, job, as_json))


@jobs.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on as events come, until the job has ended.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only events after this number.")
@local_option
@server_option
@json_option
def events(job: str, follow: bool, after: int, local: bool, server: str, as_json: bool) -> int:
    """Print what happened to JOB; with --json an event is a line, and --after goes on where a script was."""
    from tutelage_server.cli.following import follow as follow_job
    from tutelage_server.cli.following import shown, so_far

    if local:
        return _local_events(job, as_json)
    with connect(server) as client, shown(as_json, bars=follow, lines=True) as show_event:
        if not follow:
            for event in so_far(client, job, after):
                show_event(event)
            return 0
        return _attended(job, lambda: follow_job(client, job, show_event, after))


@jobs.command()
@click.argument("job")
@server_option
@json_option
def metrics(job: str, server: str, as_json: bool) -> None:
    """Show the figures of JOB."""
    from tutelage_server.cli.job_pages import print_metrics

    with connect(server) as client:
        found = client.get(f"{_place(job)}/metrics")
    if as_json:
        print_json(found)
    else:
        print_metrics(found)


def _asks(verb: str, text: str) -> click.Command:
    """A command that asks the server to do one thing with jobs."""

    @click.argument("names", nargs=-1, required=True, metavar="JOB...")
    @server_option
    @json_option
    def ask(names: tuple[str, ...], server: str, as_json: bool) -> None:
        from tutelage.errors import TutelageError

        with connect(server) as client:
            answers, problems = each_of(names, lambda name: client.post(f"{_place(name)}/{verb}"))
        if as_json:
            print_json(answers)
        else:
            for answer in answers:
                click.echo(f"{answer['id']}\t{answer['state']}")
                if answer["wanted"] != "run" and answer["state"] in ("starting", "running"):
                    say(f"{answer['id']} is asked to save and stop; see: tutelage jobs show {answer['id']}")
        if problems:
            raise TutelageError(problems)

    return click.command(verb, help=text)(ask)


jobs.add_command(_asks("cancel", "End JOBs for good; one that runs is asked to save and stop first."))
jobs.add_command(_asks("pause", "Let JOBs save and stop, and give back their devices, until they are resumed."))
jobs.add_command(_asks("resume", "Let JOBs go on: paused ones, and those that waited for people who are done."))
jobs.add_command(_asks("retry", "Make new jobs of failed or cancelled JOBs, which go on from their last checkpoints."))


@jobs.command()
@click.argument("names", nargs=-1, required=True, metavar="JOB...")
@server_option
@json_option
def wait(names: tuple[str, ...], server: str, as_json: bool) -> int:
    """Wait until JOBs have ended, or wait for people; the exit code tells how (the worst, of several)."""
    from tutelage_server.cli.following import follow

    codes = []
    with connect(server) as client:
        for name in names:
            codes.append(_attended(name, lambda name=name: follow(client, name), as_json))
            if codes[-1] == 130:
                break
    return worst(codes)


@jobs.group()
def artifacts() -> None:
    """List and fetch what jobs made."""


@artifacts.command("list")
@click.argument("job")
@server_option
@json_option
def list_artifacts(job: str, server: str, as_json: bool) -> None:
    """List the files that JOB made, with sizes and checksums."""
    from tutelage_server.cli.fetching import artifacts_of
    from tutelage_server.cli.job_pages import print_artifacts

    with connect(server) as client:
        found = artifacts_of(client, job)
    if as_json:
        print_json(found)
    else:
        print_artifacts(found)


@artifacts.command()
@click.argument("job")
@click.argument("wanted", nargs=-1, metavar="[PATH]...")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to fetch into; by default ./runs/NAME.")
@server_option
@json_option
def get(job: str, wanted: tuple[str, ...], out: Path | None, server: str, as_json: bool) -> None:
    """Fetch what JOB made, or only PATHs (files or folders of `artifacts list`), with verified checksums.

    A fetch that broke off goes on where it was. Without PATH and --out all of it becomes a run that every command knows
    by its name: `tutelage generate NAME`.
    """
    from tutelage_server.cli.fetching import artifacts_of, fetch_files, fetch_run, show_fetched

    with connect(server) as client:
        found = client.get(_place(job))
        if out is None and not wanted:
            folder = fetch_run(client, found)
        else:
            folder = out or Path()
            fetch_files(client, found["id"], _chosen(artifacts_of(client, found["id"]), wanted), folder)
    if as_json:
        print_json({"job": found["id"], "folder": str(folder)})
    elif out is None and not wanted:
        show_fetched(folder, found)
    else:
        say(f"fetched into {folder} (checksums verified)")


@jobs.command("open")
@click.argument("job")
@server_option
@json_option
def open_report(job: str, server: str, as_json: bool) -> None:
    """Fetch the report of JOB and open it in a browser."""
    import tempfile

    from tutelage_server.cli.fetching import artifacts_of, fetch_files

    folder = Path(tempfile.mkdtemp(prefix="tutelage-"))
    with connect(server) as client:
        job = job.removeprefix("job:")
        fetch_files(client, job, _chosen(artifacts_of(client, job), ("report.html",)), folder)
    report = folder / "report.html"
    if as_json:
        print_json({"job": job, "report": str(report)})
    else:
        click.echo(str(report))
    click.launch(str(report))


@jobs.command()
@click.argument("job")
@click.option("--person", default="", help="Who you are; your login name by default.")
@click.option("--stage", default="", help="The ranking stage, where a recipe has several.")
@local_option
@server_option
@json_option
def rank(job: str, person: str, stage: str, local: bool, server: str, as_json: bool) -> int:
    """Rank the answers that JOB waits for: order them best to worst, not knowing who wrote them.

    Every judgement is sent the moment it is given; stop whenever you like. Several people can rank at once.
    """
    from tutelage_server.cli.ranking import session

    if local:
        from tutelage.cli.rank import rank as rank_run

        context = click.get_current_context()
        code: int = context.invoke(rank_run, run=job, person=person, stage=stage, as_json=as_json)
        return code
    with connect(server) as client:
        return session(client, job.removeprefix("job:"), person, stage, as_json)


def worst(codes: list[int]) -> int:
    """The exit code of several jobs: left, lost, failed, cancelled, waiting, succeeded, in this order."""
    return next((code for code in (130, 5, 1, 4, 3) if code in codes), 0)


def _attended(job: str, wait_for: Any, as_json: bool = False) -> int:
    """Follow a job and turn its end into an exit code; Ctrl-C leaves it to go on."""
    from tutelage_server.cli.following import told

    try:
        found = wait_for()
    except KeyboardInterrupt:
        say(detached(job))
        return 130
    if as_json:
        print_json(found)
    told(found)
    return EXIT_CODES[found["state"]]


def detached(job: str) -> str:
    """What somebody reads who left a job that goes on."""
    return f"left; {job} goes on. Come back with: tutelage jobs events -f {job}"


def _chosen(found: list[dict[str, Any]], wanted: tuple[str, ...]) -> list[dict[str, Any]]:
    """Those files that are named, or lie in folders that are; all when none is named.

    Raises:
        TutelageError: when a name is none of them.
    """
    from tutelage.config import did_you_mean
    from tutelage.errors import Problem, TutelageError

    names = [each["path"] for each in found]
    problems = [
        Problem(place=path, wrong="the job made no such file or folder", fix=did_you_mean(path, names))
        for path in wanted
        if not any(_below(name, path) for name in names)
    ]
    if problems:
        raise TutelageError(problems)
    return [each for each in found if not wanted or any(_below(each["path"], path) for path in wanted)]


def _below(name: str, path: str) -> bool:
    return name == path or name.startswith(path.rstrip("/") + "/")


def _local_events(run: str, as_json: bool) -> int:
    """A run's own events, as they were shown while it went on."""
    from tutelage.cli.views import sentence
    from tutelage.runs.listing import find_run

    for event in find_run(run).events():
        line = "" if as_json else sentence(event)
        if as_json:
            print_json(event)
        elif line:
            click.echo(line)
    return 0


def _place(job: str) -> str:
    from tutelage_server.client.client import segment

    return f"/v1/jobs/{segment(job.removeprefix('job:'))}"
