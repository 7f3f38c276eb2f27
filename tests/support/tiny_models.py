"""Small random models of several architectures, written to disk as plain Hugging Face folders with a real tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

FAMILIES = ("llama-tied", "llama-untied", "qwen2", "gpt2")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["the cat sat on the mat", "2 + 3 = 5, they say", "a model learns what it is shown", "déjà vu, again and again"]


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens; `<|endoftext|>` ends a text, and `<|im_end|>` an assistant's turn."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", chat_template=template)


def config(family: str, vocabulary: int) -> Any:
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": vocabulary}
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2Config(**sizes, **still, bos_token_id=None, eos_token_id=0)
    if family == "qwen2":
        return Qwen2Config(**shape, tie_word_embeddings=False)
    return LlamaConfig(**shape, tie_word_embeddings=family == "llama-tied")


def write_model(folder: Path, family: str, *, dtype: torch.dtype = torch.float32, spare_rows: int = 0) -> Path:
    """A random model whose logits are far from flat, with its tokenizer. `spare_rows` are embeddings of no token."""
    tokens = tokenizer()
    torch.manual_seed(7)
    made = AutoModelForCausalLM.from_config(config(family, len(tokens) + spare_rows))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    made.to(dtype).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def some_ids(count: int = 12) -> torch.Tensor:
    """(2, count) token ids of text."""
    tokens = tokenizer()
    return torch.tensor([tokens(text * 2)["input_ids"][:count] for text in TEXTS[:2]])


def step(model: Any, ids: torch.Tensor, *, steps: int = 2, rate: float = 0.02) -> float:
    """Take AdamW steps on next-token prediction, so that everything that learns moves; the last loss."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate)
    model.train()
    loss = torch.tensor(0.0)
    for _ in range(steps):
        logits = model(input_ids=ids).logits[:, -ids.shape[1] :]
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return float(loss.detach())


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """In evaluation mode, float32, without a soft prompt's own positions."""
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found[:, -ids.shape[1] :].float()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A function that gives the folder of a tiny model; each kind is written once."""
    made: dict[tuple, Path] = {}

    def folder(family: str, **options: Any) -> Path:
        key = (family, *sorted(options.items(), key=str))
        if key not in made:
            made[key] = write_model(tmp_path_factory.mktemp(family), family, **options)
        return made[key]

    return folder
