"""Attempts as jobs of a Ray cluster that shares a disk with this machine, by Ray's Jobs REST API.

A job's submission id is the attempt's name, and Ray takes no second job of an id. Whoever may call that API may run
anything on the cluster, so the address of another machine needs a token (`RAY_AUTH_MODE=token` on the cluster).

Ray gives a job that it stops three seconds, which is too few to save in, and shows whoever may list jobs their
variables. So an attempt runs below a keeper that takes both its variables and what is asked of it from files in the
attempt's folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Meta

import tutelage
from tutelage.errors import Problem, TutelageError
from tutelage.launcher import Launch, Launcher, LauncherUnreachable, Resources, Status
from tutelage.runs.attempt import CLOSED, OUTCOME, claims, close
from tutelage.runs.files import write_atomically
from tutelage_plugins.launchers import keeper, outcomes
from tutelage_plugins.launchers.environment import cores

if TYPE_CHECKING:
    import httpx

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LIVING = ("PENDING", "RUNNING")
LOST = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")
"Ray's types of errors that say that the process which watched the job is gone, mostly with its node."


class Job(msgspec.Struct):
    """What Ray says of a job, as far as it is needed here."""

    status: str
    submission_id: str | None = None
    message: str | None = None
    error_type: str | None = None
    driver_node_id: str | None = None


class Ray(Launcher):
    """Attempts as jobs of a Ray cluster that shares a disk with this machine."""

    name = "ray"

    class Config(tutelage.Config):
        """Which cluster, and how to be let in."""

        address: Annotated[str, Meta(description="Of the cluster's dashboard.")] = "http://127.0.0.1:8265"
        token_file: Annotated[str, Meta(description="File of the cluster's token; else $RAY_AUTH_TOKEN is used.")] = ""
        certificates: Annotated[str, Meta(description="PEM file of the authorities to trust; empty: the usual.")] = ""
        allow_plain_http: Annotated[bool, Meta(description="Send the token to another machine without TLS.")] = False
        python: Annotated[str, Meta(description="Python of the nodes, with tutelage installed; empty: this one.")] = ""
        resources: Annotated[
            dict[str, float],
            Meta(description="Further resources that an attempt's entry point needs, as Ray has them."),
        ] = {}
        autoscaling: Annotated[bool, Meta(description="The cluster may get larger nodes than it has now.")] = False
        seconds: Annotated[float, Meta(gt=0, le=60, description="Patience with an answer of the cluster.")] = 30.0

        def __post_init__(self) -> None:
            parts = urlsplit(self.address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"address is {self.address!r}; write it as http://127.0.0.1:8265")
            if parts.hostname in LOOPBACK:
                return
            if not (self.token_file or os.environ.get("RAY_AUTH_TOKEN")):
                raise ValueError(
                    "token_file is needed, for the address is another machine's and Ray runs whatever it is sent: "
                    "start the cluster with RAY_AUTH_MODE=token and name the file of its token"
                )
            if parts.scheme == "http" and not self.allow_plain_http:
                raise ValueError("the token would travel unencrypted: use https, or set allow_plain_http")

    @classmethod
    def missing(cls) -> str:
        """Needs httpx here, and Ray on the cluster."""
        if importlib.util.find_spec("httpx") is None:
            return "httpx is not installed; get it with: pip install 'tutelage[server]'"
        return ""

    def problems(self, resources: Resources) -> list[Problem]:
        """Whether the cluster has enough nodes that are large enough."""
        if self.config.autoscaling:
            return []
        answer = self._ask("GET", "/api/v0/nodes?detail=true&limit=10000")
        nodes = [node.get("resources_total", {}) for node in answer["data"]["result"]["result"] if _is_up(node)]
        asked = _resources(resources)
        if sum(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes) < resources.nodes:
            wrong = f"the cluster has no {resources.nodes} nodes with {_listed(asked)}: {len(nodes)} are up"
            return [Problem(place="resources", wrong=wrong, fix="ask for less, or set autoscaling where it can grow")]
        return []

    def launch(self, launch: Launch) -> str:
        """Submit a job, unless the cluster has one of this name already."""
        if self.find(launch):
            return launch.name
        folder, resources = launch.folder.resolve(), launch.resources
        keeper.write_environment(folder, self._variables(launch))
        words = keeper.command(
            folder,
            memory_gib=resources.memory_gib if resources.nodes == 1 else None,
            by_files=True,
            python=self._python,
        )
        body: dict[str, Any] = {"entrypoint": f"exec {shlex.join(words)}", "submission_id": launch.name}
        if resources.nodes == 1:
            body["entrypoint_num_cpus"] = resources.cpus
            body["entrypoint_num_gpus"] = resources.gpus
            if resources.memory_gib:
                body["entrypoint_memory"] = int(resources.memory_gib * 2**30)
        if self.config.resources:
            body["entrypoint_resources"] = self.config.resources
        try:
            self._ask("POST", "/api/jobs/", body)
        except Refused as error:
            if self.find(launch):  # by somebody else in between
                return launch.name
            raise TutelageError.at(launch.name, f"Ray refuses the job: {error.said}", "see the cluster's log") from None
        return launch.name

    def find(self, launch: Launch) -> str:
        """An attempt's name, when the cluster has a job of that id, or its folder says that it had."""
        job = self._ask("GET", f"/api/jobs/{quote(launch.name, safe='')}", absent=None)
        return launch.name if job is not None or claims(launch.folder) else ""

    def statuses(self, attempts: dict[str, Launch]) -> dict[str, Status]:
        """What the cluster's list of jobs says."""
        listed = msgspec.convert(self._ask("GET", "/api/jobs/"), list[Job])
        jobs = {job.submission_id: job for job in listed}
        return {handle: _status(launch, jobs.get(launch.name)) for handle, launch in attempts.items()}

    def stop(self, handle: str, launch: Launch) -> None:
        """The keeper sees the closed folder and sends SIGTERM; what has not begun is taken off Ray's list."""
        if not close(launch.folder):
            self._end(launch)

    def kill(self, handle: str, launch: Launch) -> None:
        """The keeper ends everything; Ray ends the keeper."""
        close(launch.folder)
        write_atomically(launch.folder / keeper.KILL, b"{}\n")
        self._end(launch)

    def _end(self, launch: Launch) -> None:
        self._ask("POST", f"/api/jobs/{quote(launch.name, safe='')}/stop", absent=None)

    @property
    def _python(self) -> str:
        return self.config.python or sys.executable

    def _variables(self, launch: Launch) -> dict[str, str]:
        resources = launch.resources
        own = {"TUTELAGE_ATTEMPT": launch.name}
        if resources.nodes > 1:
            words = [self._python, "-P", "-m", "tutelage_plugins.launchers.ray_nodes", f"--nodes={resources.nodes}"]
            own["TUTELAGE_NODES"] = str(resources.nodes)
            own["TUTELAGE_SPREAD"] = json.dumps([*words, f"--resources={json.dumps(_resources(resources))}", "--"])
        return {**cores(resources), **launch.environment, **own}

    def _ask(self, method: str, path: str, body: Any = None, **answers: Any) -> Any:
        """Call the API; `absent` is the answer in place of a 404.

        Raises:
            LauncherUnreachable: when there is no answer, or none that says anything of the jobs.
            Refused: when the cluster refuses it.
        """
        import httpx

        try:
            with self._client() as client:
                response = client.request(method, path, json=body)
        except (httpx.HTTPError, OSError) as error:
            raise _unreachable(f"{type(error).__name__}: {error}") from error
        if response.status_code == 404 and "absent" in answers:
            return answers["absent"]
        if response.status_code in (401, 403):
            raise _unreachable("it wants a token" if response.status_code == 401 else "it refuses this token")
        said = next((line for line in reversed(response.text.splitlines()) if line.strip()), "")[:500]
        if response.status_code == 400 or (response.status_code == 500 and "ValueError" in response.text):
            raise Refused(said)
        if response.status_code != 200:
            raise _unreachable(f"it answers {response.status_code}: {said}")
        try:
            return response.json()
        except ValueError:
            raise _unreachable(f"it answers with something that is not JSON: {said}") from None

    def _client(self) -> httpx.Client:
        import ssl

        import httpx

        token = os.environ.get("RAY_AUTH_TOKEN", "")
        if self.config.token_file:
            token = Path(self.config.token_file).read_text(encoding="ascii").strip()
        trusted = ssl.create_default_context(cafile=self.config.certificates) if self.config.certificates else True
        return httpx.Client(
            base_url=self.config.address,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=self.config.seconds,
            verify=trusted,
        )


