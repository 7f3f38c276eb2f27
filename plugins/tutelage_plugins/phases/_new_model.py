"""The model with random weights that pretraining starts from: its tokenizer, its config, and its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tutelage.config import join
from tutelage.data.preparing import sources_of, stream, tokenizer_fingerprint
from tutelage.data.reading import fingerprint
from tutelage.errors import TutelageError
from tutelage.formats import Text
from tutelage.models import locating
from tutelage.models.architectures import config_of_shape, config_of_size, takes, write_new
from tutelage.models.loading import load_config, load_tokenizer, rows_needed
from tutelage.models.saving import write_folder
from tutelage.models.vocabulary import train_tokenizer
from tutelage.recipe import Tokens
from tutelage.scaling import amount

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tutelage.plugins import Host
    from tutelage.recipe import Stage

ENOUGH = 100_000_000
"Bytes of text from which a tokenizer is learnt; of more, every so many-th row is taken."


def new_model(settings: Any, stage: Stage, base: Path, host: Host, folder: Path | None) -> locating.Located:
    """The folder of a stage's new model: `folder` with weights, or one in the cache with none.

    Args:
        settings: the phase's config.
    Raises:
        TutelageError: when the settings don't say what to make, or can't be met.
    """
    if folder is not None and folder.is_dir():
        return locating.Located("model", str(folder))
    place = f"stages.{stage.name}.phase"
    if host.get("adapter", stage.adapter["kind"], f"stages.{stage.name}.adapter.kind").artifact != "model":
        wrong = f"{stage.adapter['kind']} learns too little of a model whose other weights are random"
        raise TutelageError.at(f"stages.{stage.name}.adapter", wrong, "use adapter: full")
    tokenizer = _tokenizer(settings, stage, base, host, place)
    described = _described(settings, stage, tokenizer, place)
    if folder is None:
        return locating.Located("new", str(described))
    config = load_config(locating.Located("new", str(described)))
    return locating.Located("model", str(write_new(config, tokenizer, folder, stage.trainer.seed)))


def _described(settings: Any, stage: Stage, tokenizer: PreTrainedTokenizerBase, place: str) -> Path:
    """A folder with the config and the tokenizer; found by what decides them, so that sizes are worked out once."""
    decides = [settings.architecture, str(settings.parameters), settings.shape, stage.trainer.max_length]
    key = _hash([tokenizer_fingerprint(tokenizer), *decides, version("transformers")])
    folder = locating.cache_folder() / "new" / key
    with _alone(folder):
        if not folder.is_dir():
            config = _config(settings, stage.trainer.max_length, tokenizer, place)
            with write_folder(folder) as unfinished:
                config.save_pretrained(str(unfinished))
                tokenizer.save_pretrained(str(unfinished))
    return folder


def _config(settings: Any, max_length: int, tokenizer: PreTrainedTokenizerBase, place: str) -> Any:
    shape: dict[str, Any] = {
        "vocab_size": rows_needed(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if takes(settings.architecture, "max_position_embeddings", place):
        shape["max_position_embeddings"] = max_length
    shape |= settings.shape
    if settings.parameters:
        return config_of_size(settings.architecture, amount(settings.parameters), shape, place)
    if "hidden_size" not in shape:
        fix = "give parameters: 10M, or shape: {hidden_size: 256, num_hidden_layers: 8}"
        raise TutelageError.at(join(place, "parameters"), "nothing says how large the new model is", fix)
    return config_of_shape(settings.architecture, shape, place)


def _tokenizer(settings: Any, stage: Stage, base: Path, host: Host, place: str) -> PreTrainedTokenizerBase:
    """The tokenizer that is named, or one learnt from the stage's own data, once."""
    if settings.tokenizer:
        path = base / Path(settings.tokenizer).expanduser()
        if (path / "tokenizer.json").is_file():
            return load_tokenizer(locating.Located("model", str(path)), Tokens(), base)
        field = join(place, "tokenizer")
        return load_tokenizer(
            locating.fetch(locating.locate(settings.tokenizer, base, field, host), field), Tokens(), base
        )
    if stage.data is None or any(source.startswith("stage:") for source in _named(stage.data)):
        wrong = "a tokenizer can't be learnt from data that is not there yet"
        raise TutelageError.at(join(place, "tokenizer"), wrong, "name a tokenizer, or give the stage a file as data")
    field = f"stages.{stage.name}.data"
    sources = sources_of(stage.data, base, host, field)
    contents = [fingerprint(source) for source in sources]
    decides = [contents, stage.data.documents, stage.data.format, settings.vocabulary, settings.chat]
    folder = locating.cache_folder() / "vocabularies" / _hash([*decides, version("tokenizers")])
    with _alone(folder):
        if not folder.is_dir():
            every = 1 + sum(source.size for source in sources) // ENOUGH
            records = stream(stage.data, base, host, field)
            tokenizer = train_tokenizer(_texts(records, every), settings.vocabulary, chat=settings.chat)
            with write_folder(folder) as unfinished:
                tokenizer.save_pretrained(str(unfinished))
    return load_tokenizer(locating.Located("model", str(folder)), Tokens(), base)


def _texts(records: Iterator[tuple[str, Any]], every: int) -> Iterator[str]:
    texts = (record.text for _, record in records if isinstance(record, Text))
    return (text for number, text in enumerate(texts) if number % every == 0)


def _named(data: Any) -> list[str]:
    return [data.train, *(part.source for part in data.mix)]


def _alone(folder: Path) -> FileLock:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_suffix(".lock"))


def _hash(parts: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
