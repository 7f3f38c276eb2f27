"""Turns a GGUF file into a plain Hugging Face model folder in the cache, once."""

from __future__ import annotations

import hashlib
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from tutelage.errors import TutelageError
from tutelage.models.locating import cache_folder


def converted_folder(file: Path) -> Path:
    """Where the conversion of a GGUF file lies (or would lie), by its content."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return cache_folder() / "models" / digest[:32]


def convert_gguf(file: Path, place: str = "model") -> Path:
    """Dequantise a GGUF file into a folder of bf16 safetensors with its tokenizer and chat template.

    Processes that ask for the same file wait for one another; the folder appears whole or not at all.

    Raises:
        TutelageError: naming `place`, when transformers can't read the file.
    """
    target = converted_folder(file)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            _convert(file, target, place)
    return target


def _convert(file: Path, target: Path, place: str) -> None:
    from tutelage.models.loading import quietly
    from tutelage.models.saving import save_whole

    with Console(stderr=True).status(f"converting {file.name} (once)"):
        try:
            with quietly(), redirect_stderr(StringIO()):  # its progress bar asks no one
                tokenizer, model = _dequantised(file)
        except Exception as error:  # the parser's errors are of every kind
            message = (str(error).splitlines() or [type(error).__name__])[0][:300]
            fix = "is it a GGUF file of a language model?"
            raise TutelageError.at(place, f"{file} can't be read: {message}", fix) from error
        save_whole(model, tokenizer, target)


def _dequantised(file: Path) -> tuple[Any, Any]:
    """The tokenizer and the bf16 model of a GGUF file, without the quantizer that would keep it from being saved."""
    import torch
    import transformers

    further: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # where it is known, weights may stay packed unless this says otherwise
        further["quantization_config"] = transformers.GgufConfig(dequantize=True)
    where = str(file.parent)
    tokenizer = transformers.AutoTokenizer.from_pretrained(where, gguf_file=file.name)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        where, gguf_file=file.name, dtype=torch.bfloat16, **further
    )
    for holder, names in ((model, ("hf_quantizer", "is_quantized")), (model.config, ("quantization_config",))):
        for name in names:
            if hasattr(holder, name):
                delattr(holder, name)
    return tokenizer, model
