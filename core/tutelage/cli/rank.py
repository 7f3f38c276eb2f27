"""`tutelage rank`: a person orders answers; also how it goes, and exchange with other tools."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tutelage.cli.output import json_option, print_json, table
from tutelage.cli.rank_views import HELP, JsonLines, Lines, View, harmless, login_name, read_line

if TYPE_CHECKING:
    from tutelage.ranking.desk import Desk
    from tutelage.ranking.figures import Figures, PersonFigures
    from tutelage.ranking.tasks import Task
    from tutelage.runs.folder import StageRecord


@click.command()
@click.argument("run")
@click.option("--person", default="", help="Who you are; your login name by default.")
@click.option("--stage", default="", help="The ranking stage, where a run has several.")
@click.option("--more", is_flag=True, help="When yours are done, take what others have not answered.")
@click.option("--status", is_flag=True, help="Show who has done what, how far people agree, and who looks careless.")
@click.option("--export", "export_to", type=click.Path(path_type=Path), help="Write the questions for another tool.")
@click.option("--import", "import_from", type=click.Path(path_type=Path), help="Take judgements from such a file.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["jsonl", "argilla", "label-studio"]),
    default="jsonl",
    show_default=True,
    help="How the file is written; a .json file is a list, any other has a row a line.",
)
@json_option
def rank(
    run: str,
    person: str,
    stage: str,
    more: bool,
    status: bool,
    export_to: Path | None,
    import_from: Path | None,
    kind: str,
    as_json: bool,
) -> int:
    """Rank the answers that RUN waits for: order them best to worst, not knowing who wrote them.

    Every answer is saved the moment it is given; stop whenever you like. Several people can rank at once.
    """
    from tutelage.ranking.asking import desk_of
    from tutelage.runs.listing import find_run

    if sum([status, export_to is not None, import_from is not None]) > 1:
        raise click.UsageError("give one of --status, --export and --import")
    found = find_run(run)
    desk, record = desk_of(found, stage)
    if status:
        _status(desk, run, record, as_json)
    elif export_to is not None:
        _export(desk, export_to, kind, person, as_json)
    else:
        _refuse(desk, run, record)
        if import_from is not None:
            _import(desk, import_from, kind, person, run, as_json)
        else:
            return _session(desk, person or login_name(), more, run, as_json)
    return 0


def _refuse(desk: Desk, run: str, stage: StageRecord) -> None:
    from tutelage.errors import TutelageError

    if desk.plan.simulated:
        wrong = f"nobody is asked here: the reward {desk.plan.simulated} stands in for people"
        again = f"tutelage resume {shlex.quote(run)} --set stages.{stage.name}.phase.simulated=null"
        raise TutelageError.at(run, wrong, f"to ask people: {again}")
    if stage.state == "succeeded":
        status = f"tutelage rank {shlex.quote(run)} --status"
        raise TutelageError.at(run, "its rankings were made into data already", f"to see them: {status}")


def _export(desk: Desk, path: Path, kind: str, person: str, as_json: bool) -> None:
    from tutelage.ranking.exchange import export
    from tutelage.ranking.shapes import LABEL_STUDIO_CONFIG, QUESTION

    if person:
        desk.join(person)
    rows = export(desk, path, kind, person)
    if as_json:
        print_json({"file": str(path), "as": kind, "rows": rows})
        return
    click.echo(f"{rows} rows in {path}")
    if kind == "label-studio":
        click.echo(f"labelling interface: {LABEL_STUDIO_CONFIG}")
    if kind == "argilla":
        names = [f"answer-{number}" for number in range(1, 1 + max(len(task.answers) for task in desk.plan.tasks))]
        click.echo(f"fields: prompt, {', '.join(names)}; a RankingQuestion {QUESTION!r} with values {names}")


def _import(desk: Desk, path: Path, kind: str, person: str, run: str, as_json: bool) -> None:
    from tutelage.ranking.exchange import read_judgements

    found = read_judgements(desk, path, kind, person)
    if as_json:
        print_json(
            {"file": str(path), "as": kind, "judgements": found.judgements, "known": found.known, "open": found.open}
        )
        return
    click.echo(f"{found.judgements} judgements taken, {found.known} known before, {found.open} rows not judged")
    click.echo(_how_far(desk, run))


def _how_far(desk: Desk, run: str) -> str:
    given, wanted = desk.given(), desk.plan.wanted
    if given < wanted:
        return f"{given} of {wanted} judgements are in"
    return f"{given} of {wanted} judgements are in; go on with: tutelage resume {shlex.quote(run)}"


def _status(desk: Desk, run: str, stage: StageRecord, as_json: bool) -> None:
    from tutelage.ranking.figures import figures, sentence

    found = figures(desk)
    if as_json:
        print_json(found)
        return
    if found.simulated:
        click.echo(f"simulated: the reward {found.simulated} ranks, no person does")
    if stage.state == "succeeded":
        click.echo(f"{found.given} judgements of {found.questions} prompts were made into data")
    else:
        click.echo(f"{_how_far(desk, run)} (of {found.questions} prompts)")
    for name, text in _agreement(found):
        click.echo(f"{name}: {text}")
    columns = ["person", "done", "bad", "skipped", "seconds", "tau with others", "known answers right", "looks"]
    if found.people:
        table(columns, [_row(person) for person in found.people], right=set(columns[1:7]))
    for person in found.doubtful:
        click.echo(f"note: {sentence(person)}")


def _agreement(found: Figures) -> list[tuple[str, str]]:
    rows = [
        ("Krippendorff's alpha (ordinal)", found.alpha, found.alpha_interval),
        ("Kendall's tau-b", found.tau, found.tau_interval),
    ]
    told = [(name, _with_interval(value, interval)) for name, value, interval in rows if value is not None]
    if found.pairs_alike is not None:
        told.append(("pairs of answers ordered alike", f"{found.pairs_alike:.0%}"))
    return told or [("agreement", "not known before two people have ranked the same answers")]


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})" if interval else f"{value:.2f}"


def _row(person: PersonFigures) -> list[str]:
    looks = person.look.verdict + (" (excluded)" if person.excluded else "")
    if person.look.p is not None:
        looks += f", p {person.look.p:.2g}"
    return [
        person.name,
        f"{person.answered}/{person.asked}",
        str(person.bad),
        str(person.skipped),
        "–" if person.seconds is None else f"{person.seconds:.0f}",
        _with_interval(person.tau, person.tau_interval),
        "–" if person.gold_right is None else f"{person.gold_right:.0%} of {person.gold}",
        looks,
    ]


def _session(desk: Desk, person: str, more: bool, run: str, as_json: bool) -> int:
    """Ask until nothing is left or the person stops; 130 when they stopped with Ctrl-C."""
    view: View = JsonLines() if as_json else Lines()
    desk.join(person)
    if not as_json:
        click.echo(HELP, err=True)
    try:
        _ask(desk, person, more, view)
        code = 0
    except (KeyboardInterrupt, click.Abort):
        code = 130
    except OSError as error:  # the terminal is gone, and with it everybody who could be told
        raise BrokenPipeError from error
    left = len(desk.pending(person))
    rest = f"{left} of yours are left" if left else "all of yours are done: thank you"
    view.said("end", f"{rest}; {_how_far(desk, run)}")
    return code


def _ask(desk: Desk, person: str, more: bool, view: View) -> None:
    again: Task | None = None
    while True:
        pending = [again] if again else desk.pending(person, more)
        if not pending:
            view.said("done", "nothing is left to rank; undo takes the last answer back, Enter ends")
            again = _undo(desk, person, view) if read_line() == "undo" else None
            if again is None:
                return
        else:
            _show(desk, person, pending[0], view)
            answered = _answer(desk, person, pending[0], view)
            if answered is None:
                return
            again = answered if answered is not pending[0] else None


def _show(desk: Desk, person: str, task: Task, view: View) -> None:
    """Show a question, with its answers in the order of this person."""
    from tutelage.ranking.asking import lettered
    from tutelage.ranking.shapes import text_of

    total = len(desk.assigned(person))
    number = total - len(desk.pending(person)) + 1
    answers = {letter: harmless(text) for letter, text in lettered(desk, person, task).items()}
    view.question(number, max(number, total), harmless(text_of(task.prompt)), answers)


def _answer(desk: Desk, person: str, task: Task, view: View) -> Task | None:
    """Read lines until one answers the question: then the question; after `undo` the one to ask again; None to stop."""
    from tutelage.errors import TutelageError
    from tutelage.ranking.asking import judge_typed

    began = time.monotonic()
    while (line := read_line()) is not None:
        word = line.lower()
        if word in ("quit", "q", "exit"):
            return None
        try:
            if word == "undo":
                taken = _undo(desk, person, view)
                if taken is not None:
                    return taken
            elif line.startswith("?"):
                _comment(desk, person, task, line[1:].strip(), view)
            elif line:
                judge_typed(desk, person, task, word, round(time.monotonic() - began, 1))
                view.said("saved", "saved")
                return task
        except ValueError as error:
            view.said("problem", f"{error}")
        except TutelageError as error:
            view.said("problem", str(error))
            if error.problems[0].place == "rank":  # answered in another window meanwhile
                return task
    return None


def _undo(desk: Desk, person: str, view: View) -> Task | None:
    taken = desk.undo(person)
    if taken is None:
        view.said("problem", "there is nothing to take back")
    else:
        view.said("undone", "the last answer is taken back")
    return taken


def _comment(desk: Desk, person: str, task: Task, text: str, view: View) -> None:
    if text:
        desk.comment(person, task, text)
        view.said("noted", "noted")
    else:
        view.said("help", HELP)
