"""Trains a tokenizer on text: byte-level BPE, so that every text can be written and read back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
TURNS = ("<|im_start|>", "<|im_end|>")
"Always in the vocabulary, so that a model can be taught to chat without new embeddings."
SMALLEST = 256 + 1 + len(TURNS)
"The bytes and the special tokens."

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"The template of chats whose turns these tokens part."


def train_tokenizer(texts: Iterator[str], size: int, *, chat: bool) -> PreTrainedTokenizerBase:
    """Learn a vocabulary of at most `size` tokens (fewer where the text has too little to merge).

    Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019, section 2.2) with GPT-2's split into words and single
    digits; `<|endoftext|>` ends a text.

    Args:
        chat: whether it comes with a chat template, ChatML.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT, *TURNS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=END_OF_TEXT,
        chat_template=CHATML if chat else None,
        clean_up_tokenization_spaces=False,
    )
