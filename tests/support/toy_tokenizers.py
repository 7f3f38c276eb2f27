"""Tiny tokenizers with the chat templates of well-known families, made on the spot so that tests need no network."""

from __future__ import annotations

import re
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the quick brown fox jumps over the lazy dog\n\nassistant user system model tool answer question 0123456789 "
] * 3

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def _backend(kind: str) -> str:
    """A trained tokenizer as JSON: `gpt2` and `llama3` are byte-level with these models' splits, `metaspace` is not."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == "metaspace"))
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=alphabet, show_progress=False)
    else:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
        split = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated")
        tokenizer.pre_tokenizer = byte_level if kind == "gpt2" else pre_tokenizers.Sequence([split, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if kind == "metaspace":
        return tokenizer.to_str().replace('"special":true', '"special":false')
    return tokenizer.to_str()


def toy(
    template: str | None = None,
    eos: str | None = "<|im_end|>",
    kind: str = "llama3",
    bos: str | None = None,
    adds_bos: bool = False,
    specials: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """A tokenizer whose special tokens are those given and all that look like ones in the template."""
    tokenizer = Tokenizer.from_str(_backend(kind))
    found = re.findall(r"<\|\w+\|>|\[/?INST\]|<\w+_of_\w+>|</?think>", template or "")
    known = [token for token in dict.fromkeys([*found, *specials, eos, bos, "<pad>"]) if token]
    tokenizer.add_special_tokens(known)
    if adds_bos:
        assert bos
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos, pad_token="<pad>")
    made.chat_template = template
    return made


FAMILIES = {
    "chatml": lambda: toy(CHATML),
    "chatml, GPT-2 splits": lambda: toy(CHATML, kind="gpt2"),
    "chatml, metaspace": lambda: toy(CHATML, kind="metaspace"),
    "llama3": lambda: toy(LLAMA3, eos="<|eot_id|>", bos="<|begin_of_text|>", adds_bos=True),
    "mistral": lambda: toy(MISTRAL, eos="</s>", bos="<s>", adds_bos=True),
    "mistral, metaspace": lambda: toy(MISTRAL, eos="</s>", bos="<s>", adds_bos=True, kind="metaspace"),
    "generation": lambda: toy(GENERATION),
    "phi3": lambda: toy(PHI3, eos="<|endoftext|>", specials=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")),
}
END = {"llama3": "<|eot_id|>", "mistral": "</s>", "mistral, metaspace": "</s>", "phi3": "<|end|>"}
