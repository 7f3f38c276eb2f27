"""A person orders the answers that a job waits for; every judgement is sent the moment it is given."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from tutelage.cli.rank_views import HELP, JsonLines, Lines, View, harmless, login_name, read_line
from tutelage_server.cli.calling import say

if TYPE_CHECKING:
    from tutelage_server.client.client import Client

Desk = dict[str, Any]


def session(client: Client, job_id: str, person: str, stage: str, as_json: bool) -> int:
    """Ask until nothing is left or the person stops; 130 when they stopped with Ctrl-C.

    Raises:
        ServerRefused: when the job has nothing to rank, or the key may not.
        ConnectionLost
    """
    from tutelage_server.client.client import segment

    person = person or login_name()
    place = f"/v1/jobs/{segment(job_id)}/rankings"
    view: View = JsonLines() if as_json else Lines()
    desk: Desk = client.get(place, person=person, stage=stage or None)
    if not as_json:
        say(HELP)
    code = 0
    try:
        while desk["question"] is not None:
            _show(desk["question"], view)
            after = _answered(client, place, desk, view)
            if after is None:
                break
            desk = after
    except (KeyboardInterrupt, click.Abort):
        code = 130
    view.said("end", _how_far(desk, job_id))
    return code


def _show(question: dict[str, Any], view: View) -> None:
    answers = {letter: harmless(text) for letter, text in question["answers"].items()}
    view.question(question["number"], question["of"], harmless(question["prompt"]), answers)


def _answered(client: Client, place: str, desk: Desk, view: View) -> Desk | None:
    """Read lines until one leads to another question: the desk then; None when the person stops."""
    from tutelage_server.client.client import ServerRefused

    began = time.monotonic()
    said = {"person": desk["person"], "stage": desk["stage"], "question": desk["question"]["id"]}
    while (line := read_line()) is not None:
        word = line.lower()
        if word in ("quit", "q", "exit"):
            return None
        if not line:
            continue
        try:
            if line == "?":
                view.said("help", HELP)
            elif line.startswith("?"):
                client.post(place, {**said, "comment": line[1:].strip()})
                view.said("noted", "noted")
            elif word == "undo":
                desk = client.post(place, {"person": desk["person"], "stage": desk["stage"], "undo": True})
                view.said("undone", "the last answer is taken back")
                return desk
            else:
                seconds = round(time.monotonic() - began, 1)
                desk = client.post(place, {**said, "order": word, "seconds": seconds})
                view.said("saved", "saved")
                return desk
        except ServerRefused as error:
            view.said("problem", str(error))
            if error.status == 409:  # answered in another window meanwhile
                return client.get(place, person=said["person"], stage=said["stage"])  # type: ignore[no-any-return]
    return None


def _how_far(desk: Desk, job_id: str) -> str:
    rest = f"{desk['left']} of yours are left" if desk["left"] else "all of yours are done: thank you"
    so_far = f"{desk['given']} of {desk['wanted']} judgements are in"
    return f"{rest}; {so_far}" + (f"; go on with: tutelage jobs resume {job_id}" if desk["enough"] else "")
