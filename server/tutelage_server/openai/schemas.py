"""What OpenAI's clients send and are sent. Times are seconds since 1970; fields are described where it is not plain."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Auto = Literal["auto"]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16, description="Up to 16 pairs of the caller's own."),
]


class Asked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of what is sent."""


class Shown(msgspec.Struct, kw_only=True):
    """Base of what is answered."""


class OpenAIFile(Shown, tag_field="object", tag="file"):
    """A file."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    expires_at: int | None = None
    status_details: str | None = None


class Deleted(Shown):
    """Something that is no more."""

    id: str
    object: str
    deleted: bool = True


class OpenAIFilePage(Shown, tag_field="object", tag="list"):
    """Files."""

    data: list[OpenAIFile]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


class Hyperparameters(Asked):
    """How a supervised job trains."""

    batch_size: Annotated[int, Meta(ge=1, le=256)] | Auto = msgspec.field(default="auto")
    n_epochs: Annotated[int, Meta(ge=1, le=50)] | Auto = msgspec.field(default="auto")
    learning_rate_multiplier: Annotated[float, Meta(gt=0, le=1000)] | Auto = msgspec.field(default="auto")


class DpoHyperparameters(Hyperparameters):
    """How a preference job trains."""

    beta: Annotated[float, Meta(gt=0, le=2)] | Auto = msgspec.field(default="auto")


class Supervised(Asked):
    """Supervised fine-tuning."""

    hyperparameters: Hyperparameters = msgspec.field(default_factory=Hyperparameters)


class Dpo(Asked):
    """Direct preference optimization."""

    hyperparameters: DpoHyperparameters = msgspec.field(default_factory=DpoHyperparameters)


class Method(Asked):
    """How to tune."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: dict[str, Any] | None = None


class Wandb(Asked):
    """Where metrics go at Weights & Biases."""

    project: Annotated[str, Meta(min_length=1, max_length=128)]
    name: Annotated[str, Meta(max_length=128)] | None = None
    entity: Annotated[str, Meta(max_length=128)] | None = None
    tags: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=50)] = []


class Integration(Asked):
    """What else is told of a job's metrics."""

    type: Literal["wandb"]
    wandb: Wandb


class CreateJob(Asked):
    """A fine-tuning job that is asked for."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    training_file: Annotated[str, Meta(min_length=1, max_length=100)]
    validation_file: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    "The former place of those of a supervised job."
    suffix: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Integration], Meta(max_length=5)] | None = None


class JobError(Shown):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class FineTuningJob(Shown, tag_field="object", tag="fine_tuning.job"):
    """A fine-tuning job."""

    id: str
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, int | float | str]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    method: dict[str, Any]
    metadata: dict[str, str] | None = None
    integrations: list[Integration] | None = None
    estimated_finish: int | None = None


class FineTuningJobPage(Shown, tag_field="object", tag="list"):
    """Fine-tuning jobs, newest first."""

    data: list[FineTuningJob]
    has_more: bool


class FineTuningEvent(Shown, tag_field="object", tag="fine_tuning.job.event"):
    """Something that happened to a job."""

    id: str
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class FineTuningEventPage(Shown, tag_field="object", tag="list"):
    """Events, newest first."""

    data: list[FineTuningEvent]
    has_more: bool


class CheckpointMetrics(Shown, omit_defaults=True):
    """What was measured at a checkpoint."""

    step: float
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class Checkpoint(Shown, tag_field="object", tag="fine_tuning.job.checkpoint"):
    """A checkpoint that can be asked once its job has succeeded."""

    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: CheckpointMetrics
    step_number: int


class CheckpointPage(Shown, tag_field="object", tag="list"):
    """Checkpoints, newest first."""

    data: list[Checkpoint]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Model(Shown, tag_field="object", tag="model"):
    """A model that can be asked."""

    id: str
    created: int
    owned_by: str


class OpenAIModelPage(Shown, tag_field="object", tag="list"):
    """All models."""

    data: list[Model]


class StreamOptions(Asked):
    """What a stream tells besides."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class CreateChat(Asked):
    """Messages to answer. What would change the answer and can't be honoured is refused."""

    model: Annotated[str, Meta(min_length=1, max_length=300)]
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=2000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    stop: str | list[str] | None = None
    "Up to four strings, before the first of which an answer ends."
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    user: str | None = None
    "Ignored, as all that follows."
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class Message(Shown):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    refusal: str | None = None


class Choice(Shown):
    """One of the answers."""

    index: int
    message: Message
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatUsage(Shown):
    """Tokens of a chat."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Chat(Shown, tag_field="object", tag="chat.completion"):
    """Answers."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


class Delta(Shown):
    """How an answer goes on."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Shown):
    """One of the answers, in part."""

    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: None = None


class Chunk(Shown, tag_field="object", tag="chat.completion.chunk"):
    """A part of a stream of answers."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: ChatUsage | UnsetType | None = UNSET
