"""What can be asked of the estimator."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from tutelage.config import Config

AdapterName = Literal["full", "lora", "qlora", "prompt"]
Strategy = Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3"]
Precision = Literal["auto", "bf16", "bf16-true", "fp16-true", "fp32"]
Optimizer = Literal["adamw", "adamw-foreach", "adamw-8bit", "muon", "sgd", "sgd-momentum", "lion", "adafactor"]
Attention = Literal["auto", "flash", "eager"]
LossCode = Literal["float32", "shifted", "half"]
PhaseName = Literal[
    "sft",
    "pretrain",
    "dpo",
    "reward_model",
    "ppo",
    "grpo",
    "comparisons",
    "critique_revision",
    "ai_feedback",
    "evaluation",
]
RewardModel = Literal["none", "shared", "separate"]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


ONLINE: frozenset[str] = frozenset({"ppo", "grpo"})
"Phases that learn from answers that they draw."
MAKING: frozenset[str] = frozenset({"comparisons", "critique_revision", "ai_feedback", "evaluation"})
"Phases that answer and judge, and learn nothing."


class EstimateRequest(Config):
    """A run of one phase: the model, what learns, on which hardware, with which settings."""

    model: Annotated[
        str, Meta(min_length=1, description="A catalog name, a hub name, a Hugging Face folder or a config.json.")
    ]
    phase: Annotated[PhaseName, Meta(description="What is done: what is learnt, or made.")] = "sft"
    adapter: Annotated[AdapterName, Meta(description="Which parameters learn.")] = "lora"
    gpu: Annotated[str | None, Meta(description="A GPU of the catalog; null estimates memory alone.")] = None
    gpus: Annotated[int, Meta(ge=1, le=1024, description="GPUs in one node.")] = 1
    nodes: Annotated[int, Meta(ge=1, le=10_000, description="Nodes.")] = 1
    strategy: Annotated[
        Strategy,
        Meta(
            description="ddp copies the model; fsdp and zero3 shard all of it; zero2 gradients and optimizer, zero1 "
            "the optimizer; auto copies where that fits."
        ),
    ] = "auto"
    rank: Annotated[int, Meta(ge=1, le=65_536, description="LoRA rank.")] = 16
    targets: Annotated[
        str | list[str], Meta(description="LoRA's layers: all-linear, attention, mlp, or names such as q_proj.")
    ] = "all-linear"
    dropout: Annotated[float, Meta(ge=0, lt=1, description="LoRA dropout.")] = 0.0
    virtual_tokens: Annotated[Count, Meta(description="Length of a soft prompt.")] = 20
    double_quantization: Annotated[bool, Meta(description="Whether QLoRA quantises its own constants.")] = True
    upcast: Annotated[
        bool,
        Meta(
            description="QLoRA with norms, embeddings and output layer in float32, as PEFT's "
            "prepare_model_for_kbit_training leaves them."
        ),
    ] = False
    micro_batch: Annotated[Count, Meta(description="Rows that one GPU computes at a time.")] = 1
    seq_len: Annotated[int, Meta(ge=1, le=100_000_000, description="Tokens of a row, padding included.")] = 1024
    tokens_per_step: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Tokens of an optimizer step over all GPUs; null takes one micro-batch on each."),
    ] = None
    precision: Annotated[
        Precision,
        Meta(
            description="bf16: frozen weights and products in bfloat16, learnt weights in float32. bf16-true and "
            "fp16-true: everything in 16 bits. fp32: everything in float32. auto: bf16 where the GPU has it."
        ),
    ] = "auto"
    checkpointing: Annotated[bool, Meta(description="Recompute activations in the backward pass.")] = False
    optimizer: Annotated[
        Optimizer, Meta(description="adamw is fused; adamw-foreach holds a copy of the learnt weights while it steps.")
    ] = "adamw"
    attention: Annotated[
        Attention, Meta(description="flash keeps no scores; eager keeps them; auto takes what the model allows.")
    ] = "auto"
    chunked_loss: Annotated[bool, Meta(description="Compute the loss piece by piece, never holding all logits.")] = (
        False
    )
    loss: Annotated[
        LossCode,
        Meta(
            description="How the loss treats logits: float32 (Tutelage; transformers since 4.46), shifted (copies them "
            "once more, as transformers did), half (16 bits throughout)."
        ),
    ] = "float32"
    compile: Annotated[bool, Meta(description="torch.compile: fused kernels keep fewer intermediate results.")] = False
    offload: Annotated[bool, Meta(description="Keep sharded weights and optimizer states in the host's memory.")] = (
        False
    )
    network_gb_s: Annotated[
        float, Meta(gt=0, le=100_000, description="GB/s between nodes, for each GPU; 50 is 400 Gb/s.")
    ] = 50.0
    examples: Annotated[
        Annotated[int, Meta(ge=1, le=10**12)] | None,
        Meta(description="Training examples; null estimates no time or money."),
    ] = None
    tokens_per_example: Annotated[
        Annotated[float, Meta(gt=0, le=10**8)] | None,
        Meta(description="Mean tokens of an example; null takes seq_len."),
    ] = None
    epochs: Annotated[float, Meta(gt=0, le=10_000, description="Passes over the examples.")] = 3.0
    answers: Annotated[
        Count | None,
        Meta(
            description="Answers to a prompt: those that are compared (2) or drawn (ppo 1, grpo 8, comparisons 4); "
            "null takes the number in brackets."
        ),
    ] = None
    new_tokens: Annotated[
        Count | None,
        Meta(description="Tokens of an answer that a phase draws; null takes 256, or a quarter of seq_len."),
    ] = None
    prompt_tokens: Annotated[
        Annotated[float, Meta(gt=0, le=10**8)] | None,
        Meta(description="Mean tokens of a prompt that a phase answers; null takes what new_tokens leave of seq_len."),
    ] = None
    thought_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=1_000_000)] | None,
        Meta(
            description="Tokens of a critique (128), or of a judge's reasoning (0); null takes the number in brackets."
        ),
    ] = None
    inner_epochs: Annotated[
        Count | None, Meta(description="Passes over the answers of an iteration (ppo 4, grpo 1).")
    ] = None
    reference: Annotated[
        bool | None,
        Meta(description="Whether a reference model is asked; null: in dpo and ppo, not in grpo."),
    ] = None
    reward_model: Annotated[
        RewardModel | None,
        Meta(
            description="Where the reward model of ppo and grpo is: an adapter on the same base (shared), a model of "
            "the same size beside it (separate), or none, as rewards are functions. null: in ppo shared where that "
            "can be, else separate; in grpo none."
        ),
    ] = None
    rounds: Annotated[Count, Meta(description="How often critique_revision revises an answer.")] = 1
    principles: Annotated[Count, Meta(description="Principles by which ai_feedback judges a pair.")] = 4
    usd_per_gpu_hour: Annotated[
        Annotated[float, Meta(ge=0, le=100_000)] | None,
        Meta(description="What a GPU really costs you; null takes the catalog."),
    ] = None

    def __post_init__(self) -> None:
        if self.offload and self.strategy not in ("fsdp", "zero3"):
            raise ValueError("offload needs strategy fsdp or zero3")
        if self.phase in ONLINE | MAKING and self.new_tokens is not None and self.new_tokens >= self.seq_len:
            raise ValueError(f"new_tokens {self.new_tokens} leave no room for a prompt in seq_len {self.seq_len}")
        if self.reward_model == "shared" and self.adapter not in ("lora", "qlora"):
            raise ValueError("a reward model can be shared as an adapter of a frozen base only: use lora or qlora")
        if self.adapter == "prompt" and self.phase in ("reward_model", *ONLINE):
            raise ValueError(f"{self.phase} does not learn a soft prompt: use lora, qlora or full")

    @property
    def devices(self) -> int:
        """GPUs over all nodes."""
        return self.gpus * self.nodes

    @property
    def tokens(self) -> int:
        """Tokens that one GPU computes at a time; a soft prompt lengthens every row."""
        extra = self.virtual_tokens if self.adapter == "prompt" else 0
        return self.micro_batch * (self.seq_len + extra)

    @property
    def accumulates(self) -> bool:
        """Whether gradients are kept over several micro-batches."""
        return (
            self.tokens_per_step is not None and self.tokens_per_step > self.micro_batch * self.seq_len * self.devices
        )

    @property
    def accumulation(self) -> float:
        """Micro-batches in an optimizer step."""
        if self.tokens_per_step is None:
            return 1.0
        return max(1.0, self.tokens_per_step / (self.micro_batch * self.seq_len * self.devices))
