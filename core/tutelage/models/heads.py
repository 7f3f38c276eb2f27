"""Models that end in one score a sequence: reward models, in the form that transformers and peft read by themselves.

A reward model is transformers' `AutoModelForSequenceClassification` with one label. It takes the score at the last
token that is not its padding token, so that token must never end a sequence: see `choose_pad`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from tutelage.data.rendering import Renderer
from tutelage.errors import TutelageError
from tutelage.formats import Prompt
from tutelage.models.loading import (
    SCORE,
    SCORE_FILE,
    base_of,
    dequantised,
    end_ids,
    is_reward_model,
    keep_packing,
    load_config,
    load_model,
    load_tokenizer,
    quietly,
    read_whole,
    refuse_unfit,
    resize_for,
)
from tutelage.models.locating import Located, locate_folder
from tutelage.models.saving import write_folder
from tutelage.recipe import Tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAD = "<|pad|>"
"The token that is added where every special token may end a text."
_LINKED, _INDEX = "model-00001-of-00002.safetensors", "model.safetensors.index.json"


class ScoreHead(nn.Linear):
    """A head that computes in float32 whatever precision is around it, and keeps the scores of all tokens."""

    scores: Tensor | None = None
    "Of the last forward pass, (rows, tokens, 1), until they are taken."

    @classmethod
    def like(cls, head: nn.Linear) -> Self:
        """The same weights in float32."""
        made = cls(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        made.weight = nn.Parameter(head.weight.detach().float())
        if head.bias is not None:
            made.bias = nn.Parameter(head.bias.detach().float())
        return made

    def forward(self, input: Tensor) -> Tensor:
        """(…, hidden) -> (…, 1), float32."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            self.scores = F.linear(input.float(), self.weight.float(), bias)
        return self.scores


