"""Finds the model that a reference means, checks that it can be had, and makes it available here.

A reference is `PREFIX:NAME` of a model source, a folder (a Hugging Face model, a PEFT adapter, or a run), a `.gguf`
file, or a hub name. Nothing here imports torch until a GGUF file is converted.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any, Literal

import msgspec

from tutelage.config import did_you_mean
from tutelage.errors import TutelageError
from tutelage.plugins import Host
from tutelage.source import ModelSource

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SOURCE = re.compile(r"([A-Za-z][\w-]*):(.+)")


class Located(msgspec.Struct, frozen=True):
    """Where a model is. `path` is a folder, a file or a hub name; a `source` knows it only by its own reference.

    One that is `new` has a config and a tokenizer, but no weights yet.
    """

    kind: Literal["model", "adapter", "gguf", "hub", "source", "new"]
    path: str
    source: ModelSource | None = None


def locate(reference: str, base: Path, place: str, host: Host) -> Located:
    """What `reference` means. Relative paths start from `base`; nothing is fetched.

    Raises:
        TutelageError: naming `place`, when it is no model.
    """
    match = _SOURCE.fullmatch(reference)
    if match and not _is_drive(reference):
        source = host.get("model source", match[1], place)
        return Located("source", match[2], source())
    path = Path(reference).expanduser()
    path = path if path.is_absolute() else base / path
    if path.is_dir():
        return locate_folder(path.resolve(), place)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise TutelageError.at(place, f"there is no file {path}", _near(path))
        return Located("gguf", str(path.resolve()))
    if path.is_file():
        raise TutelageError.at(place, f"{path} is not a model", "give a model's folder, or a .gguf file")
    if _HUB_NAME.fullmatch(reference) and not (base / reference).parent.is_dir():
        return Located("hub", reference)
    raise TutelageError.at(place, f"no model is found at {path}", _near(path))


def locate_folder(folder: Path, place: str) -> Located:
    """What kind of model lies in a folder: an adapter, a whole model, or what a run made last.

    Raises:
        TutelageError: when there is none, or its weights are only pickles.
    """
    if (folder / "run.json").is_file():
        return locate_folder(run_artifact(folder, "", place), place)
    if (folder / "adapter_config.json").is_file():
        refuse_pickles(folder, place, "adapter_model.safetensors")
        return Located("adapter", str(folder))
    if (folder / "config.json").is_file():
        refuse_pickles(folder, place)
        return Located("model", str(folder))
    quantised = sorted(folder.glob("*.gguf"))
    hint = f"give the file: {quantised[0]}" if quantised else "it has neither config.json nor adapter_config.json"
    raise TutelageError.at(place, f"the folder {folder} holds no model", hint)


def refuse_pickles(folder: Path, place: str, weights: str = "*.safetensors") -> None:
    """Raises TutelageError when a folder's weights are not safetensors: pickles run code when they are loaded."""
    if any(folder.glob(weights)):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        wrong = f"the weights in {folder} are pickles ({pickles[0]}), which can run code when they are loaded"
        raise TutelageError.at(place, wrong, "convert them to safetensors where you trust them")
    raise TutelageError.at(place, f"{folder} has no weights", f"it needs {weights}")


def run_artifact(folder: Path, stage: str, place: str) -> Path:
    """The folder of what a run's stage made; when `stage` is empty, the last but those that make data or a report.

    Raises:
        TutelageError: when there is no such stage, it did not succeed, or it made no model.
    """
    record = read_record(folder)
    stages = [item for item in record.get("stages", []) if isinstance(item, dict)]
    names = [str(item.get("name")) for item in stages]
    if stage and stage not in names:
        raise TutelageError.at(place, f"the run {folder} has no stage {stage}", did_you_mean(stage, names))
    models = [item for item in stages if item.get("kind") not in ("dataset", "report")] or stages
    wanted = stages[names.index(stage)] if stage else next(iter(reversed(models)), None)
    if wanted is None or wanted.get("state") != "succeeded" or not wanted.get("artifact"):
        state = wanted.get("state", "unknown") if wanted else "empty"
        raise TutelageError.at(
            place,
            f"the run {folder} has made no model yet (it is {state})",
            f"tutelage resume {shlex.quote(str(folder))}",
        )
    artifact = folder / str(wanted["artifact"])
    if not artifact.resolve().is_relative_to(folder.resolve()):
        raise TutelageError.at(place, f"the run {folder} names an artifact outside itself", "its run.json was changed")
    if not artifact.is_dir():
        raise TutelageError.at(place, f"{artifact} is gone", "was the run pruned?")
    return artifact


