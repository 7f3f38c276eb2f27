"""Greedy generation beside transformers' `generate`: the same model, dtype, prompts and machine, in turns.

    python bench/generation.py [--batch 8 --batch 32] [--dtype bfloat16] [--repeats 3] [--out figures.json]

Both answer the same prompts of unequal length with the same number of tokens; no token ends an answer. What is counted
is new tokens by the seconds of a whole call: also those of the prompts, and of what Tutelage prepares in each call to
be fast. A first call of each is not counted. `same` is the share of answers that are the same tokens to their end: in
float32 all of them are, in bfloat16 rounding parts some.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo" / "train.jsonl"
TARGETS = {8: 2.0, 32: 2.0}
Ids = list[list[int]]


@click.command()
@click.option("--model", default="starter:smollm2-135m-instruct", show_default=True)
@click.option("--batch", "batches", type=int, multiple=True, default=(8, 32, 1), show_default=True)
@click.option("--dtype", "dtypes", multiple=True, default=("bfloat16", "float32"), show_default=True)
@click.option("--tokens", type=int, default=128, show_default=True, help="New tokens of each answer.")
@click.option("--repeats", type=int, default=3, show_default=True, help="Turns of each contender.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the figures as JSON.")
def main(
    model: str, batches: tuple[int, ...], dtypes: tuple[str, ...], tokens: int, repeats: int, out: Path | None
) -> None:
    """Let both have their turns, and print a table."""
    import torch

    from tutelage.models.generation import load_for_generation
    from tutelage.plugins import host

    figures = []
    click.echo(f"{'dtype':<10}{'batch':>6}{'ours':>10}{'transformers':>14}{'ratio':>8}{'same':>7}   (tokens/s)")
    for dtype in dtypes:
        loaded, tokenizer = load_for_generation(model, host(), dtype=getattr(torch, dtype))
        for batch in batches:
            found = measure(loaded, prompts(tokenizer, batch), tokens, repeats)
            figures.append(figure(dtype, batch, tokens, found))
            ours, theirs = statistics.median(found["ours"]), statistics.median(found["theirs"])
            row = f"{dtype:<10}{batch:>6}{ours:>10.1f}{theirs:>14.1f}{ours / theirs:>8.2f}{found['same']:>7.0%}"
            click.echo(row)
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def prompts(tokenizer: Any, count: int) -> Ids:
    """What people ask in the demo data, as the chat template writes it."""
    rows = [json.loads(line)["messages"] for line in DEMO.read_text(encoding="utf-8").splitlines()[:count]]
    texts = [tokenizer.apply_chat_template(row[:-1], tokenize=False, add_generation_prompt=True) for row in rows]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def measure(model: Any, asked: Ids, tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of both in each turn, and the share of answers that are the same."""

    def seconds(answer: Callable[[Any, Ids, int], Ids]) -> tuple[float, Ids]:
        start = time.perf_counter()
        answers = answer(model, asked, tokens)
        return time.perf_counter() - start, answers

    found: dict[str, Any] = {"ours": [], "theirs": []}
    for turn in range(repeats + 1):
        ours, answers = seconds(by_tutelage)
        theirs, expected = seconds(by_transformers)
        if turn:
            found["ours"].append(len(asked) * tokens / ours)
            found["theirs"].append(len(asked) * tokens / theirs)
    found["same"] = statistics.mean(mine == other for mine, other in zip(answers, expected, strict=True))
    return found


def by_tutelage(model: Any, asked: Ids, tokens: int) -> Ids:
    """The new tokens."""
    from tutelage.models.sampling import sample

    options: dict[str, Any] = {"temperature": 0.0, "ends": frozenset(), "pad": 0, "batch_size": len(asked)}
    options["log_probs"] = False  # which transformers does not compute either
    drawn = sample(model, asked, max_new_tokens=tokens, seeds=[0] * len(asked), **options)
    return [each.ids for each in drawn]


def by_transformers(model: Any, asked: Ids, tokens: int) -> Ids:
    """The new tokens."""
    import torch

    longest = max(map(len, asked))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in asked], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in asked], device=model.device)
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, **options)
    return [row[longest:] for row in made.tolist()]


def figure(dtype: str, batch: int, tokens: int, found: dict[str, Any]) -> dict[str, Any]:
    """What a report tells of a measurement."""
    return {
        "section": "generation",
        "name": f"greedy, {dtype}, batch {batch}",
        "measure": "new tokens a second",
        "unit": "tokens/s",
        "better": "higher",
        "ours": found["ours"],
        "peer": found["theirs"],
        "target": TARGETS.get(batch),
        "note": f"{tokens} tokens an answer; the peer is transformers' generate; {found['same']:.0%} the same tokens",
    }


if __name__ == "__main__":
    main()
