"""A run that trains nothing: it writes `run.json` and `events.jsonl` as core does, saves, stops and goes on as core does.

It runs in a job's folder. Where another one runs there at the same time, it says so in `overlaps`.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

STEPS, SECONDS = int(sys.argv[1]), float(sys.argv[2])

run = Path("run")
run.mkdir(exist_ok=True)
lock = os.open("lock", os.O_WRONLY | os.O_CREAT)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    with Path("overlaps").open("a") as file:
        file.write(f"{os.environ['TUTELAGE_ATTEMPT']}\n")
with Path("journal").open("a") as file:
    file.write(f"{os.environ['TUTELAGE_ATTEMPT']} {os.getpid()}\n")

stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))

events = run / "events.jsonl"
if events.exists() and not events.read_bytes().endswith(b"\n"):
    os.truncate(events, events.read_bytes().rfind(b"\n") + 1)
out = os.open(events, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def write(path: Path, data: dict) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(data))
    beside.replace(path)


def tell(kind: str, **fields) -> None:
    line = json.dumps({"event": kind, **fields}).encode() + b"\n"
    os.write(out, line[:9])  # in two pieces, so that readers and kills meet half a line
    os.write(out, line[9:])


def record(state: str) -> None:
    write(run / "run.json", {"name": "fake", "state": state})


saved = run / "saved.json"
step = json.loads(saved.read_text())["step"] if saved.exists() else 0
record("running")
tell("run_started", stages=["tune"])
while step < STEPS and not stopped:
    time.sleep(SECONDS / STEPS)
    step += 1
    tell("step", stage="tune", step=step, steps=STEPS)
    write(saved, {"step": step})
    tell("checkpoint", stage="tune", step=step)
state = "succeeded" if step >= STEPS else "stopped"
record(state)
tell("run_finished", state=state)
sys.exit(0 if state == "succeeded" else 143)
