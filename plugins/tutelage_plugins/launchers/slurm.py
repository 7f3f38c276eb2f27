"""Attempts as batch jobs of a Slurm cluster that shares a disk with this machine.

A job is known by its name, which is the attempt's: an answer that was lost loses no job. Slurm starts a job again when
its node fails or it is preempted; the attempt then goes on from the run's last checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta

import tutelage
from tutelage.errors import Problem, TutelageError
from tutelage.launcher import Launch, Launcher, LauncherUnreachable, Resources, Status
from tutelage.runs.attempt import CLOSED, OUTCOME, claims, close, last_outcome, last_start
from tutelage_plugins.launchers import outcomes
from tutelage_plugins.launchers.environment import environment, essential

SCRIPT = '#!/bin/sh\nexec "$TUTELAGE_PYTHON" -P -m tutelage.runs.attempt "$TUTELAGE_ATTEMPT_FOLDER"\n'
"The same for every job: whatever differs comes in variables, so nothing of it is ever read as shell."

COLUMNS = {"JobID": 24, "Name": 128, "State": 24, "Reason": 64, "RestartCnt": 12, "exit_code": 12, "NodeList": 256}

Why = Literal["", "exited", "killed", "node-lost", "time-limit", "memory-limit", "cancelled", "preempted"]
ENDS: dict[str, Why] = {
    "COMPLETED": "exited",
    "FAILED": "exited",
    "CANCELLED": "cancelled",
    "TIMEOUT": "time-limit",
    "DEADLINE": "time-limit",
    "NODE_FAIL": "node-lost",
    "BOOT_FAIL": "node-lost",
    "OUT_OF_MEMORY": "memory-limit",
    "PREEMPTED": "preempted",
}
"States that a job doesn't leave (squeue.1, JOB STATE CODES), and why it ended. All but PENDING's kind are running."

PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}

AWAY = re.compile(
    "unable to contact|connect|timed out|zero bytes|temporarily|try again|authentication|munge"
    "|configuration (source|file)|backup|communication|protocol",
    re.IGNORECASE,
)
"Words by which Slurm's programs say that it was not asked, in place of that it refused."


class Job(NamedTuple):
    """A line of squeue's or sacct's."""

    id: str
    name: str
    state: str
    reason: str
    restarts: int
    exit_code: int
    nodes: str


class Slurm(Launcher):
    """Attempts as batch jobs of a Slurm cluster that shares a disk with this machine."""

    name = "slurm"

    class Config(tutelage.Config):
        """Which cluster, and how jobs are asked for; what is empty is left to the cluster."""

        partition: Annotated[str, Meta(description="sbatch --partition.")] = ""
        account: Annotated[str, Meta(description="sbatch --account.")] = ""
        qos: Annotated[str, Meta(description="sbatch --qos.")] = ""
        constraint: Annotated[str, Meta(description="sbatch --constraint: features that nodes must have.")] = ""
        gpu: Annotated[str, Meta(description="Kind of GPU, as the cluster calls it (a100).")] = ""
        extra: Annotated[list[str], Meta(description="Further options of sbatch, one a word: --exclusive.")] = []
        conf: Annotated[str, Meta(description="The cluster's slurm.conf, where it is not the usual one.")] = ""
        python: Annotated[str, Meta(description="Python of the nodes, with tutelage installed; empty: this one.")] = ""
        inherit: Annotated[list[str], Meta(description="Variables of the server that attempts may see.")] = []
        seconds: Annotated[float, Meta(gt=0, le=60, description="Patience with an answer of the cluster.")] = 30.0
        grace: Annotated[int, Meta(ge=0, le=3600, description="Seconds before a time limit to save in.")] = 120

    @classmethod
    def missing(cls) -> str:
        """Needs Slurm's own programs."""
        lacking = [program for program in ("sbatch", "squeue", "scancel") if shutil.which(program) is None]
        return f"not installed: {', '.join(lacking)}; get them with: apt-get install slurm-client" if lacking else ""

    def problems(self, resources: Resources) -> list[Problem]:
        """What `sbatch --test-only` says of a job like it."""
        done = self._run(["sbatch", "--test-only", *self._asked(resources)], given=SCRIPT)
        if done.returncode == 0:
            return []
        said = _said(done) or "the cluster refuses it"
        return [Problem(place="resources", wrong=said, fix="ask for less, or for what `sinfo` lists")]

    def launch(self, launch: Launch) -> str:
        """Submit a job, unless the cluster has one of this name already."""
        if handle := self.find(launch):
            return handle
        folder = launch.folder.resolve()
        words = ["sbatch", "--parsable", *self._asked(launch.resources)]
        words += [f"--job-name={launch.name}", f"--chdir={folder}"]
        output = str(folder / "slurm.txt").replace("%", "%%")
        words += [f"--output={output}", "--open-mode=append", "--export=ALL"]
        with tempfile.TemporaryFile() as variables:
            # By a file without a name: neither arguments nor sbatch itself get to see what a job's owner chose.
            variables.write(b"".join(f"{key}={value}\0".encode() for key, value in self._variables(launch).items()))
            variables.seek(0)
            number = variables.fileno()
            done = self._run([*words, f"--export-file={number}"], given=SCRIPT, descriptors=(number,))
        if done.returncode:
            raise TutelageError.at(launch.name, f"Slurm refuses the job: {_said(done)}", "ask for less, or see `sinfo`")
        return done.stdout.strip().partition(";")[0]

    def find(self, launch: Launch) -> str:
        """The id of the job of this name; of one that the cluster has forgotten, the name."""
        jobs = [job for job in self._jobs() if job.name == launch.name]
        if jobs:
            return min(jobs, key=lambda job: int(job.id)).id
        return launch.name if claims(launch.folder) else ""

    def statuses(self, attempts: dict[str, Launch]) -> dict[str, Status]:
        """What squeue, and for jobs that it has forgotten sacct, say of all of them."""
        by_name: dict[str, list[Job]] = {}
        for job in self._jobs():
            by_name.setdefault(job.name, []).append(job)
        forgotten = [each for each in attempts.values() if each.name not in by_name and _is_open(each)]
        for job in self._accounted(each.name for each in forgotten):
            by_name.setdefault(job.name, []).append(job)
        return {handle: _status(launch, by_name.get(launch.name, [])) for handle, launch in attempts.items()}

    def stop(self, handle: str, launch: Launch) -> None:
        """Cancel a job that waits; SIGTERM to the attempt of one that runs."""
        close(launch.folder)
        self._cancel(launch, "--state=PENDING")
        self._cancel(launch, "--batch", "--signal=TERM")

    def kill(self, handle: str, launch: Launch) -> None:
        """SIGKILL to everything of a job, on all nodes, and no second start of it."""
        close(launch.folder)
        self._cancel(launch, "--signal=KILL", "--full")
        self._cancel(launch)

    def _cancel(self, launch: Launch, *options: str) -> None:
        self._run(["scancel", "--quiet", "--me", f"--name={launch.name}", *options])

    def _asked(self, resources: Resources) -> list[str]:
        config = self.config
        words = [f"--nodes={resources.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={resources.cpus}", "--requeue"]
        if resources.gpus:
            words.append(f"--gpus-per-node={config.gpu + ':' if config.gpu else ''}{resources.gpus}")
        if resources.memory_gib:
            words.append(f"--mem={math.ceil(resources.memory_gib * 1024)}M")
        if resources.minutes:
            grace = min(config.grace, 6 * resources.minutes)  # a tenth of the limit at most
            words += [f"--time={resources.minutes}", *([f"--signal=B:TERM@{grace}"] if grace else [])]
        for option in ("partition", "account", "qos", "constraint"):
            if value := getattr(config, option):
                words.append(f"--{option}={value}")
        return [*words, *config.extra]

    def _variables(self, launch: Launch) -> dict[str, str]:
        resources = launch.resources
        own = {
            "TUTELAGE_PYTHON": self.config.python or sys.executable,
            "TUTELAGE_ATTEMPT_FOLDER": str(launch.folder.resolve()),
        }
        if resources.nodes > 1:
            each = [f"--nodes={resources.nodes}", f"--ntasks={resources.nodes}", "--ntasks-per-node=1"]
            each += [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1", "--export=ALL"]
            own["TUTELAGE_NODES"] = str(resources.nodes)
            own["TUTELAGE_SPREAD"] = json.dumps(["srun", *each])
        chosen = environment(launch, inherit=self.config.inherit)
        reserved = ("SLURM_", "SBATCH_")
        return {**{key: value for key, value in chosen.items() if not key.startswith(reserved)}, **own}

    def _jobs(self) -> list[Job]:
        """All jobs of this user that the cluster remembers."""
        columns = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
        done = self._run(["squeue", "--me", "--states=all", "--noheader", f"--Format={columns}"])
        if done.returncode:
            raise _unreachable(_said(done))
        return [_parsed(line) for line in done.stdout.splitlines() if line.strip()]

    def _accounted(self, names: Iterable[str]) -> list[Job]:
        """What accounting has of jobs, where the cluster keeps accounts."""
        wanted = ",".join(names)
        if not wanted:
            return []
        columns = "--format=JobIDRaw,JobName,State,Restarts,ExitCode,NodeList"
        words = ["sacct", "--allocations", "--noheader", "--parsable2", f"--name={wanted}", columns]
        done = self._run([*words, "--starttime=now-60days"])
        if done.returncode:
            if "disabled" in done.stderr:
                return []
            raise _unreachable(_said(done))
        found = []
        for line in done.stdout.splitlines():
            number, name, state, restarts, code, nodes = line.split("|")
            state, _, by = state.partition(" ")  # CANCELLED by 1000
            exit_code, _, ended_by = code.partition(":")
            raw = int(exit_code) << 8 | int(ended_by)
            found.append(Job(number, name, state, by, int(restarts or 0), raw, nodes))
        return found

    def _run(
        self, words: list[str], *, given: str = "", descriptors: tuple[int, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's programs, with nothing of the server's environment but what it needs.

        Raises:
            LauncherUnreachable: when it gives no answer in time, or says that it could not ask.
        """
        variables = {**essential(), **({"SLURM_CONF": self.config.conf} if self.config.conf else {})}
        try:
            done = subprocess.run(
                words,
                input=given,
                text=True,
                errors="replace",
                capture_output=True,
                env=variables,
                pass_fds=descriptors,
                timeout=self.config.seconds,
                cwd=os.sep,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _unreachable(f"{words[0]} gave no answer in {self.config.seconds:g} seconds") from None
        except OSError as error:
            raise _unreachable(f"{words[0]} can't be started: {error.strerror}") from error
        if done.returncode and AWAY.search(done.stderr):
            raise _unreachable(_said(done))
        return done


def _status(launch: Launch, jobs: list[Job]) -> Status:
    """An attempt's status by the jobs of its name; of two, where one was submitted by mistake, one does nothing."""
    over = (launch.folder / OUTCOME).exists()
    living = [job for job in jobs if job.state not in ENDS]
    for job in sorted(living, key=lambda job: job.state in PENDING):
        if job.state not in PENDING and job.restarts <= max(0, last_start(launch.folder)):
            return Status(state="running", where=job.nodes, detail=_again(job))
        if job.restarts or not over:
            return Status(state="pending", detail=", ".join(filter(None, [job.reason, _again(job)])))
    ended = [job for job in jobs if job.state in ENDS]
    if not ended:
        known = over or bool(claims(launch.folder))
        return outcomes.ended(launch.folder, "") if known else Status(state="absent")
    job = max(ended, key=lambda job: (ENDS[job.state] != "exited" or job.exit_code != 0, int(job.id)))
    return _ended(launch, job)


def _ended(launch: Launch, job: Job) -> Status:
    """How a job ended: what the attempt itself wrote, unless the cluster knows of something that kept it from it."""
    told = outcomes.ended(launch.folder, job.nodes)
    why = ENDS[job.state]
    if told.why in ("exited", "time-limit") or (why == "exited" and job.exit_code == 0):
        return told
    number = job.exit_code & 127
    code = 128 + number if number else job.exit_code >> 8
    if why == "cancelled" and not code:  # while it waited
        code = outcomes.STOPPED
    if why == "exited" and number:
        why = "killed"
    said = ": ".join(filter(None, [f"Slurm says {job.state}", job.reason if job.reason != "None" else ""]))
    return Status(state="ended", why=why, exit_code=code or outcomes.KILLED, where=job.nodes, detail=said)


def _again(job: Job) -> str:
    return f"started again {job.restarts} times by Slurm" if job.restarts else ""


def _is_open(launch: Launch) -> bool:
    """Whether its folder does not tell how an attempt ended, which may have begun."""
    return last_outcome(launch.folder) is None and ((launch.folder / CLOSED).exists() or bool(claims(launch.folder)))


def _parsed(line: str) -> Job:
    values, start = [], 0
    for width in COLUMNS.values():
        values.append(line[start : start + width].strip())
        start += width
    number, name, state, reason, restarts, exit_code, nodes = values
    return Job(number, name, state, reason, int(restarts or 0), int(exit_code or 0), nodes)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [re.sub(r"^\w+: (error: )?", "", line) for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines)[:500]


def _unreachable(said: str) -> LauncherUnreachable:
    return LauncherUnreachable.at("slurm", f"the cluster can't be asked now: {said}", "jobs go on as they are")
