"""Policy, value, reward and reference model of one stage: adapters of one frozen base, or models of their own.

On one base, the policy is base + A, the value model base + B and a head, the reward model base + C and a head, and the
reference the base with its adapters off. Each is switched on for its own passes, so that no more than one model's
activations are ever in memory. Where all weights learn there is no frozen base to share: then the value model and the
reference are copies.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file
from torch import nn

from tutelage.engine.forward import base_of, hidden_states
from tutelage.errors import TutelageError
from tutelage.models.decoding import ready
from tutelage.models.heads import ScoreHead
from tutelage.models.loading import SCORE, quietly
from tutelage.models.locating import refuse_pickles

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from tutelage.data.batches import Batch

Role = Literal["policy", "value", "reward", "reference"]
VALUE, REWARD = "critic", "scorer"
"What the adapters of value and reward model are called beside the policy's: no layer has such a name."


class Actors(nn.Module):
    """All models of a stage that learns from its own answers; `acting` gives the one whose turn it is."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        self.value: Any = None
        "The value model without its head, where it is a model of its own."
        self.value_head: ScoreHead | None = None
        self.reward_head: ScoreHead | None = None
        "The head of the reward model, where that is an adapter of the policy's base."
        self.reference: nn.Module | None = None
        "The reference, where it is a copy."

    @property
    def shares(self) -> bool:
        """Whether other models can be adapters of the policy's frozen base."""
        return hasattr(self.policy, "peft_config")

    def get_base_model(self) -> PreTrainedModel:
        """The transformers model of the policy."""
        return base_of(self.policy)

    def learning(self, role: Literal["policy", "value"]) -> list[nn.Parameter]:
        """The parameters that the policy, or the value model, learns."""
        value = {id(parameter) for _, parameter in _of_adapter(self.policy, VALUE)}
        for module in (self.value, self.value_head):
            value.update(map(id, module.parameters() if module is not None else ()))
        return [
            parameter
            for parameter in self.parameters()
            if parameter.requires_grad and (id(parameter) in value) == (role == "value")
        ]

    @contextmanager
    def acting(self, role: Role) -> Iterator[nn.Module]:
        """The model of a role, to be called, and gone back through, within the context."""
        own = {"value": self.value, "reference": self.reference}.get(role)
        if own is not None or role == "policy":
            yield self.policy if own is None else own
            return
        policy: Any = self.policy
        with _learning_kept(policy):
            if role == "reference":
                with policy.disable_adapter():
                    yield policy
                return
            try:
                with _learning_kept(policy):
                    policy.set_adapter(VALUE if role == "value" else REWARD, inference_mode=True)
                yield policy
            finally:
                policy.set_adapter("default")

    def copy_reference(self) -> None:
        """Keep a copy of the policy as it is now, unless its adapters can be switched off."""
        if not self.shares:
            self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def add_reward(self, folder: Path) -> None:
        """Have the reward model of a PEFT folder as an adapter of the policy's base.

        Raises:
            TutelageError: when the folder has no head, or its weights don't fit this base.
        """
        from peft import PeftConfig, set_peft_model_state_dict

        refuse_pickles(folder, str(folder), "adapter_model.safetensors")
        weights = load_file(folder / "adapter_model.safetensors")
        self.reward_head = _head(_taken(weights, folder)).requires_grad_(False)
        policy: Any = self.policy
        with _learning_kept(policy), quietly():
            settings = PeftConfig.from_pretrained(str(folder))
            settings.modules_to_save, settings.task_type = None, policy.peft_config["default"].task_type
            policy.add_adapter(REWARD, settings)
            found = set_peft_model_state_dict(policy, weights, adapter_name=REWARD)
            policy.set_adapter("default")
        for _, parameter in _of_adapter(policy, REWARD):
            parameter.requires_grad_(False)
        astray = [name for name in found.unexpected_keys if REWARD in name.split(".")]
        astray += [name for name in found.missing_keys if REWARD in name.split(".")]
        if astray:
            wrong = f"the reward model {folder} does not fit the base: {astray[0]}"
            raise TutelageError.at("reward_model", wrong, "train it on the model that this stage starts from")

    def add_value(self, reward_model: Any = None) -> None:
        """Have a value model: one that starts as the reward model with its head, or as the policy with a head of zeros.

        Args:
            reward_model: the reward model, or None; `SharedScorer` where it is an adapter of the same base.
        """
        if self.shares and (reward_model is None or self.reward_head is not None):
            self._add_value_adapter(reward_model is not None)
        elif reward_model is None:
            self.value = copy.deepcopy(base_of(self.policy).base_model)
        else:
            source = copy.deepcopy(reward_model)
            source = source.merge_and_unload() if hasattr(source, "peft_config") else source
            self.value_head = _head(source.score.weight)
            self.value = source.base_model.float().requires_grad_(True)
            self.value.set_attn_implementation(base_of(self.policy).config._attn_implementation)
        if self.value_head is None:
            hidden = int(base_of(self.policy).config.get_text_config().hidden_size)
            self.value_head = _head(torch.zeros(1, hidden))

    def _add_value_adapter(self, from_reward: bool) -> None:
        policy: Any = self.policy
        settings = copy.deepcopy(policy.peft_config[REWARD if from_reward else "default"])
        settings.trainable_token_indices = None  # rows of new tokens are the policy's to learn
        settings.inference_mode = False
        with _learning_kept(policy), quietly():
            policy.add_adapter(VALUE, settings)
            policy.set_adapter("default")
        weights = dict(policy.named_parameters())
        for name, parameter in _of_adapter(policy, VALUE):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            if from_reward:
                parameter.data.copy_(weights[name.replace(f".{VALUE}.", f".{REWARD}.")].data)
        if from_reward:
            assert self.reward_head is not None
            self.value_head = _head(self.reward_head.weight)

    def values(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the value model expects before each learnt token: (learnt,) float32, in `learnt_logits`' order.

        Args:
            model: what `acting("value")` gave.
        """
        assert self.value_head is not None
        hidden = hidden_states(model, batch)
        predicting = batch.targets.roll(-1, dims=1)  # the first position of a row is never a target
        return _scores(self.value_head, hidden[predicting])

    def drop_others(self) -> None:
        """Leave the policy alone with its own adapter, as it is saved."""
        policy: Any = self.policy
        for name in (VALUE, REWARD):
            if self.shares and name in policy.peft_config:
                policy.delete_adapter(name)


class SharedScorer(nn.Module):
    """The reward model among a stage's models, as transformers' sequence classification has it."""

    def __init__(self, actors: Actors) -> None:
        super().__init__()
        assert actors.reward_head is not None
        self.score = actors.reward_head
        self.config = copy.deepcopy(actors.get_base_model().config)
        self.config.get_text_config().pad_token_id = 0  # any will do: scores are read where the mask ends
        self._actors = [actors]  # in a list, so that it is not a part of this module

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Scores at the last token that is attended to, as `.logits` (rows, 1)."""
        with self._actors[0].acting("reward") as model, ready(model):
            trunk: Any = base_of(model).base_model
            hidden = trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(1) - 1]
        return SimpleNamespace(logits=_scores(self.score, last)[:, None])


