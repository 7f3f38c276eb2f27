"""Proximal policy optimization: reinforcement learning from a reward, with a value model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from tutelage.config import join
from tutelage.engine.online import OnlineConfig, OnlinePhase
from tutelage.errors import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.engine.rollouts import Part, Rollout
    from tutelage.recipe import Stage

COEFFICIENT = "kl_coefficient"


class PPO(OnlinePhase):
    """Proximal policy optimization: answers that score better than a value model expected become likelier."""

    name = "ppo"
    critic = True
    switches = True

    class Config(OnlineConfig):
        """PPO as in Ouyang et al. (2022): each token pays for leaving the reference, the last one earns the reward."""

        inner_epochs: Annotated[int, Meta(ge=1, le=1000, description="Passes over an iteration's answers.")] = 4
        value_clip: Annotated[
            Annotated[float, Meta(gt=0)] | None,
            Meta(description="How far a value may move from what it was before it gains nothing; null does not clip."),
        ] = 0.2
        gamma: Annotated[float, Meta(gt=0, le=1, description="What a reward one token later is worth.")] = 1.0
        gae_lambda: Annotated[
            float,
            Meta(ge=0, le=1, description="Generalized advantage estimation: 1 trusts rewards, 0 the value model."),
        ] = 0.95
        whiten: Annotated[
            bool, Meta(description="Scale an iteration's advantages to mean 0 and deviation 1, over all tokens.")
        ] = True
        kl_coefficient: Annotated[
            float, Meta(ge=0, description="What each nat away from the reference costs, in rewards.")
        ] = 0.05
        kl_control: Annotated[
            Literal["fixed", "adaptive"],
            Meta(description="adaptive raises and lowers kl_coefficient so that kl_target is kept."),
        ] = "fixed"
        kl_target: Annotated[float, Meta(gt=0, description="Nats an answer that adaptive control keeps to.")] = 6.0
        kl_horizon: Annotated[
            float, Meta(gt=0, description="Answers in which adaptive control reacts; more react more slowly.")
        ] = 10_000.0
        kl_estimator: Annotated[
            Literal["k1", "k2", "k3"],
            Meta(description="How a token's divergence is estimated: k1 is unbiased, k3 unbiased and never negative."),
        ] = "k1"
        value_init: Annotated[
            Literal["auto", "reward", "policy"],
            Meta(
                description="What the value model starts as; auto takes the reward model, if it is on the same base "
                "(or, where all weights learn, as large), else the policy."
            ),
        ] = "auto"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.value_start = self.config.value_init

    @property
    def needs_reference(self) -> bool:
        return True

    def check(self, stage: Stage, place: str) -> list[Problem]:
        problems = super().check(stage, place)
        if self.config.value_init == "reward" and not self.config.reward_model:
            here = join(place, "phase.value_init")
            problems.append(Problem(place=here, wrong="there is no reward_model", fix="name one, or use auto"))
        return problems

    def divergence(self, log_probs: Tensor, reference: Tensor) -> Tensor:
        from tutelage.objectives.kl import k1, k2, k3

        estimator = {"k1": k1, "k2": k2, "k3": k3}[self.config.kl_estimator]
        return estimator(log_probs, reference)

    def credit(self, rollout: Rollout, state: dict[str, float]) -> dict[str, float]:
        """Generalized advantage estimates of rewards less the price of the divergence."""
        from tutelage.objectives.advantages import explained_variance, gae, moments, token_rewards, whiten
        from tutelage.objectives.kl import adapted
        from tutelage.objectives.ragged import sum_by

        config = self.config
        assert rollout.log_probs is not None
        assert rollout.reference is not None
        assert rollout.values is not None
        divergences = self.divergence(rollout.log_probs, rollout.reference)
        coefficient = state.setdefault(COEFFICIENT, config.kl_coefficient)
        earned = token_rewards(self.worth(rollout, state), divergences, coefficient, rollout.sequence)
        advantages, returns = gae(
            earned,
            rollout.values,
            rollout.sequence,
            len(rollout),
            discount=config.gamma,
            decay=config.gae_lambda,
        )
        rollout.advantages = whiten(advantages, moments(advantages)) if config.whiten else advantages
        rollout.returns = returns
        if config.kl_control == "adaptive":
            kl = float(sum_by(divergences, rollout.sequence, len(rollout)).mean())
            gain = len(rollout) / config.kl_horizon
            state[COEFFICIENT] = adapted(coefficient, kl, config.kl_target, gain=gain)
        return {
            COEFFICIENT: coefficient,
            "value": float(rollout.values.mean()),
            "explained_variance": explained_variance(moments(returns - rollout.values), moments(returns)),
        }

    def policy_losses(self, log_probs: Tensor, entropy: Tensor, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        from tutelage.objectives.policy import clipped_policy_loss, is_clipped

        clip = self.config.clip
        losses = clipped_policy_loss(log_probs, part.log_probs, part.advantages, clip=clip)
        measures = {"clip_fraction": is_clipped(log_probs, part.log_probs, part.advantages, clip=clip).float()}
        return losses - self.config.entropy_bonus * entropy, measures

    def value_losses(self, values: Tensor, part: Part) -> Tensor:
        from tutelage.objectives.policy import clipped_value_loss

        assert part.values is not None
        assert part.returns is not None
        return clipped_value_loss(values, part.values, part.returns, clip=self.config.value_clip)

    def weights(self, part: Part) -> tuple[Tensor, Tensor]:
        """Each token counts the same."""
        from tutelage.objectives.policy import token_weights

        return token_weights(part.sequence, part.answers, "token")