class Refused(Exception):
    """The cluster was asked, and refuses."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


def _status(launch: Launch, job: Job | None) -> Status:
    if job is None:
        if not claims(launch.folder):
            return Status(state="absent")
        told = outcomes.ended(launch.folder, "")
        if told.why == "killed" and not (launch.folder / OUTCOME).exists():  # Ray forgets jobs with its head node
            return msgspec.structs.replace(told, why="node-lost", detail="Ray knows no such job any more")
        return told
    where = f"Ray node {job.driver_node_id}" if job.driver_node_id else ""
    if not claims(launch.folder) and (launch.folder / CLOSED).exists():
        # Ray keeps a job until it has room for it, stopped or not; a closed folder will then end it at once.
        return outcomes.ended(launch.folder, where)
    if job.status == "PENDING" or (job.status == "RUNNING" and not claims(launch.folder)):
        return Status(state="pending", detail=(job.message or "")[:500])
    if job.status in LIVING:
        return Status(state="running", where=where)
    told = outcomes.ended(launch.folder, where)
    if told.why != "killed" or (launch.folder / OUTCOME).exists() or (launch.folder / keeper.ENDED).exists():
        return told
    why: Literal["node-lost", "cancelled", "killed"] = "node-lost" if job.error_type in LOST else "killed"
    if job.status == "STOPPED":
        why = "cancelled"
    detail = (job.message or "")[-500:]
    return Status(state="ended", why=why, exit_code=outcomes.KILLED, where=where, detail=detail)


def _resources(resources: Resources) -> dict[str, float]:
    """What each node gives, as Ray calls it."""
    wanted = {"CPU": float(resources.cpus), "GPU": float(resources.gpus)}
    wanted["memory"] = float(int((resources.memory_gib or 0) * 2**30))
    return {name: amount for name, amount in wanted.items() if amount}


def _listed(resources: dict[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in resources.items())


def _is_up(node: dict[str, Any]) -> bool:
    return node.get("state") == "ALIVE"


def _unreachable(said: str) -> LauncherUnreachable:
    return LauncherUnreachable.at("ray", f"the cluster can't be asked now: {said}", "jobs go on as they are")
