"""Whether prompts differ enough to teach more than themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

import tutelage
from tutelage.datacheck import DataCheck, Evidence, Example, Finding
from tutelage_advisor.audit.vectors import Sample, centres, effective_number, vectors

if TYPE_CHECKING:
    from collections.abc import Iterable


class Diversity(DataCheck):
    """How many different prompts the set is worth, and its clusters."""

    name = "diversity"

    class Config(tutelage.Config):
        """When diversity is low."""

        effective: Annotated[
            float,
            msgspec.Meta(gt=1, description="Fewer different prompts than this (Vendi score, at most 256) are few."),
        ] = 20.0
        sample: Annotated[int, msgspec.Meta(ge=100, description="Prompts that are compared.")] = 10_000

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.prompts = Sample(self.config.sample)

    def look(self, example: Example) -> None:
        """Keep a sample of prompts (of texts, where there are none)."""
        words = example.question_words or example.answer_words
        self.prompts.add(words, (example.number, example.place, " ".join(words[:25])))

    def findings(self) -> Iterable[Finding]:
        """A warning when diversity is low, else a note with the clusters."""
        import numpy as np

        if len(self.prompts.words) < 20:
            return
        (matrix,) = vectors(self.prompts)
        effective = effective_number(matrix)
        clusters = centres(matrix, cluster_count(self.prompts.seen))
        cosines = matrix @ clusters.T
        owner, order = cosines.argmax(axis=1), np.argsort(-cosines.max(axis=1), kind="stable")
        sizes = np.bincount(owner, minlength=len(clusters))
        typical = {int(owner[at]): self.prompts.labels[at] for at in reversed(order.tolist())}
        largest = np.argsort(-sizes, kind="stable").tolist()
        low = effective < self.config.effective
        yield Finding(
            check=self.name,
            severity="warning" if low else "note",
            message=f"the prompts are worth {effective:.0f} different ones; the largest of {len(clusters)} clusters "
            f"has {sizes.max() / len(matrix):.0%}",
            advice="collect prompts that differ more: other words, other cases, other lengths"
            if low
            else "see whether the largest cluster is what production asks most, and whether a case is missing",
            evidence=[
                Evidence(typical[at][0], typical[at][1], f"typical of {sizes[at] / len(matrix):.0%}: {typical[at][2]}")
                for at in largest[:5]
                if at in typical
            ],
            figures={
                "effective_prompts": round(effective, 1),
                "clusters": [round(float(sizes[at] / len(matrix)), 4) for at in largest],
            },
        )


def cluster_count(rows: int) -> int:
    """As many clusters as a person can look over: 2 to 20, more for more rows."""
    return int(min(20, max(2, (rows / 50) ** 0.5)))
