"""A stage that learns from its own answers, from its prompts to what it leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from tutelage.engine.context import StageContext
from tutelage.engine.critics import save_critic
from tutelage.engine.devices import peak_memory_gib
from tutelage.engine.forward import base_of
from tutelage.engine.iterations import OnlineLearner
from tutelage.engine.keeping import save_and_verify
from tutelage.engine.online import OnlinePhase, critic_folder
from tutelage.engine.prompting import load_prompts
from tutelage.engine.rehearsal import LARGEST_SHARE, require_room, step_without_learning, try_save
from tutelage.engine.shared import Actors, SharedScorer
from tutelage.engine.training import (
    Start,
    TrainingLoop,
    build_model,
    carry_out,
    local_rank,
    metrics_of_best,
    no_dropout,
    options_of,
    plan_of,
)
from tutelage.errors import TutelageError
from tutelage.formats import Prompted
from tutelage.models.heads import Scorer, load_scorer_for_use
from tutelage.models.loading import adapter_settings, is_reward_model, load_tokenizer, same_base
from tutelage.models.loading import base_of as base_located
from tutelage.models.locating import Located
from tutelage.models.sampling import ends_of
from tutelage.phase import Artifact
from tutelage.recipe import Tokens
from tutelage.reward import Reward, Weighted, rewards_of

TOLD = ("reward", "kl", "length", "finished", "entropy")
"What of the last iteration is kept as the artifact's metrics."


def train_online(phase: OnlinePhase, context: StageContext) -> Artifact:
    """Train to the end, from the newest checkpoint if there is one, and save and verify what was learnt.

    Raises:
        TutelageError: when prompts or rewards can't be used.
        RunFailed: when training can't go on.
        RunStopped: when asked to stop, after saving a checkpoint.
    """
    settings, config = context.stage.trainer, phase.config
    L.seed_everything(settings.seed, verbose=False)
    built = build_model(context)
    prompts, held_out = load_prompts(context, base_of(built.model), config.max_new_tokens)
    actors, rewards = gather(phase, context, built.model)
    start = Start.of(context)
    learner = OnlineLearner(
        phase,
        actors,
        prompts,
        plan_of(settings, prompts.lengths, config.prompts_per_step),
        settings,
        start.progress,
        prompts=prompts,
        tokenizer=context.tokenizer,
        ends=ends_of(base_of(actors), context.tokenizer),
        rewards=[*rewards, *_loaded(context, config.rewards, "rewards")],
        held_out_rewards=_loaded(context, config.held_out_rewards, "held_out_rewards"),
        evaluates=held_out is not None,
        **options_of(context, built),
    )
    loop = OnlineLoop(context, learner, start, held_out)
    return carry_out(loop, lambda: _keep(loop, built.attention))


def gather(phase: OnlinePhase, context: StageContext, policy: torch.nn.Module) -> tuple[Actors, list[Weighted]]:
    """All models of a stage, and the reward that its reward model gives, if it has one.

    Raises:
        TutelageError: when the reward model is none, or lacks its head.
    """
    actors, rewards = Actors(policy), []
    if phase.needs_reference:
        actors.copy_reference()
    scorer = None
    if phase.config.reward_model:
        scorer = _scorer(actors, context, phase.config.reward_model)
        rewards.append(Weighted("reward_model", 1.0, ModelReward(scorer)))
    if phase.critic:
        actors.add_value(_value_start(actors, context, phase, scorer))
    no_dropout(actors)  # a reward model may bring its own, and what a rollout was measured with none
    actors.train()
    return actors, rewards


def _scorer(actors: Actors, context: StageContext, reference: str) -> Scorer:
    """The reward model: an adapter of the policy's base where it can be one, else a model of its own."""
    place = f"stages.{context.stage.name}.phase.reward_model"
    located = context.locate(reference, place)
    if not is_reward_model(located):
        raise TutelageError.at(place, f"{located.path} is no reward model", "name what a reward_model stage made")
    if not _shares(actors, context, located):
        device: str = context.devices.accelerator
        return load_scorer_for_use(located, device=f"cuda:{local_rank()}" if device == "cuda" else device)
    actors.add_reward(Path(located.path))
    return Scorer(SharedScorer(actors), load_tokenizer(located, Tokens(), context.base))


def _shares(actors: Actors, context: StageContext, located: Located) -> bool:
    if not actors.shares or located.kind != "adapter":
        return False
    policy: Any = actors.policy
    kind = adapter_settings(Path(located.path)).get("peft_type")
    if kind != getattr(policy.peft_config["default"].peft_type, "value", None):
        return False
    base = base_located(Path(located.path))
    folders = Path(context.model.path), Path(base.path)
    return context.model.path == base.path or (all(map(Path.is_dir, folders)) and same_base(*folders))


