"""`tutelage review`: people look at a sample and sign; anyone can verify."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutelage.cli.output import is_terminal, json_option, print_json

if TYPE_CHECKING:
    from tutelage_advisor.audit import Audit
    from tutelage_advisor.review import State, Verification
    from tutelage_advisor.review.reviewing import Shown


class _StartByDefault(click.Group):
    """`review DATA` means `review start DATA`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["start", *args]
        return super().parse_args(ctx, args)


who_option = click.option("--as", "who", default="", help="Who you are; your login name by default.")


@click.group(cls=_StartByDefault)
def review() -> None:
    """Let people sign that data is accurate, unbiased and appropriate.

    `tutelage review DATA` chooses rows (those with findings first, then some of every cluster) and asks about each.
    What is decided is kept in DATA.review, a record to which lines are only added, each with the last one's hash.
    """


@review.command()
@click.argument("data")
@click.option("--sample", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Rows to look at.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Chooses other rows.")
@click.option(
    "--decisions",
    type=click.Path(path_type=Path),
    help="JSON Lines with row, accurate, unbiased, appropriate and note, instead of questions.",
)
@who_option
@json_option
def start(data: str, sample: int, seed: int, decisions: Path | None, who: str, as_json: bool) -> None:
    """Choose rows of DATA and decide on them; goes on where it was left. --json prints the rows that are pending."""
    from tutelage_advisor.review import begin, decide, shown

    who = who or _login()
    state = begin(data, who, _audit(data), sample, seed)
    if decisions:
        state = decide(data, who, _read_decisions(decisions))
    elif not as_json:
        state = _ask(data, who, state)
    if as_json:
        print_json(
            {
                "data": data,
                "pending": shown(data, state.pending),
                "decided": len(state.decided),
                "head": state.entries[-1].hash,
            }
        )
        return
    click.echo(f"{len(state.decided)} rows decided, {len(state.pending)} pending")
    if not state.pending:
        click.echo(f"Sign with: tutelage review sign {data}")


@review.command()
@click.argument("data")
@who_option
@json_option
def sign(data: str, who: str, as_json: bool) -> None:
    """Sign for DATA as it is now, and write its data card."""
    from tutelage_advisor.review import sign as sign_data
    from tutelage_advisor.review import write_card

    entry = sign_data(data, who or _login())
    card = write_card(data, _audit(data))
    if as_json:
        print_json({"data": data, "who": entry.who, "at": entry.at, "head": entry.hash, "card": str(card)})
        return
    click.echo(f"{entry.who} signed for {data} at {entry.at}\nhead of the record: {entry.hash}\ndata card: {card}")


@review.command()
@click.argument("data")
@click.option("--head", default="", help="The head that you were told: the record must hold it.")
@json_option
@click.pass_context
def verify(ctx: click.Context, data: str, head: str, as_json: bool) -> None:
    """Check that nobody tampered with the review of DATA, nor changed a row since it was signed. Exits 1 if so."""
    from tutelage_advisor.review import verify as verify_data

    found = verify_data(data, head)
    if as_json:
        print_json(found)
    else:
        _show_verification(data, found)
    if not found.ok:
        ctx.exit(1)


@review.command()
@click.argument("data")
@json_option
def card(data: str, as_json: bool) -> None:
    """Write the data card of DATA beside it."""
    from tutelage_advisor.review import write_card

    path = write_card(data, _audit(data))
    if as_json:
        print_json({"data": data, "card": str(path)})
    else:
        click.echo(f"data card: {path}")


def _audit(data: str) -> Audit:
    from tutelage_advisor.audit import audit
    from tutelage_advisor.cli.audit import with_progress

    return with_progress(lambda progress: audit(data, progress=progress))


def _ask(data: str, who: str, state: State) -> State:
    """Show each pending row and ask; every answer is noted at once, so that stopping loses nothing."""
    import sys

    from tutelage.errors import TutelageError
    from tutelage_advisor.review import decide, shown

    if state.pending and not is_terminal(sys.stdin):
        raise TutelageError.at(
            "review", "can only ask on a terminal", "give --decisions FILE, or --json to list the rows"
        )
    rows = shown(data, state.pending)
    for at, row in enumerate(rows, 1):
        _show_row(row, at, len(rows))
        answer = click.prompt(
            "[y] good  [a] not accurate  [b] biased  [i] inappropriate  [q] stop", default="y"
        ).lower()
        if "q" in answer:
            break
        note = "" if answer == "y" else click.prompt("why", default="", show_default=False)
        decision = {
            "row": row.item.row,
            "accurate": "a" not in answer,
            "unbiased": "b" not in answer,
            "appropriate": "i" not in answer,
            "note": note,
        }
        state = decide(data, who, [decision])
    return state


def _show_row(row: Shown, at: int, total: int) -> None:
    click.secho(f"\n{at} of {total}: {row.item.place} ({row.item.stratum})", bold=True)
    if row.error:
        click.secho(row.error, fg="red")
    for role, text in row.turns:
        click.echo(f"{click.style(role, fg='cyan')}: {text}")


def _show_verification(data: str, found: Verification) -> None:
    if found.ok:
        last = found.signatures[-1]
        click.echo(f"{data} is as {last.who} signed it at {last.at}\nhead of the record: {found.head}")
    for problem in found.problems:
        click.echo(f"{click.style('not valid:', fg='red', bold=True)} {problem}")


def _read_decisions(path: Path) -> list[dict[str, Any]]:
    import msgspec

    from tutelage.errors import TutelageError

    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TutelageError.at(str(path), f"can't be read: {error.strerror}") from None
    decisions = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                decisions.append(msgspec.json.decode(line, type=dict[str, Any]))
            except (msgspec.DecodeError, UnicodeError):
                raise TutelageError.at(
                    f"{path} line {number}", "is not a JSON object", "write one decision a line"
                ) from None
    return decisions


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        from tutelage.errors import TutelageError

        raise TutelageError.at("--as", "your login name is not known", "say who you are with --as") from None
