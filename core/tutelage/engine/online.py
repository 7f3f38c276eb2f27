"""Phases that learn from their own answers: what PPO and GRPO have in common, without torch at import.

One step is an *iteration*: the policy answers some prompts (the rollout), the answers are scored, each token is given
an advantage, and the policy takes a few optimizer steps on them. `engine/iterations.py` does that; a phase says what an
answer's advantage is and what the losses are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from msgspec import Meta

from tutelage.config import Config, join
from tutelage.errors import Problem
from tutelage.formats import Continuation, Conversation, Prompted, Record
from tutelage.marks import MODEL, asks_for
from tutelage.phase import Artifact, Phase
from tutelage.reward import Weighted, rewards_of, unscorable

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from tutelage.engine.context import StageContext
    from tutelage.engine.rollouts import Part, Rollout
    from tutelage.recipe import Stage

Number = Annotated[float, Meta(ge=0)]


class OnlineConfig(Config):
    """What is answered and how, what answers are worth, and how far the policy may move."""

    reward_model: Annotated[
        str,
        MODEL,
        Meta(
            description="The reward model: `stage:NAME`, or a folder that such a stage left. On the base that this "
            "stage starts from, it is held as an adapter of it."
        ),
    ] = ""
    rewards: Annotated[
        list[dict[str, Any] | str],
        asks_for("reward"),
        Meta(description="Further rewards, each with its weight: [{kind: length, weight: 0.1, …}, …]; they add up."),
    ] = []
    held_out_rewards: Annotated[
        list[dict[str, Any] | str],
        asks_for("reward"),
        Meta(
            description="Rewards that are watched but not learnt from: that they fall while the reward rises is told."
        ),
    ] = []
    prompts_per_step: Annotated[int, Meta(ge=1, description="Prompts in one iteration, over all devices.")] = 32
    samples: Annotated[int, Meta(ge=1, le=1024, description="Answers to each prompt.")] = 1
    max_new_tokens: Annotated[int, Meta(ge=1, description="Longest answer, in tokens.")] = 64
    temperature: Annotated[
        float,
        Meta(gt=0, le=10, description="Of sampling; log-probabilities are those of the model at this temperature."),
    ] = 1.0
    top_p: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="Draw from the likeliest tokens of this share; below 1 the policy's gradient is biased.",
        ),
    ] = 1.0
    inner_epochs: Annotated[int, Meta(ge=1, le=1000, description="Passes over an iteration's answers.")] = 1
    minibatches: Annotated[
        int, Meta(ge=1, le=10_000, description="Optimizer steps in a pass: answers are shared out among so many.")
    ] = 1
    clip: Annotated[
        float, Meta(gt=0, description="How far a token's probability may move, as a ratio, before it gains nothing.")
    ] = 0.2
    entropy_bonus: Annotated[Number, Meta(description="Pays for each nat of entropy: keeps answers varied.")] = 0.0
    target_kl: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="End an iteration's passes when the policy moved so many nats a token within it."),
    ] = None
    kl_limit: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Stop the run when answers are so many nats from the reference, on average; null never."),
    ] = 200.0
    kl_budget: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Tell when answers are so many nats from the reference, on average; null never."),
    ] = 50.0
    length_drift: Annotated[
        Annotated[float, Meta(gt=1)] | None,
        Meta(description="Tell when answers become so many times longer or shorter than at first; null never."),
    ] = 2.0
    missing_end_penalty: Annotated[
        Number, Meta(description="Taken from the reward of an answer that was cut at max_new_tokens.")
    ] = 0.0
    length_penalty: Annotated[float, Meta(description="Taken from an answer's reward for each of its tokens.")] = 0.0
    normalize_rewards: Annotated[
        bool, Meta(description="Scale rewards by the running mean and deviation of all so far, before any penalty.")
    ] = False
    clip_rewards: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Largest absolute reward, after scaling; null clips none."),
    ] = None
    show: Annotated[int, Meta(ge=0, le=100, description="Answers of each iteration to show, from worst to best.")] = 2


class OnlinePhase(Phase):
    """A phase that learns from its own answers: it says what they are worth and what the losses are."""

    takes = (Prompted, Conversation, Continuation)
    critic: ClassVar[bool] = False
    "Whether a value model learns beside the policy."
    credits_by_log_probs: ClassVar[bool] = True
    "Whether `credit` looks at the policy's log-probabilities or entropies; if not, they may be measured after it."
    value_start: Literal["auto", "policy", "reward"] = "auto"
    "What the value model starts as; auto takes the reward model, where there is one that it can be."

    Config = OnlineConfig

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether log-probabilities under the model that the stage starts from are wanted."""

    @property
    def measured(self) -> list[str]:
        """What is measured of each token of a rollout besides what the policy says of it."""
        return ["reference"] * self.needs_reference + ["values"] * self.critic

    @abstractmethod
    def divergence(self, log_probs: Tensor, reference: Tensor) -> Tensor:
        """The estimate of the divergence from the reference that is trained with, so that it is what is told.

        Both of each token, (tokens,) in nats, as is what it returns.
        """

    @abstractmethod
    def credit(self, rollout: Rollout, state: dict[str, float]) -> dict[str, float]:
        """Give a rollout's tokens advantages (and returns, where there is a value model); what there is to tell.

        Args:
            state: numbers that are kept from one iteration to the next, and in checkpoints.
        """

    def worth(self, rollout: Rollout, state: dict[str, float]) -> Tensor:
        """What answers are worth, (answers,): their rewards, scaled and clipped, less penalties."""
        scores: Tensor = rollout.given["reward"]
        config: OnlineConfig = self.config
        if config.normalize_rewards:
            mean, deviation = _running(scores, state)
            scores = (scores - mean) / (deviation + 1e-6)
        if config.clip_rewards is not None:
            scores = scores.clamp(-config.clip_rewards, config.clip_rewards)
        cut = (~rollout.finished).float()
        return scores - config.missing_end_penalty * cut - config.length_penalty * rollout.counts

    @abstractmethod
    def policy_losses(self, log_probs: Tensor, entropy: Tensor, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's loss of each token, and measures to tell the mean of; all (tokens,)."""

    def value_losses(self, values: Tensor, part: Part) -> Tensor:
        """The value model's loss of each token, (tokens,)."""
        raise NotImplementedError

    @abstractmethod
    def weights(self, part: Part) -> tuple[Tensor, Tensor]:
        """What each token's loss counts for, (tokens,), and each answer in what the sum is divided by, (answers,)."""

    def learning_rate(self, context: StageContext, model: nn.Module) -> float:
        """A fifth of the adapter's own: an answer's reward says less than an example does."""
        return context.adapter.default_learning_rate / 5

    def references(self) -> dict[str, str]:
        named = {"reward_model": self.config.reward_model} if self.config.reward_model else {}
        for field in ("rewards", "held_out_rewards"):
            for index, weighted in enumerate(self._rewards(field, "", [])):
                for inner, reference in weighted.reward.references().items():
                    named[f"{field}.{index}.{inner}"] = reference
        return named

    def check(self, stage: Stage, place: str) -> list[Problem]:
        problems: list[Problem] = []
        config, here = self.config, join(place, "phase")
        for field in ("rewards", "held_out_rewards"):
            self._rewards(field, here, problems)
        if not config.reward_model and not config.rewards:
            fix = "name a reward_model (stage:NAME), or rewards such as [{kind: length, …}]"
            problems.append(Problem(place=here, wrong="there is nothing that scores answers", fix=fix))
        if config.reward_model and any(
            isinstance(each, dict) and each.get("name") == "reward_model" for each in config.rewards
        ):
            wrong = "a reward is called reward_model, as the one that the field reward_model names"
            problems.append(Problem(place=join(here, "rewards"), wrong=wrong, fix="give it another name"))
        if stage.adapter.get("dropout"):
            wrong = "a policy that learns with dropout is not the one that gave the answers"
            problems.append(Problem(place=join(place, "adapter.dropout"), wrong=wrong, fix="leave dropout out"))
        trainer = join(place, "trainer")
        if stage.trainer.strategy == "fsdp":
            wrong = "a sharded model would be gathered anew for every token that it draws"
            problems.append(Problem(place=join(trainer, "strategy"), wrong=wrong, fix="use strategy: ddp"))
        if stage.trainer.compile is True:
            wrong = "several models take turns on one base, and each turn would compile it anew"
            problems.append(
                Problem(
                    place=join(trainer, "compile"),
                    wrong=wrong,
                    fix="leave compile out, or use compile: auto, which compiles no such stage",
                )
            )
        return problems

    def _rewards(self, field: str, place: str, problems: list[Problem]) -> list[Weighted]:
        from tutelage.plugins import host

        return rewards_of(getattr(self.config, field), host(), join(place, field), problems)

    def examine_records(
        self,
        records: list[tuple[str, Record]],
        tokenizer: PreTrainedTokenizerBase,
        window: int | None,
        stage: Stage,
        place: str,
    ) -> list[Problem]:
        """Prompts that leave no room for an answer in what the model can see, and rows that no reward can judge by."""
        from tutelage.engine.prompting import encode, fitting, room

        assert stage.data is not None
        found, problems = encode(records, tokenizer)
        wide = room(window, stage.trainer.max_length)
        _, too_long = fitting(found, wide, self.config.max_new_tokens, stage.data, place)
        rewards = [each for field in ("rewards", "held_out_rewards") for each in self._rewards(field, "", [])]
        return [*problems, *too_long, *unscorable(rewards, list(zip(found.places, found.records, strict=True)))]

    def run(self, context: StageContext) -> Artifact:
        from tutelage.engine.reinforcing import train_online

        return train_online(self, context)


def _running(scores: Tensor, state: dict[str, float]) -> tuple[float, float]:
    """Mean and deviation of these scores and all before them (Chan et al. 1983, updating formulas for variances)."""
    count, mean, squares = (state.get(f"rewards.{name}", 0.0) for name in ("count", "mean", "squares"))
    wide = scores.double()
    new = float(wide.mean()) - mean
    together = count + len(scores)
    squares += float(((wide - wide.mean()) ** 2).sum()) + new**2 * count * len(scores) / together
    mean += new * len(scores) / together
    state |= {"rewards.count": together, "rewards.mean": mean, "rewards.squares": squares}
    return mean, math.sqrt(squares / together)


CRITIC = "critic"
"The folder, beside the policy, of the value model that learnt with it."


def critic_folder(stage_folder: Path) -> Path:
    """Where a stage leaves its value model."""
    return stage_folder / CRITIC