def read_record(folder: Path) -> dict[str, Any]:
    """A run's `run.json`, or {} where it can't be read."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def ready(located: Located) -> Located | None:
    """What `fetch` would give, if that needs no work; else None. Nothing is written."""
    if located.kind == "source" and located.source is not None:
        held = located.source.held(located.path)
        return ready(_settled(held, located.path)) if held else None
    if located.kind == "gguf":
        from tutelage.models.converting import converted_folder

        folder = converted_folder(Path(located.path))
        return Located("model", str(folder)) if folder.is_dir() else None
    return located


def available(located: Located, place: str) -> None:
    """Check quickly that `fetch` can succeed; nothing is written, nothing large is fetched.

    Raises:
        TutelageError: naming `place`, when the model can't be had.
    """
    if located.kind == "source" and located.source is not None:
        located.source.available(located.path, place)
    elif located.kind == "hub":
        _on_hub(located.path, place)
    elif located.kind == "gguf":
        with Path(located.path).open("rb") as file:
            if file.read(4) != b"GGUF":
                raise TutelageError.at(place, f"{located.path} is not a GGUF file", "its first bytes are not GGUF")


def fetch(located: Located, place: str = "model") -> Located:
    """Make a model available: its kind is then model, adapter or hub. GGUF files are converted into the cache, once.

    Raises:
        TutelageError: naming `place`, when it can't be had.
    """
    if located.kind == "source" and located.source is not None:
        return fetch(_settled(located.source.fetch(located.path, place), place), place)
    if located.kind == "gguf":
        from tutelage.models.converting import convert_gguf

        return Located("model", str(convert_gguf(Path(located.path), place)))
    return located


def cache_folder() -> Path:
    """Where fetched and converted models are kept: `$TUTELAGE_CACHE`, or `~/.cache/tutelage`."""
    named = os.environ.get("TUTELAGE_CACHE")
    return Path(named).expanduser().resolve() if named else Path.home() / ".cache" / "tutelage"


def runs_folder() -> Path:
    """Where runs are kept: `$TUTELAGE_RUNS`, or `runs` in the current folder."""
    return Path(os.environ.get("TUTELAGE_RUNS") or "runs").expanduser().resolve()


def _settled(found: str, place: str) -> Located:
    """What a source found."""
    path = Path(found)
    if path.is_dir():
        return locate_folder(path, place)
    return Located("gguf" if path.suffix.lower() == ".gguf" else "hub", found)


def _is_drive(reference: str) -> bool:
    return len(reference) > 2 and reference[1] == ":" and reference[2] in "\\/"


def _near(path: Path) -> str:
    if path.parent.is_dir():
        beside = [item.name for item in path.parent.iterdir() if item.is_dir() or item.suffix == ".gguf"]
        near = did_you_mean(path.name, beside) if beside else ""
        if near.startswith("did"):
            return near
    return "give a model's folder, a .gguf file, a hub name (OWNER/NAME), starter:NAME or run:NAME"


def _on_hub(name: str, place: str) -> None:
    """Raises TutelageError unless the repository is in the local cache, or the hub says that it is there."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=10)
    except GatedRepoError:
        fix = "accept its terms on its page, then log in with `hf auth login`"
        raise TutelageError.at(place, f"the hub model {name} is gated", fix) from None
    except RepositoryNotFoundError:
        fix = "check its spelling; a folder is written ./NAME, and a private model needs `hf auth login`"
        raise TutelageError.at(place, f"the hub has no model {name}", fix) from None
    except EntryNotFoundError:
        raise TutelageError.at(place, f"the hub repository {name} has no config.json", "is it a model?") from None
    except Exception as error:  # offline: the client's errors differ by its version
        fix = "give a folder, or download it where there is a network"
        raise TutelageError.at(place, f"the hub can't be asked for {name}: {_short(error)}", fix) from None


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
