"""What a run's events tell of each stage: the steps that count, evaluations, totals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tutelage.runs.folder import RunFolder

Points = list[tuple[float, float]]


@dataclass
class StageHistory:
    """One stage's events. A step that was repeated after a resume counts once, as it was done last."""

    name: str
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    evals: dict[int, dict[str, Any]] = field(default_factory=dict)
    sections: list[dict[str, Any]] = field(default_factory=list)
    "What phases have to say in the report: title, text (paragraphs), columns and rows of a table."
    samples: list[dict[str, Any]] = field(default_factory=list)
    "Answers of the last step that showed some, from the worst to the best."
    conclusion: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    started: dict[str, Any] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict)
    data: Any = None

    def points(self, key: str) -> Points:
        """(step, value) of a figure, of evaluations for `eval_…`; values that were not finite are left out."""
        rows = self.evals if key.startswith("eval_") else self.steps
        return [(step, float(rows[step][key])) for step in sorted(rows) if isinstance(rows[step].get(key), int | float)]

    @property
    def seconds(self) -> float:
        """Time spent in the steps that count."""
        return sum(value for _, value in self.points("seconds"))

    @property
    def tokens(self) -> int:
        """Tokens computed in the steps that count."""
        return int(sum(value for _, value in self.points("tokens")))

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over the whole stage, or None when nothing was timed."""
        return self.tokens / self.seconds if self.seconds and self.tokens else None

    @property
    def peak_memory(self) -> float | None:
        """The largest memory of any step, in GiB."""
        return max((value for _, value in self.points("memory_gib")), default=None)

    @property
    def last_loss(self) -> float | None:
        """The loss of the last step."""
        points = self.points("loss")
        return points[-1][1] if points else None

    def forget_after(self, step: int) -> None:
        """Drop what came after the checkpoint that a resumed stage starts from."""
        self.steps = {at: event for at, event in self.steps.items() if at <= step}
        self.evals = {at: event for at, event in self.evals.items() if at <= step}


def history_of(events: Iterable[dict[str, Any]]) -> dict[str, StageHistory]:
    """Sort events by stage, in the order in which stages began."""
    stages: dict[str, StageHistory] = {}
    current = ""
    for event in events:
        current = str(event.get("stage") or current)
        if current:
            _take(stages.setdefault(current, StageHistory(current)), event)
    return stages


def _take(stage: StageHistory, event: dict[str, Any]) -> None:
    kind, step = event["event"], event.get("step")
    if kind == "stage_started":
        stage.started = event
        stage.sections = []
        stage.forget_after(int(event.get("resumed_from") or 0))
    elif kind == "step" and isinstance(step, int):
        stage.steps[step] = event
    elif kind == "eval" and isinstance(step, int):
        stage.evals[step] = event
    elif kind == "notice":
        stage.notices.append(str(event.get("text", "")))
    elif kind == "saved":
        stage.saved = event
    elif kind == "samples":
        stage.samples = event.get("samples") or []
    elif kind == "section":
        stage.sections.append(event)
    elif kind == "conclusion":
        stage.conclusion = event
    elif kind == "data":
        stage.data = event.get("report")


def read_history(folder: RunFolder) -> dict[str, StageHistory]:
    """The history of a run on disk, also one that goes on right now."""
    return history_of(folder.events())
