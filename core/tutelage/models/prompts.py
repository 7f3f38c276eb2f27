"""From prompts to token ids, and from token ids to the ids that a model adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Prompt = str | list[dict[str, Any]] | list[int]
"Text, messages, or token ids."


def token_ids(tokenizer: Any, prompt: Prompt, answering: bool = False) -> list[int]:
    """The tokens of a text (with the tokenizer's own special tokens), or of messages as the chat template writes them;
    token ids stay as they are.

    Args:
        answering: end messages where the assistant is to begin.
    """
    if isinstance(prompt, str):
        ids: list[int] = tokenizer(prompt)["input_ids"]
        return ids
    if prompt and isinstance(prompt[0], int):
        return [token for token in prompt if isinstance(token, int)]
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=answering)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def generate_ids(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """What the model adds to each prompt, which are padded on the left to one length.

    A soft prompt is put between the padding and the text here, because peft's own `generate` (0.21) loses it with
    current transformers, and would put the padding between the two.

    Args:
        options: of transformers' `generate`; `pad_token_id` must be among them.
    """
    import torch

    pad = options["pad_token_id"]
    longest = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    if soft_tokens(model) == 0:
        made = model.generate(input_ids=ids, attention_mask=mask, **options)
        return [row[longest:] for row in made.tolist()]
    embeddings, mask = with_soft_prompt(model, ids, mask)
    made = model.get_base_model().generate(inputs_embeds=embeddings, attention_mask=mask, **options)
    return [list(row) for row in made.tolist()]


def soft_tokens(model: Any) -> int:
    """How many virtual tokens stand before the input: those of a soft prompt, else 0."""
    config = getattr(model, "active_peft_config", None)
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def with_soft_prompt(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (rows, padding + soft prompt + text, hidden) of left-padded ids (rows, length), and their mask."""
    import torch

    text = model.get_base_model().get_input_embeddings()(ids)
    soft = model.get_prompt(batch_size=1)[0].to(text.dtype)
    ones = torch.ones(len(soft), dtype=mask.dtype, device=mask.device)
    embeddings, masks = [], []
    for row, row_mask in zip(text, mask, strict=True):
        start = int((row_mask == 0).sum())
        embeddings.append(torch.cat([row[:start], soft, row[start:]]))
        masks.append(torch.cat([row_mask[:start], ones, row_mask[start:]]))
    return torch.stack(embeddings), torch.stack(masks)
