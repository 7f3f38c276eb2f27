"""The answers of several models to the same prompts, and what they come to side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tutelage.formats import Prompted

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from tutelage.data.rendering import Tokens
    from tutelage.engine.context import StageContext

_RESAMPLES = 4000
_SHOWN = 6
"How many prompts are shown with all answers."


class Answered(msgspec.Struct, kw_only=True):
    """A model's answer to a prompt."""

    model: str
    prompt: int
    answer: str
    tokens: int
    finished: bool
    kl: float | None = None
    reward: float | None = None
    rewards: dict[str, float] = {}


class Read(msgspec.Struct, kw_only=True):
    """How a model finds a window of the general text."""

    model: str
    nll: float
    "Negative log-likelihood in nats, summed."
    tokens: int


class Interval(msgspec.Struct):
    """A mean and its 95% interval, by the percentile bootstrap over prompts (Efron & Tibshirani 1993, chapter 13)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Result(msgspec.Struct, kw_only=True):
    """What one model's answers come to."""

    model: str
    reward: Interval | None = None
    gain: Interval | None = None
    "Of reward over the first model's, prompt by prompt."
    wins: Interval | None = None
    "Share of prompts on which its answer has the higher reward than the first model's; a tie counts half."
    kl: float | None = None
    tokens: float = 0.0
    finished: float = 0.0
    "Share of answers that ended by themselves."
    perplexity: float | None = None


class Comparison(msgspec.Struct, kw_only=True):
    """All models side by side."""

    prompts: int
    results: list[Result]
    shown: list[dict[str, Any]]

    def metrics(self) -> dict[str, float]:
        """Figures by `MODEL_FIGURE`."""
        found: dict[str, float] = {}
        for result in self.results:
            figures: dict[str, Any] = {"kl": result.kl, "tokens": result.tokens, "perplexity": result.perplexity}
            for name, interval in (("reward", result.reward), ("gain", result.gain), ("wins", result.wins)):
                if interval is not None:
                    figures |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
            found |= {f"{result.model}_{name}": value for name, value in figures.items() if value is not None}
        return found


def gather(config: Any, context: StageContext, models: dict[str, str], records: Sequence[Prompted]) -> Path:
    """Have every model answer every prompt and read the general text; the folder of what came of it."""
    from tutelage.engine.making import make_dataset

    windows = _windows(config, context)
    items = [
        (model, kind, number)
        for model in models
        for kind, count in (("answer", len(records)), ("read", len(windows)))
        for number in range(count)
    ]
    work = _Work(config, context, models, records, windows)
    return make_dataset(context, items, work, batch=config.batch_size).parent