def score_head(model: Any) -> nn.Module | None:
    """The score head that a model, with an adapter or without, uses now; None where it has none."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head: Any = getattr(base, "score", None)
    if hasattr(head, "modules_to_save"):  # peft keeps the head that learns beside the one that it was made from
        head = head.original_module if head.disable_adapters else head.modules_to_save[head.active_adapter]
    return head if isinstance(head, nn.Linear) else None


def take_scores(model: nn.Module) -> Tensor:
    """The scores that the last forward pass gave all tokens, (rows, tokens)."""
    head: Any = score_head(model)
    scores: Tensor = head.scores[..., 0]
    head.scores = None
    return scores


def load_scorer(
    located: Located,
    *,
    dtype: torch.dtype | str,
    seed: int | None = None,
    pad: int | None = None,
    attention: str | None = None,
    **loading: Any,
) -> PreTrainedModel:
    """Load a model with one score a sequence, for training or use.

    A reward model is loaded with the head that it learnt. A language model is given one whose weights are drawn from a
    normal distribution of mean 0 and deviation 1 / sqrt(hidden + 1) (Stiennon et al. 2020, "Learning to summarize from
    human feedback", appendix B), in float32. An adapter's folder is merged into its base.

    Args:
        dtype: of the weights but the head's, or "auto" for the one they are stored in.
        seed: of a language model's new head; without one, a model that has no head is refused.
        pad: the id that is padding; by default what the model's config names.
        attention: an attention implementation of transformers; None takes its default.
        loading: further keyword arguments of `from_pretrained`, such as an adapter's `loading`.
    Raises:
        TutelageError: when it can't be loaded, or it is a reward model whose head is missing.
    """
    if attention is not None:
        loading["attn_implementation"] = attention
    if located.kind == "adapter":
        with tempfile.TemporaryDirectory() as folder, quietly():
            _merged(located, dtype).save_pretrained(folder)
            return load_scorer(Located("model", folder), dtype=dtype, seed=seed, pad=pad, **loading)
    model, learnt = _load(located, dtype=dtype, **loading)
    if not learnt:
        if seed is None or is_reward_model(located):
            raise _headless(located)
        model.score.weight = nn.Parameter(_drawn(model.score.in_features, seed).to(model.score.weight.device))
    if pad is not None:
        _name_pad(model.config, pad)
    made: PreTrainedModel = model
    return made


def adapted_scorer(folder: Path, *, dtype: torch.dtype | str, **loading: Any) -> Any:
    """The base of a reward adapter's folder with the adapter on top, as peft loads it; the head is in float32.

    Raises:
        TutelageError: when it does not fit its base, or has no head.
    """
    from safetensors import safe_open

    from tutelage.models.merging import with_adapter

    base, _ = _load(base_of(folder), dtype=dtype, **loading)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        if not any(name.endswith(f".{SCORE}") for name in file.keys()):  # noqa: SIM118 - no mapping
            raise _headless(Located("adapter", str(folder)))
    return with_adapter(dequantised(base, dtype), folder)


def _merged(located: Located, dtype: torch.dtype | str) -> Any:
    from tutelage.models.merging import merge_into

    if not is_reward_model(located):
        return load_model(located, dtype=dtype)
    return merge_into(adapted_scorer(Path(located.path), dtype=dtype))


def _load(located: Located, **loading: Any) -> tuple[Any, bool]:
    """A model with a score head, and whether the head was in its files; if not, its values are to be replaced."""
    from transformers import AutoModelForSequenceClassification

    model, info = read_whole(AutoModelForSequenceClassification, located, num_labels=1, **loading)
    learnt = SCORE not in info["missing_keys"]
    refuse_unfit(located, {**info, "missing_keys": set(info["missing_keys"]) - {SCORE}})
    head = getattr(model, "score", None)
    if type(head) is not nn.Linear:
        wrong = f"{type(model).__name__} of {located.path} has no plain score head"
        raise TutelageError.at("model", wrong, "use a decoder such as Llama, Qwen, Gemma or GPT-2, not quantised")
    model.score = ScoreHead.like(head)
    return keep_packing(model), learnt


def _drawn(hidden: int, seed: int) -> Tensor:
    """A new head's weight, (1, hidden)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, hidden, generator=generator) / math.sqrt(hidden + 1)


def _headless(located: Located) -> TutelageError:
    wrong = f"{located.path} has no score head ({SCORE}), and one drawn at random would score at random"
    return TutelageError.at("model", wrong, "name a trained reward model, with all of its files")


# Padding


def choose_pad(tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> int:
    """Make the tokenizer pad, on the right, with a token that never ends a sequence; its id.

    transformers takes a score at the last token that is not padding. Many tokenizers pad with the token that ends an
    answer, and then the score would be taken before it, in padded batches and alone. So padding is the tokenizer's own
    if it ends nothing, else a special token that is named as padding, or that begins texts, or any other that ends
    nothing; where there is none, as in GPT-2, a token is added for it, and the embeddings must have a row for it.
    """
    known: Any = tokenizer
    special = {token.content: id for id, token in known.added_tokens_decoder.items() if token.special}
    named = sorted((token for token in special if "pad" in token.lower()), key=special.__getitem__)
    own, begins, unknown = known.pad_token, known.bos_token, known.unk_token
    texts = ends | ({known.eos_token_id} if known.eos_token_id is not None else set())
    for token in (own, *named, begins, unknown, *special):
        if token is not None and known.convert_tokens_to_ids(token) not in texts:
            break
    else:
        token = PAD
    known.add_special_tokens({"pad_token": token})
    known.padding_side = "right"
    return int(known.pad_token_id)


def _name_pad(config: Any, pad: int) -> None:
    config.pad_token_id = pad
    config.get_text_config().pad_token_id = pad


# The base of a reward adapter


def prepare_scorer_base(located: Located, folder: Path, *, seed: int, pad: int) -> Located:
    """The base that a reward adapter can name, so that plain peft loads it: `located` if it is a reward model that pads
    with `pad`, else the same weights, with the head that `load_scorer` draws where they have none, in `folder`.

    A language model's own folder would not do: peft would give it two labels and no padding. Its files are linked
    where the disk allows it, so this costs no room.
    """
    config = load_config(located).get_text_config()
    if is_reward_model(located) and config.pad_token_id == pad:
        return located
    with write_folder(folder) as unfinished:
        _link_weights(_local(located), unfinished, seed, int(config.hidden_size))
        _scoring_config(located, pad).save_pretrained(unfinished)
    return Located("model", str(folder))


def _local(located: Located) -> Path:
    if located.kind != "hub":
        return Path(located.path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(located.path, allow_patterns=["*.safetensors", "*.json"], local_files_only=True))


def _link_weights(source: Path, target: Path, seed: int, hidden: int) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    index = source / _INDEX
    if (source / "model.safetensors").is_file():
        files = {"model.safetensors": _LINKED}  # under its own name it would be taken for the whole model
        with safe_open(source / "model.safetensors", framework="pt") as file:
            places = dict.fromkeys(file.keys(), _LINKED)
    else:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: name for name in sorted(set(places.values()))}
    for name, linked in files.items():
        _link((source / name).resolve(), target / linked)
    if SCORE not in places:
        save_file({SCORE: _drawn(hidden, seed)}, target / SCORE_FILE, metadata={"format": "pt"})
        places[SCORE] = SCORE_FILE
    size = sum(path.stat().st_size for path in target.iterdir())
    described = {"metadata": {"total_size": size}, "weight_map": places}
    (target / _INDEX).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _scoring_config(located: Located, pad: int) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config: Any = AutoConfig.from_pretrained(located.path, num_labels=1)
    classes: Any = AutoModelForSequenceClassification._model_mapping
    config.architectures = [classes[type(config)].__name__]
    _name_pad(config, pad)
    return config


# Use


class Scorer:
    """A trained reward model with its tokenizer, that scores answers as it was trained to.

    It pads with what the model's config names, so its scores are those of plain transformers.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.pad: int | None = model.config.get_text_config().pad_token_id
        if self.pad is None:
            self.pad = choose_pad(tokenizer, end_ids(model, tokenizer))
            _name_pad(model.config, self.pad)
            resize_for(model.get_base_model() if hasattr(model, "get_base_model") else model, tokenizer)
        self._renderer = Renderer(tokenizer, "last", end_ids(model, tokenizer))
        self._window = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str], batch_size: int = 16) -> list[float]:
        """A score for each answer to the prompt of the same place.

        Raises:
            TutelageError: naming the answer, when it is none that the model can read.
        """
        pairs = enumerate(zip(prompts, answers, strict=True))
        return self.score_ids([self._ids(index, *pair) for index, pair in pairs], batch_size)

    @torch.no_grad()
    def score_ids(self, sequences: Sequence[list[int]], batch_size: int = 16) -> list[float]:
        """A score for each sequence of token ids, by a plain forward pass of transformers."""
        scores = [0.0] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        device = next(self.model.parameters()).device
        assert self.pad is not None
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found = pooled_scores(self.model, [sequences[row] for row in rows], self.pad, device)
            for row, score in zip(rows, found.tolist(), strict=True):
                scores[row] = score
        return scores

    def _ids(self, index: int, prompt: Prompt, answer: str) -> list[int]:
        place = f"answer {index}"
        try:
            ids = self._rendered(prompt, answer)
        except ValueError as error:
            raise TutelageError.at(place, str(error)) from None
        if len(ids) > self._window:
            wrong = f"has {len(ids):,} tokens with its prompt, and the reward model can see {self._window:,}"
            raise TutelageError.at(place, wrong, "give shorter prompts or answers")
        return ids

    def _rendered(self, prompt: Prompt, answer: str) -> list[int]:
        if answer.strip():
            with contextlib.suppress(ValueError):
                whole: list[int] = self._renderer.answered(prompt, answer).ids.tolist()
                return whole
        # Models write what nobody would learn from: nothing at all, or what ends a turn in the middle of one. It is
        # scored as it stands, between the prompt and the end.
        other = self._renderer.answered(prompt, "a")
        last = int(other.learn.nonzero()[0][-1])
        written: list[int] = self._renderer.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*self._renderer.prompted(prompt), *written, *other.ids[last:].tolist()]


def pooled_scores(model: Any, sequences: Sequence[list[int]], pad: int, device: torch.device | str) -> Tensor:
    """What transformers makes of sequences in one batch, padded on the right: (sequences,), float32."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in sequences], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in sequences], device=device)
    scores: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return scores[:, 0].float()


def load_scorer_for_use(
    model: Located | Path | str, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> Scorer:
    """Load a trained reward model, or an adapter over its base, to score with.

    Args:
        model: where it is; text is a folder.
        dtype: of the weights but the head's; by default float32 on a CPU, else what they are stored in.
        device: by default the GPU, where there is one.
    Raises:
        TutelageError: when it is no reward model, or its head is missing.
    """
    located = model if isinstance(model, Located) else locate_folder(Path(model), "model")
    if not is_reward_model(located):
        wrong = f"{located.path} is no reward model: it has no score head"
        raise TutelageError.at("model", wrong, "train one with the phase reward_model")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = dtype or (torch.float32 if place.type == "cpu" else "auto")
    tokenizer = load_tokenizer(located, Tokens(), Path(located.path))
    loaded: Any
    if located.kind == "adapter":
        loaded = adapted_scorer(Path(located.path), dtype=chosen)
    else:
        loaded = load_scorer(located, dtype=chosen)
    return Scorer(loaded.to(place), tokenizer)