def _scores(head: ScoreHead, hidden: Tensor) -> Tensor:
    """What a head makes of (n, hidden): (n,), float32."""
    scores: Tensor = head(hidden)
    head.scores = None
    return scores[:, 0]


def _head(weight: Tensor) -> ScoreHead:
    """A head that computes in float32, with weights (1, hidden) of its own."""
    made = ScoreHead(weight.shape[1], 1, bias=False, device="meta")
    made.weight = nn.Parameter(weight.detach().float().clone())
    return made


def _taken(weights: dict[str, Tensor], folder: Path) -> Tensor:
    """A scalar head's weight (1, hidden), taken out of an adapter's weights: a head is never drawn at random.

    Raises:
        TutelageError: when there is none.
    """
    names = [name for name in weights if name.endswith(f".{SCORE}")]
    if len(names) != 1 or weights[names[0]].dim() != 2 or len(weights[names[0]]) != 1:
        wrong = f"{folder} has no head of one score ({SCORE}), so it can't score anything"
        raise TutelageError.at("reward_model", wrong, "name what a reward_model stage made, with all of its files")
    return weights.pop(names[0])


def _of_adapter(policy: nn.Module, adapter: str) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in policy.named_parameters() if adapter in name.split(".")]


@contextmanager
def _learning_kept(model: nn.Module) -> Iterator[None]:
    """What learns goes on learning, whatever adapter is switched on within: peft freezes those that are not."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