def _windows(config: Any, context: StageContext) -> list[str]:
    """The general text in pieces of about 200 tokens (800 characters), as much of it as is asked for."""
    if not config.text:
        return []
    from tutelage.formats import Text

    texts = (getattr(record, "text", "") for _, record in context.records(config.text, takes=(Text,)))
    pieces: list[str] = []
    for text in texts:
        pieces += [text[start : start + 800] for start in range(0, len(text), 800)]
        if len(pieces) * 200 >= config.text_tokens:
            break
    return [piece for piece in pieces if piece.strip()][: max(1, config.text_tokens // 200)]


class _Work:
    """Answers and reads, with the models that this takes loaded one after another."""

    def __init__(
        self,
        config: Any,
        context: StageContext,
        models: dict[str, str],
        records: Sequence[Prompted],
        windows: Sequence[str],
    ) -> None:
        self.config, self.context, self.models = config, context, models
        self.records, self.windows = records, windows
        self._loaded: dict[str, tuple[Any, PreTrainedTokenizerBase]] = {}

    def __call__(self, items: list[tuple[str, str, int]]) -> list[list[dict[str, Any]]]:
        rows: list[list[dict[str, Any]]] = []
        for (model, kind), group in groupby(items, key=lambda item: (item[0], item[1])):
            numbers = [number for _, _, number in group]
            made = self._answers(model, numbers) if kind == "answer" else self._reads(model, numbers)
            rows += [[msgspec.to_builtins(each)] for each in made]
        return rows

    def _model(self, name: str) -> tuple[Any, PreTrainedTokenizerBase]:
        from tutelage.engine.making import load_context_model

        first = next(iter(self.models))
        if name not in self._loaded:
            self._loaded = {known: pair for known, pair in self._loaded.items() if known == first}
            reference = self.models[name] or self.context.recipe.model
            self._loaded[name] = load_context_model(self.context, reference)
        return self._loaded[name]

    def _answers(self, name: str, numbers: list[int]) -> list[Answered]:
        from tutelage.models.generation import encode
        from tutelage.models.sampling import ends_of, sample, seed_of, text

        config, seed = self.config, self.context.stage.trainer.seed
        model, tokenizer = self._model(name)
        place = f"stages.{self.context.stage.name}.data, prompt "
        ids = [
            encode(model, tokenizer, self.records[number].prompt, config.max_new_tokens, f"{place}{number + 1}")
            for number in numbers
        ]
        drawn = sample(
            model,
            ids,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seeds=[seed_of(seed, number) for number in numbers],
            batch_size=config.batch_size,
            **ends_of(model, tokenizer),
        )
        divergences = self._divergences(name, ids, [each.ids for each in drawn])
        return [
            Answered(
                model=name,
                prompt=number,
                answer=text(tokenizer, each),
                tokens=len(each.ids),
                finished=each.finished,
                kl=kl,
            )
            for number, each, kl in zip(numbers, drawn, divergences, strict=True)
        ]

    def _divergences(self, name: str, prompts: list[list[int]], answers: list[list[int]]) -> list[float | None]:
        first = next(iter(self.models))
        if not self.config.kl or self.config.temperature == 0:
            return [None] * len(answers)
        if name == first:
            return [0.0] * len(answers)
        model, start = self._model(name)[0], self._model(first)[0]
        if model.config.vocab_size != start.config.vocab_size:
            return [None] * len(answers)
        return [_divergence(model, start, *pair) for pair in zip(prompts, answers, strict=True)]

    def _reads(self, name: str, numbers: list[int]) -> list[Read]:
        import torch

        from tutelage.engine.forward import learnt_loss

        model, tokenizer = self._model(name)
        found = []
        for number in numbers:
            encoded: list[int] = tokenizer(self.windows[number])["input_ids"]
            with torch.no_grad():
                nll = learnt_loss(model, _batch([], encoded, model))
            found.append(Read(model=name, nll=float(nll), tokens=max(0, len(encoded) - 1)))
        return found


def _divergence(model: Any, start: Any, prompt: list[int], answer: list[int]) -> float:
    """The sum over an answer's tokens of the KL of the model's distribution from the start's, in nats."""
    import torch

    from tutelage.engine.forward import learnt_logits

    with torch.no_grad():
        batch = _batch(prompt, answer, model)
        log_p = learnt_logits(model, batch)[0].float().log_softmax(-1)
        log_q = learnt_logits(start, batch)[0].float().log_softmax(-1)
        return float((log_p.exp() * (log_p - log_q)).sum())


def _batch(prompt: list[int], answer: list[int], model: Any) -> Any:
    from tutelage.data.batches import collate
    from tutelage.data.rendering import Tokens

    ids = np.array([*prompt, *answer], dtype=np.int32)
    tokens = Tokens(ids, np.arange(len(ids)) >= len(prompt))
    return collate(_One(tokens), [0], packed=False, filler=0).to(next(model.parameters()).device)


class _One:
    """A store of one example."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.lengths = self.weights = np.array([len(tokens)], dtype=np.int64)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Tokens:
        return self.tokens

    def place(self, index: int) -> str:
        return ""


def compare(
    models: Sequence[str], records: Sequence[Prompted], answered: Sequence[Answered], reads: Sequence[Read], seed: int
) -> Comparison:
    """Every model's figures with intervals, beside those of the first."""
    table = {(each.model, each.prompt): each for each in answered}
    first = [table[models[0], number] for number in range(len(records))]
    results = []
    for model in models:
        mine = [table[model, number] for number in range(len(records))]
        result = Result(
            model=model,
            kl=None if mine[0].kl is None else float(np.mean([each.kl for each in mine])),
            tokens=float(np.mean([each.tokens for each in mine])),
            finished=float(np.mean([each.finished for each in mine])),
            perplexity=_perplexity([each for each in reads if each.model == model]),
        )
        if mine[0].reward is not None:
            rewards, before = (np.array([each.reward for each in side], dtype=float) for side in (mine, first))
            result.reward = interval(rewards, seed)
            if model != models[0]:
                result.gain = interval(rewards - before, seed)
                result.wins = interval((rewards > before) + 0.5 * (rewards == before), seed)
        results.append(result)
    shown = [
        {
            "prompt": _words(record),
            "answers": {
                model: {"answer": table[model, number].answer, "reward": table[model, number].reward}
                for model in models
            },
        }
        for number, record in enumerate(records[:_SHOWN])
    ]
    return Comparison(prompts=len(records), results=results, shown=shown)


def interval(values: NDArray[Any], seed: int) -> Interval:
    """The mean of values (n,) and its 95% interval."""
    generator = np.random.default_rng(seed)
    means = values[generator.integers(0, len(values), (_RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def _perplexity(reads: Sequence[Read]) -> float | None:
    tokens = sum(each.tokens for each in reads)
    return float(np.exp(min(80.0, sum(each.nll for each in reads) / tokens))) if tokens else None


def _words(record: Prompted) -> str:
    if isinstance(record.prompt, str):
        return record.prompt
    return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in record.prompt)


def sections(told: Comparison, judge: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The comparison as sections of the run's report."""
    first = told.results[0].model
    by = f", judged by {', '.join(judge)}" if judge else ""
    against = f"Intervals are 95%, over prompts; gain and wins are against {first}, prompt by prompt."
    text = [f"{told.prompts} prompts{by}. {against}"]
    columns = ["model", "reward", "gain", "wins", "KL, nats an answer", "tokens", "ended", "perplexity of general text"]
    rows = [
        [
            each.model,
            *("" if value is None else str(value) for value in (each.reward, each.gain, each.wins)),
            "" if each.kl is None else f"{each.kl:.2f}",
            f"{each.tokens:.1f}",
            f"{each.finished:.0%}",
            "" if each.perplexity is None else f"{each.perplexity:.2f}",
        ]
        for each in told.results
    ]
    yield {"title": "Models side by side", "text": text, "columns": columns, "rows": rows}
    for number, each in enumerate(told.shown, start=1):
        answers = [
            [model, found["answer"], "" if found["reward"] is None else f"{found['reward']:.3f}"]
            for model, found in each["answers"].items()
        ]
        yield {
            "title": f"Prompt {number}",
            "text": [each["prompt"]],
            "columns": ["model", "answer", "reward"],
            "rows": answers,
        }
