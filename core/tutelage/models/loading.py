"""Loads models and tokenizers with transformers and peft: safetensors only, no remote code, nothing left at random."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tutelage.errors import Problem, TutelageError
from tutelage.models.locating import Located, locate_folder, refuse_pickles
from tutelage.recipe import Tokens

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SCORE = "score.weight"
"What the weight of a reward model's head is called in its files."

SCORE_FILE = "score.safetensors"
"Where that weight lies by itself, beside those of a language model."


def load_tokenizer(located: Located, tokens: Tokens, base: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or an adapter, with the recipe's chat template and new special tokens.

    Args:
        base: the folder that the chat template's path starts from.
    Raises:
        TutelageError: when there is no usable tokenizer or chat template.
    """
    from transformers import AutoTokenizer

    with _explained(located, "tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(_tokenizer_place(located))
    if tokens.chat_template:
        tokenizer.chat_template = _chat_template(base / tokens.chat_template)
    if any(not token.strip() for token in tokens.add):
        raise TutelageError.at("tokenizer.add", "an empty token can't be added", "leave it out")
    if tokens.add:
        tokenizer.add_tokens(tokens.add, special_tokens=True)
    made: PreTrainedTokenizerBase = tokenizer
    return made


def new_token_ids(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> list[int]:
    """The ids of the special tokens that the recipe adds, whose embeddings must learn."""
    ids: Any = tokenizer.convert_tokens_to_ids(tokens.add)
    return sorted(set(ids))


def load_model(
    located: Located, *, dtype: torch.dtype | str, attention: str | None = None, **loading: Any
) -> PreTrainedModel:
    """Load a causal language model for training or generation.

    An adapter's folder is loaded as its base with the adapter merged in (in float32, then rounded to `dtype` once), so
    that it can be the base of further training; with a quantization config, the merged weights are what is quantised.

    Args:
        dtype: of the weights, or "auto" for the one they are stored in.
        attention: an attention implementation of transformers, e.g. "sdpa"; None takes its default.
        loading: further keyword arguments of `from_pretrained`, such as an adapter's `loading`.
    Raises:
        TutelageError: when it can't be loaded, or weights that it needs are missing from its files.
    """
    _refuse_reward_model(located)
    if attention is not None:
        loading["attn_implementation"] = attention
    if located.kind != "adapter":
        return _load_whole(located, dtype=dtype, **loading)
    from tutelage.models.merging import merged_model

    if "quantization_config" not in loading:
        return merged_model(Path(located.path), dtype=dtype, **loading)
    with tempfile.TemporaryDirectory() as folder, quietly():
        merged_model(Path(located.path), dtype=dtype).save_pretrained(folder)
        return _load_whole(Located("model", folder), dtype=dtype, **loading)


def _load_whole(located: Located, **loading: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model, info = read_whole(AutoModelForCausalLM, located, **loading)
    refuse_unfit(located, info)
    loaded: PreTrainedModel = keep_packing(model)
    return loaded


def read_whole(kind: Any, located: Located, **loading: Any) -> tuple[Any, dict[str, Any]]:
    """A model as one of transformers' auto classes reads it, and what was missing in its files or did not fit.

    Raises:
        TutelageError: when it can't be loaded.
    """
    if located.kind == "model":
        refuse_pickles(Path(located.path), "model")
    with _explained(located, "model"), quietly():
        found: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            located.path, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **loading
        )
    return found


def refuse_unfit(located: Located, info: dict[str, Any]) -> None:
    """Raises TutelageError when weights were missing, or of another shape: transformers would draw them at random."""
    problems = []
    if missing := sorted(info["missing_keys"]):
        wrong = f"{located.path} lacks weights that the model needs ({len(missing)}: {', '.join(missing[:3])} …)"
        fix = "its files are incomplete, or it is not a causal language model"
        problems.append(Problem(place="model", wrong=wrong, fix=fix))
    if unlike := sorted(info["mismatched_keys"], key=str):
        name, stored, wanted = unlike[0]
        shapes = f"{name} is {tuple(stored)} and should be {tuple(wanted)}"
        wrong = f"{located.path} has weights of another shape than its config.json says ({len(unlike)}: {shapes} …)"
        problems.append(Problem(place="model", wrong=wrong, fix="its config.json and its weights don't go together"))
    if problems:
        raise TutelageError(problems)


def keep_packing(model: Any) -> Any:
    """Keep bitsandbytes from repacking 4-bit weights when first evaluated, as it does on CPUs with AVX512-BF16.

    Repacked weights let no gradient through and round more, so a model that trains on after an evaluation would
    silently learn in its last layers alone (bitsandbytes 0.50, `Linear4bit.forward`).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def load_unquantised(located: Located, dtype: torch.dtype | str, **loading: Any) -> PreTrainedModel:
    """Like `load_model`, but a model that is stored quantised is dequantised: for changing its weights."""
    return dequantised(load_model(located, dtype=dtype, **loading), dtype)


def dequantised(model: PreTrainedModel, dtype: torch.dtype | str) -> PreTrainedModel:
    """A model without quantisation, if it has any."""
    if getattr(model, "hf_quantizer", None) is None:
        return model
    with quietly():
        plain: PreTrainedModel = model.dequantize(None if dtype == "auto" else dtype)
    return plain


def adapter_settings(folder: Path) -> dict[str, Any]:
    """A PEFT adapter's own settings (`adapter_config.json`).

    Raises:
        TutelageError: when they can't be read.
    """
    path = folder / "adapter_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TutelageError.at("model", f"{path} can't be read: {error}", "is it a PEFT adapter?") from None
    return settings if isinstance(settings, dict) else {}


def base_of(folder: Path) -> Located:
    """The base model that an adapter's folder names.

    Raises:
        TutelageError: when it names none, or the folder that it names is gone.
    """
    name = adapter_settings(folder).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise TutelageError.at("model", f"the adapter {folder} names no base model", "its adapter_config.json must")
    if Path(name).is_dir():
        return locate_folder(Path(name).resolve(), "model")
    if Path(name).is_absolute() or name.startswith("."):
        fix = "bring it back, or name another in adapter_config.json"
        raise TutelageError.at("model", f"{name}, the base model of the adapter {folder}, is gone", fix)
    return Located("hub", name)


def load_config(located: Located) -> Any:
    """The transformers config of a model, or of an adapter's base.

    Raises:
        TutelageError: when it can't be read.
    """
    from transformers import AutoConfig

    if located.kind == "adapter":
        return load_config(base_of(Path(located.path)))
    with _explained(located, "model"):
        return AutoConfig.from_pretrained(located.path)


def is_reward_model(located: Located) -> bool:
    """Whether a model says that it ends in a score instead of a vocabulary (by its config, not by its weights).

    Raises:
        TutelageError: when its config can't be read.
    """
    if located.kind == "adapter":
        return adapter_settings(Path(located.path)).get("task_type") == "SEQ_CLS"
    names: list[str] = load_config(located).architectures or []
    return any(name.endswith("ForSequenceClassification") for name in names)


def _refuse_reward_model(located: Located) -> None:
    if is_reward_model(located):
        wrong = f"{located.path} is a reward model: it scores answers, and can't write any"
        raise TutelageError.at("model", wrong, "name a language model")


def meta_model(located: Located, head: Literal["language", "score"] = "language") -> nn.Module:
    """The model without its weights, on the meta device: for checks.

    Of weights that are here, the files' headers are read, so that what is missing, cut off or of another shape is told.

    Args:
        head: what it is to end in; a language model may be given a new score head, a reward model must have its own.
    Raises:
        TutelageError: when it is no causal language model that transformers knows, or its files are not whole.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if head == "language":
        _refuse_reward_model(located)
    if located.kind == "adapter":
        _adapter_headers(Path(located.path))
        return meta_model(base_of(Path(located.path)), head)
    config = load_config(located)
    kind: Any = AutoModelForCausalLM if head == "language" else AutoModelForSequenceClassification
    if located.kind == "model" and not hasattr(config, "quantization_config"):
        labels = {"num_labels": 1} if head == "score" else {}
        found, info = read_whole(kind, located, dtype="auto", device_map="meta", **labels)
        made = {SCORE} if head == "score" and not is_reward_model(located) else set()
        refuse_unfit(located, {**info, "missing_keys": set(info["missing_keys"]) - made})
        whole: nn.Module = found
        return whole
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if head == "score":
        config.num_labels = 1
    with _explained(located, "model"), torch.device("meta"):
        model: nn.Module = kind.from_config(config)
    return model


def _adapter_headers(folder: Path) -> None:
    """Raises TutelageError when an adapter's weights are no whole safetensors file."""
    from safetensors import SafetensorError, safe_open

    file = folder / "adapter_model.safetensors"
    try:
        with safe_open(file, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise TutelageError.at("model", f"{file} can't be read: {error}", "copy it anew; it is not whole") from None


def rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many embedding rows a tokenizer's ids need."""
    return max(tokenizer.get_vocab().values()) + 1


def resize_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Grow the embeddings (and the output layer) where the tokenizer's ids go beyond them; never shrink them.

    New rows are drawn around the mean of the old ones, as transformers does (Hewitt, 2021, "Initializing New Word
    Embeddings for Pretrained Language Models").

    Returns:
        whether anything grew.
    """
    embeddings: Any = model.get_input_embeddings()
    needed = rows_needed(tokenizer)
    if needed <= embeddings.weight.shape[0]:
        return False
    with quietly():
        model.resize_token_embeddings(needed)
    return True


def prepare_base(located: Located, tokenizer: PreTrainedTokenizerBase, folder: Path, seed: int = 0) -> Located:
    """The base that a PEFT adapter can name: `located` itself, or a plain model written into `folder`.

    Plain peft loads an adapter's base by name and can neither merge another adapter into it nor give it the rows that
    new tokens had in training. So a base that is an adapter's folder, or that must grow for the tokenizer, is written
    out whole (once; what is there already is taken as it is). Everything else is left alone.

    Args:
        located: a fetched model, adapter or hub name.
        folder: where the base goes, if one is needed.
        seed: of the new rows.
    """
    import torch

    from tutelage.models.heads import load_scorer
    from tutelage.models.saving import save_whole

    if folder.is_dir():
        return Located("model", str(folder))
    rows = _embedding_rows(load_config(located))
    if located.kind != "adapter" and rows_needed(tokenizer) <= rows:
        return located
    model = load_scorer(located, dtype="auto") if is_reward_model(located) else load_model(located, dtype="auto")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        resize_for(model, tokenizer)
    return Located("model", str(save_whole(model, tokenizer, folder)))


def base_key(located: Located, tokenizer: PreTrainedTokenizerBase, seed: int) -> str:
    """What names the base that `prepare_base` would write: the same for two that would be alike.

    So stages that start from the same adapter share one base on disk, and can be held on one in memory.
    """
    needed = rows_needed(tokenizer)
    made_of = [located.path, str(needed)]
    if needed > _embedding_rows(load_config(located)):
        made_of.append(str(seed))
    if located.kind == "adapter":
        files = sorted(Path(located.path).glob("adapter_*"))
        made_of[:1] = [base_of(Path(located.path)).path, *(_digest(file) for file in files)]
    return hashlib.blake2b("\n".join(made_of).encode(), digest_size=8).hexdigest()


def same_base(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same weights, apart from a score head beside them."""
    if one.resolve() == other.resolve():
        return True
    files = [sorted(_weight_files(folder), key=lambda file: file.stat().st_size) for folder in (one, other)]
    pairs = list(zip(*files, strict=False))
    return (
        len(files[0]) == len(files[1]) > 0
        and all(left.stat().st_size == right.stat().st_size for left, right in pairs)
        and all(left.samefile(right) or _digest(left) == _digest(right) for left, right in pairs)
    )


def _weight_files(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.safetensors") if file.name != SCORE_FILE]


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()


def end_ids(model_or_config: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer: those of the generation config, the config and the tokenizer, and the one that
    the chat template puts after an assistant's turn."""
    config = getattr(model_or_config, "config", model_or_config)
    sources = [getattr(model_or_config, "generation_config", None), config, tokenizer]
    found: set[int] = set()
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    found.update(_turn_end(tokenizer))
    return frozenset(found)


def _turn_end(tokenizer: Any) -> list[int]:
    """The special token that follows an assistant's turn in the chat template, if one does."""
    if not tokenizer.chat_template:
        return []
    turn = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "the-answer"}]
    try:
        text = tokenizer.apply_chat_template(turn, tokenize=False)
    except Exception:  # a template may refuse any conversation it likes; then it says nothing about ends
        return []
    after = tokenizer(text.rpartition("the-answer")[2].lstrip(), add_special_tokens=False)["input_ids"]
    special = {
        *tokenizer.all_special_ids,
        *(id for id, token in tokenizer.added_tokens_decoder.items() if token.special),
    }
    return after[:1] if after and after[0] in special else []


def _embedding_rows(config: Any) -> int:
    return int(config.get_text_config().vocab_size)


def _tokenizer_place(located: Located) -> str:
    """The folder or hub name that has the tokenizer: an adapter's own, or its base's."""
    if located.kind != "adapter" or (Path(located.path) / "tokenizer_config.json").is_file():
        return located.path
    return _tokenizer_place(base_of(Path(located.path)))


def _chat_template(path: Path) -> str:
    import jinja2

    place = "tokenizer.chat_template"
    try:
        template = path.read_text(encoding="utf-8")  # parsed, never rendered
        syntax = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)  # noqa: S701 # nosec B701
        syntax.parse(template)
    except OSError:
        raise TutelageError.at(place, f"there is no file {path}", "paths are relative to the recipe") from None
    except UnicodeDecodeError:
        raise TutelageError.at(place, f"{path} is not UTF-8 text", "save it as UTF-8") from None
    except jinja2.TemplateSyntaxError as error:
        if "generation" not in str(error):  # transformers' own {% generation %} block is unknown to plain Jinja
            raise TutelageError.at(
                place, f"{path} line {error.lineno}: {error.message}", "it must be a Jinja template"
            ) from None
    return template


@contextmanager
def _explained(located: Located, what: str) -> Iterator[None]:
    """Turn what transformers says when it can't load something into a sentence."""
    import torch

    try:
        yield
    except (TutelageError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # safetensors, tokenizers and transformers each raise their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = (lines or [type(error).__name__])[0][:300]
        fix = (
            "it must be a causal language model with safetensors weights, which transformers knows without remote code"
        )
        raise TutelageError.at("model", f"the {what} of {located.path} can't be loaded: {message}", fix) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the libraries' progress bars, advice and notes to developers off the terminal."""
    from transformers.utils import logging as transformers_logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advises kernels that serve inference alone
    level, shown = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
