"""What a person or a build server runs: `python3 -m nox -s demo`, `python3 -m nox -s tests`; `--list` shows the rest.

All sessions share one environment, because torch is large. It is made at the first call, and installed anew only when
what it is made from has changed; `rm -r .nox` starts over.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
ENVIRONMENT = ROOT / ".nox" / "shared"
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
TRAIN = ["-e", ".[train]"]
DEVELOP = [
    "-e", ".[all,postgres,s3,ray]", "pytest", "pytest-xdist", "hypothesis", "trl", "ruff", "mypy", "types-PyYAML",
    "import-linter", "jsonschema", "hatchling", "openai", "schemathesis", "moto[server]", "bandit[toml]", "fastapi",
]  # fmt: skip

LITGPT = "litgpt==0.5.13"

nox.options.sessions = ["tests"]


def install(session: nox.Session, requirements: list[str]) -> None:
    """Bring `requirements` into the shared environment, within the constraints."""
    sources = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    made_from = " ".join(requirements).encode() + b"".join(source.read_bytes() for source in sources)
    digest = hashlib.sha256(made_from).hexdigest()
    stamp = ENVIRONMENT / "installed.txt"
    if stamp.is_file() and digest in stamp.read_text(encoding="utf-8").split():
        return
    if not (ENVIRONMENT / "pyvenv.cfg").is_file():
        session.run(sys.executable, "-m", "virtualenv", "--quiet", str(ENVIRONMENT), external=True)
    session.log("installing; the first time this brings PyTorch and takes a minute or more")
    python(session, "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", *requirements)
    with stamp.open("a", encoding="utf-8") as file:
        file.write(f"{digest}\n")


def python(session: nox.Session, *arguments: str, **variables: str) -> None:
    """Run the shared environment's Python."""
    session.run(str(BIN / "python"), *arguments, env=variables, external=True)


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Train a small model to turn expense notes into JSON, and see what it learnt (`-- --seed 1`, `-- --help`)."""
    install(session, TRAIN)
    python(session, "examples/demo/demo.py", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the default tests (`-- -k word` chooses)."""
    install(session, DEVELOP)
    chosen = session.posargs or ["-n", "2"]
    python(session, "-m", "pytest", "-m", "not slow", *chosen, OMP_NUM_THREADS="1")


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style, formatting and what is known to be unsafe."""
    install(session, DEVELOP)
    python(session, "-m", "ruff", "check", ".")
    python(session, "-m", "ruff", "format", "--check", ".")
    python(session, "-m", "bandit", "-q", "-r", "-c", "pyproject.toml", "core", "plugins", "advisor", "server")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    install(session, DEVELOP)
    python(session, "-m", "mypy", "core", "plugins", "advisor", "server")


@nox.session(venv_backend="none")
def imports(session: nox.Session) -> None:
    """Check who may import whom."""
    install(session, DEVELOP)
    session.run(str(BIN / "lint-imports"), external=True)


@nox.session(venv_backend="none")
def journeys(session: nox.Session) -> None:
    """Run whole journeys, slow: every example, the demo, kills and resumes."""
    install(session, DEVELOP)
    python(session, "-m", "pytest", "-m", "slow", *session.posargs)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Measure beside other libraries: all (`-- --quick`, `-- --help`), or one module (`-- alignment_beside_trl …`)."""
    install(session, DEVELOP)
    options = session.posargs
    if options and not options[0].startswith("-"):
        python(session, "-m", f"bench.{options[0]}", *options[1:])
    elif {"--help", "-h", "--read", "--quick"} & set(options):
        python(session, "-m", "bench", *options)
    else:
        python(session, "-m", "bench", *litgpt(session), *options)


def litgpt(session: nox.Session) -> list[str]:
    """The option that names a Python with LitGPT, in an environment of its own; none where it can't be installed."""
    folder = ROOT / ".nox" / "litgpt"
    programs = folder / BIN.name
    if not (folder / "pyvenv.cfg").is_file():
        pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        torch = next(pin for pin in pins if pin.startswith("torch=="))
        session.run(sys.executable, "-m", "virtualenv", "--quiet", str(folder), external=True)
        command = [str(programs / "python"), "-m", "pip", "install", "--quiet", LITGPT, torch]
        session.run(*command, external=True, success_codes=[0, 1])  # the report then says that it was not measured
    return ["--litgpt", str(programs / "python")] if list(programs.glob("litgpt*")) else []