def _value_start(actors: Actors, context: StageContext, phase: OnlinePhase, scorer: Scorer | None) -> Any:
    """The reward model, where the value model is to start as it, and can; else None."""
    if scorer is None or phase.value_start == "policy":
        return None
    shapes = [base_of(model).config.get_text_config() for model in (actors, scorer.model)]
    alike = all(
        getattr(shapes[0], name) == getattr(shapes[1], name) for name in ("model_type", "hidden_size", "vocab_size")
    )
    if actors.reward_head is not None or (not actors.shares and alike):
        return scorer.model
    if phase.value_start == "auto":
        return None
    wrong = "the reward model is neither an adapter of the base that this stage starts from, nor as large as the policy"
    raise TutelageError.at(f"stages.{context.stage.name}.phase.value_init", wrong, "use value_init: policy")


class ModelReward(Reward):
    """What a reward model says of an answer."""

    name = "reward_model"

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self._scorer = scorer

    def score(self, prompts: Sequence[Prompted], answers: Sequence[str]) -> list[float]:
        return self._scorer.score([each.prompt for each in prompts], answers)


def _loaded(context: StageContext, settings: list[Any], field: str) -> list[Weighted]:
    assert context.host is not None
    problems: list[Any] = []
    found = rewards_of(settings, context.host, f"stages.{context.stage.name}.phase.{field}", problems)
    if problems:
        raise TutelageError(problems)
    for each in found:
        each.reward.load(context)
    return found


class OnlineLoop(TrainingLoop):
    """The loop around iterations: it also shows answers, and measures the policy before the first of them."""

    learner: OnlineLearner

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_start(trainer)
        self._emit("models", **_held(self.learner))
        if self.checkpoint is None and self.held_out is not None:
            improved = self._evaluate()
            if improved and self.context.stage.trainer.patience:
                self._save("best")

    def _know_reference(self) -> None:
        """Nothing is known beforehand of answers that are not given yet."""

    def _rehearse(self) -> dict[str, Any]:
        """An iteration on the longest prompts with answers of full length, and a save; leaves no trace."""
        learner, started = self.learner, time.perf_counter()
        random_state = torch.get_rng_state()
        require_room(learner, self.folder, self.context.stage.trainer.keep_checkpoints)
        planned = learner.plan.tokens * learner.online.config.samples
        tokens = learner.try_iteration(int(LARGEST_SHARE * planned))
        step_without_learning(learner.trainer.optimizers[0])
        learner.trainer.optimizers[0].state.clear()
        try_save(learner, self.context.adapter, self.folder)
        torch.set_rng_state(random_state)
        return {
            "steps": int(tokens > 0),
            "tokens": tokens,
            "evaluated_tokens": 0,
            "seconds": round(time.perf_counter() - started, 3),
            "peak_memory_gib": round(peak_memory_gib(learner.device.type), 3),
        }

    def _tell_step(self) -> None:
        progress, last = self.learner.progress, self.learner.last
        progress.metrics.update({name: last[name] for name in TOLD if name in last})
        super()._tell_step()
        if self.learner.samples:
            self._emit("samples", step=progress.step, samples=self.learner.samples)


def _held(learner: OnlineLearner) -> dict[str, str]:
    """How each model that there is is held: as an adapter of the one base, whole, or separately."""
    actors = learner.model
    held = {"policy": "adapter" if actors.shares else "whole"}
    if learner.online.needs_reference:
        held["reference"] = "adapters off" if actors.shares else "separate"
    if actors.value_head is not None:
        held["value"] = "adapter" if actors.value is None else "separate"
    if any(isinstance(each.reward, ModelReward) for each in learner.rewards):
        held["reward"] = "adapter" if actors.reward_head is not None else "separate"
    return held


def _keep(loop: OnlineLoop, attention: str) -> Artifact:
    """Save the policy, and beside it the value model, and prove the policy by reading it back."""
    context, learner = loop.context, loop.learner
    metrics = metrics_of_best(loop)
    actors = learner.model
    learner.end_learning()
    base_of(actors).set_attn_implementation(attention)
    if actors.value_head is not None and learner.global_rank == 0:
        save_critic(actors, context, critic_folder(context.folder))
    actors.drop_others()
    shortest = min(learner.prompts.ids, key=len)
    target = save_and_verify(context, learner.artifact, metrics, prompt=shortest)
    return Artifact(context.adapter.artifact, target, metrics)
