"""Group relative policy optimization: reinforcement learning from rewards, without a value model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from tutelage.engine.online import OnlineConfig, OnlinePhase

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.engine.rollouts import Part, Rollout


class GRPO(OnlinePhase):
    """Group relative policy optimization: answers that score better than others to the same prompt become likelier."""

    name = "grpo"
    credits_by_log_probs = False

    class Config(OnlineConfig):
        """GRPO (Shao et al., 2024), with what later work changed in it as choices."""

        prompts_per_step: Annotated[int, Meta(ge=1, description="Prompts in one iteration, over all devices.")] = 8
        samples: Annotated[int, Meta(ge=2, le=1024, description="Answers to each prompt: the group.")] = 8
        scale: Annotated[
            Literal["group", "none"],
            Meta(
                description="group divides by the deviation of a prompt's rewards; none does not, so that nearly "
                "solved and nearly hopeless prompts don't count more (Dr. GRPO)."
            ),
        ] = "group"
        loss: Annotated[
            Literal["answer", "token", "constant"],
            Meta(
                description="What counts the same: each answer (GRPO), each token (DAPO), or each token as a share of "
                "max_new_tokens (Dr. GRPO)."
            ),
        ] = "token"
        clip_high: Annotated[
            Annotated[float, Meta(gt=0)] | None,
            Meta(description="How far a token's probability may rise, where that differs from clip (DAPO: 0.28)."),
        ] = None
        kl_coefficient: Annotated[
            float, Meta(ge=0, description="What each nat away from the reference costs, in the loss; 0 has none.")
        ] = 0.0
        kl_estimator: Annotated[
            Literal["k2", "k3", "k3-unbiased"],
            Meta(
                description="How a token's divergence is estimated: k3 as in GRPO; the gradient of k2 is the true KL's "
                "in an iteration's first update, and that of k3-unbiased in all."
            ),
        ] = "k3"
        kl_limit: Annotated[
            Annotated[float, Meta(gt=0)] | None,
            Meta(
                description="Stop the run when answers are so many nats from the reference, on average. Measuring it "
                "costs a pass of the reference where kl_coefficient is 0; null measures nothing for it."
            ),
        ] = None
        cut_answers: Annotated[
            Literal["grade", "mask"],
            Meta(
                description="Answers that were cut at max_new_tokens: grade them as they are, or mask them, so that "
                "they are neither learnt from nor compared with."
            ),
        ] = "grade"

    @property
    def needs_reference(self) -> bool:
        return self.config.kl_coefficient > 0 or self.config.kl_limit is not None

    def divergence(self, log_probs: Tensor, reference: Tensor) -> Tensor:
        from tutelage.objectives.kl import k2, k3

        return (k2 if self.config.kl_estimator == "k2" else k3)(log_probs, reference)

    def credit(self, rollout: Rollout, state: dict[str, float]) -> dict[str, float]:
        """How much better each answer is than the others to its prompt, at each of its tokens."""
        import torch

        from tutelage.objectives.advantages import group_advantages

        worth = self.worth(rollout, state)
        graded = torch.ones_like(rollout.finished)
        if self.config.cut_answers == "mask":
            graded = rollout.finished
            rollout.learnt = torch.nonzero(graded)[:, 0].numpy()
        groups = int(rollout.group.max()) + 1
        varied = _varied(worth[graded], rollout.group[graded], groups)
        better = torch.zeros_like(worth)
        better[graded] = group_advantages(worth[graded], rollout.group[graded], groups, scale=self.config.scale)
        rollout.advantages = (better * varied[rollout.group])[rollout.sequence]
        return {
            "prompts_without_variance": float(groups - int(varied.sum())),
            "masked": float(len(rollout) - int(graded.sum())),
        }

    def policy_losses(self, log_probs: Tensor, entropy: Tensor, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        from tutelage.objectives.policy import grpo_loss, is_clipped

        config = self.config
        bounds = {"clip": config.clip, "clip_high": config.clip_high}
        losses = grpo_loss(
            log_probs,
            part.log_probs,
            part.advantages,
            part.reference,
            coefficient=config.kl_coefficient,
            estimator=config.kl_estimator,
            **bounds,
        )
        measures = {"clip_fraction": is_clipped(log_probs, part.log_probs, part.advantages, **bounds).float()}
        return losses - config.entropy_bonus * entropy, measures

    def weights(self, part: Part) -> tuple[Tensor, Tensor]:
        from tutelage.objectives.policy import token_weights

        return token_weights(part.sequence, part.answers, self.config.loss, constant=self.config.max_new_tokens)


def _varied(worth: Tensor, group: Tensor, groups: int) -> Tensor:
    """In which groups answers are worth different amounts, (groups,) bool."""
    import torch

    bounds = [
        worth.new_zeros(groups).scatter_reduce(0, group, worth, reduction, include_self=False)
        for reduction in ("amin", "amax")
    ]
    return torch.ne(*bounds)
