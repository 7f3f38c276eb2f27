"""Final losses on held-out rows, by plain transformers and peft from what each contender saved: the same code for all.

`python -m bench.scoring REQUEST.json`: a request has the base model's folder, `rows` (conversations, for SFT) and
`pairs` (for DPO), and `artifacts`, each with a name, a folder and its kind; a line tells the loss of each.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import processes
from bench.scale import BETA, LENGTH

if TYPE_CHECKING:
    from torch import Tensor


def main() -> None:
    """Answer the request."""
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    request = processes.request()
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    for artifact in request["artifacts"]:
        model = _load(artifact["folder"], request["model"])
        if artifact["kind"] == "dpo":
            loss = preference_loss(model, tokenizer, request["pairs"])
        else:
            loss = answer_loss(model, tokenizer, request["rows"])
        processes.tell(name=artifact["name"], loss=loss)


def _load(artifact: str, base: str) -> Any:
    """In float32, whatever it learnt in."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    is_adapter = (Path(artifact) / "adapter_config.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(base if is_adapter else artifact, dtype=torch.float32)
    return (PeftModel.from_pretrained(model, artifact) if is_adapter else model).eval()


def answer_loss(model: Any, tokenizer: Any, rows: list[list[dict[str, str]]]) -> float:
    """Mean negative log-likelihood, in nats, of the tokens of the last turn of each row, its end included."""
    total, learnt = 0.0, 0
    for row in rows:
        likelihoods = answer_log_probs(model, tokenizer, row)
        total -= float(likelihoods.sum())
        learnt += len(likelihoods)
    return total / learnt if learnt else math.nan


def preference_loss(model: Any, tokenizer: Any, pairs: list[dict[str, Any]]) -> float:
    """Mean DPO loss (Rafailov et al., 2023, equation 7), in nats, measured from the base without its adapter."""
    import torch

    losses = []
    for pair in pairs:
        margins = []
        for answer in ("chosen", "rejected"):
            row = pair["prompt"] + pair[answer]
            policy = answer_log_probs(model, tokenizer, row).sum()
            with model.disable_adapter():
                margins.append(policy - answer_log_probs(model, tokenizer, row).sum())
        losses.append(-torch.nn.functional.logsigmoid(BETA * (margins[0] - margins[1])))
    return float(torch.stack(losses).mean())


def answer_log_probs(model: Any, tokenizer: Any, row: list[dict[str, str]]) -> Tensor:
    """Of each token of a conversation's last turn, its end included, within the first LENGTH tokens."""
    import torch

    asked = str(tokenizer.apply_chat_template(row[:-1], tokenize=False, add_generation_prompt=True))
    whole = str(tokenizer.apply_chat_template(row, tokenize=False)).rstrip("\n")
    begin = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"][:LENGTH]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, begin - 1 : -1]
    likelihoods: Tensor = logits.log_softmax(-1).gather(-1, ids[0, begin:, None])[:, 0]
    return likelihoods


if __name__ == "__main__":
    main()
