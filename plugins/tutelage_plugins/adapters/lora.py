"""LoRA, by PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

import tutelage
from tutelage.config import join
from tutelage.errors import Problem, TutelageError
from tutelage_plugins.adapters import _targets
from tutelage_plugins.adapters._peft import PeftAdapter, learn_in_float32

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Lora(PeftAdapter):
    """LoRA: learns low-rank updates of frozen weights (Hu et al., 2021)."""

    name = "lora"

    class Config(tutelage.Config):
        """How many numbers learn, and where.

        The update of a layer is scaled by alpha / rank (alpha / sqrt(rank) with rslora). The default alpha is the same
        for every rank, because then the best learning rate hardly depends on the rank (Schulman et al., "LoRA Without
        Regret", Thinking Machines 2025, which uses 32); with rslora it is 8, which scales alike at rank 16.
        """

        rank: Annotated[int, Meta(ge=1, le=4096, description="Rank of each layer's update.")] = 16
        alpha: Annotated[
            Annotated[int, Meta(ge=1, le=65536)] | None,
            Meta(description="Scale of the update, times 1/rank; null takes 32 (8 with rslora)."),
        ] = None
        dropout: Annotated[float, Meta(ge=0, lt=1, description="Dropout of what goes into the update.")] = 0.0
        targets: Annotated[
            str | list[str],
            Meta(
                description="The layers to adapt: `all-linear` (all but the output layer), names such as "
                "[q_proj, v_proj], or a regular expression over whole paths."
            ),
        ] = _targets.ALL_LINEAR
        layers: Annotated[
            list[Annotated[int, Meta(ge=0)]] | None,
            Meta(description="Numbers of the blocks to adapt; null adapts all."),
        ] = None
        rslora: Annotated[
            bool,
            Meta(description="Scale by alpha/sqrt(rank), so that large ranks learn as fast (Kalajdzievski, 2023)."),
        ] = False
        dora: Annotated[
            bool,
            Meta(description="Learn magnitude and direction apart (DoRA, Liu et al., 2024): slower, often better."),
        ] = False
        init: Annotated[
            Literal["default", "gaussian", "orthogonal"],
            Meta(description="How updates start; all start as no change: B is 0, or orthogonal to A."),
        ] = "default"

        def __post_init__(self) -> None:
            if not self.targets or (isinstance(self.targets, list) and not all(self.targets)):
                raise ValueError("targets names no layer; leave it out for all-linear")
            if self.layers == []:
                raise ValueError("layers is empty; leave it out to adapt all layers")
            if self.init == "orthogonal" and self.rank % 2:
                raise ValueError(f"orthogonal init needs an even rank, not {self.rank}")

    def check(self, model: nn.Module, place: str) -> list[Problem]:
        problems = _targets.problems(model, self.config.targets, self.config.layers, place)
        if problems:
            return problems
        chosen = _targets.choose(model, self.config.targets, self.config.layers)
        if not chosen:
            return [
                Problem(place=join(place, "targets"), wrong="no layer is left to adapt", fix="widen targets or layers")
            ]
        return [*self._too_high(chosen, place), *self._tied(model, chosen, place), *self._embeddings(chosen, place)]

    def _too_high(self, chosen: dict[str, nn.Module], place: str) -> list[Problem]:
        name, smallest = min(((name, min(_shape(module))) for name, module in chosen.items()), key=lambda pair: pair[1])
        if self.config.rank <= smallest:
            return []
        wrong = f"{self.config.rank} is more than the {smallest} dimensions of {name}"
        return [
            Problem(
                place=join(place, "rank"),
                wrong=wrong,
                fix=f"use at most {smallest}, or leave that layer out of targets",
            )
        ]

    def _tied(self, model: nn.Module, chosen: dict[str, nn.Module], place: str) -> list[Problem]:
        tied = _targets.tied_embeddings(model)
        names = [name for name, module in chosen.items() if any(module is end for end in tied)]
        if not names:
            return []
        together = "the input embeddings and the output layer are one weight here, so an update of one can't be merged"
        wrong = f"{' and '.join(names)}: {together}"
        return [
            Problem(place=join(place, "targets"), wrong=wrong, fix="leave it out of targets, or use the adapter full")
        ]

    def _embeddings(self, chosen: dict[str, nn.Module], place: str) -> list[Problem]:
        from torch import nn

        names = [name for name, module in chosen.items() if isinstance(module, nn.Embedding)]
        if not (names and self.config.dropout):
            return []
        return [
            Problem(place=join(place, "dropout"), wrong=f"can't be had on an embedding ({names[0]})", fix="set it to 0")
        ]

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[int] = ()
    ) -> nn.Module:
        from peft import get_peft_model

        from tutelage.engine.kernels.low_rank import fuse_updates
        from tutelage.models.loading import quietly

        chosen = _targets.choose(model, self.config.targets, self.config.layers)
        if not chosen:
            raise TutelageError(self.check(model, "adapter"))
        with quietly():
            adapted = get_peft_model(model, self._peft_config(model, chosen, new_tokens))
        return fuse_updates(learn_in_float32(adapted))

    def _peft_config(self, model: Any, chosen: dict[str, nn.Module], new_tokens: Sequence[int]) -> Any:
        from peft import LoraConfig, TaskType
        from transformers.pytorch_utils import Conv1D

        from tutelage.models.heads import score_head

        config = self.config
        scores = score_head(model) is not None  # peft then learns and saves the head as a whole
        return LoraConfig(
            task_type=TaskType.SEQ_CLS if scores else TaskType.CAUSAL_LM,
            r=config.rank,
            lora_alpha=config.alpha or (8 if config.rslora else 32),
            lora_dropout=config.dropout,
            target_modules=_targets.spelled(model, chosen),
            use_rslora=config.rslora,
            use_dora=config.dora,
            init_lora_weights=True if config.init == "default" else config.init,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in chosen.values()),
            trainable_token_indices=_token_rows(model, chosen, new_tokens),
        )


def _shape(module: Any) -> tuple[int, ...]:
    return tuple(module.weight.shape)


def _token_rows(model: Any, chosen: dict[str, nn.Module], new_tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """Which rows of which embedding learn besides LoRA: one entry where input and output are tied, as PEFT wants."""
    if not new_tokens:
        return None
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    names = {module: name for name, module in model.named_modules()}
    adapted = [name for name, module in chosen.items() if any(module is end for end in ends)]
    if adapted:
        raise TutelageError.at(
            "adapter.targets", f"{adapted[0]} can't be adapted while new tokens learn", "leave it out of targets"
        )
    if getattr(ends[-1], "bias", None) is not None:
        raise TutelageError.at(
            "tokenizer.add",
            "this model's output layer has a bias, beside which single rows can't learn",
            "use the adapter full",
        )
    rows = sorted(set(new_tokens))
    learning = ends[:1] if _targets.tied_embeddings(model) else ends
    return {names[end]: rows for end in learning}
