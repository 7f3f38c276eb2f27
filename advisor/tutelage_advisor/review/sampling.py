"""Which rows people look at: those that findings name first, then some of every cluster."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import msgspec

from tutelage_advisor.audit.checks.diversity import cluster_count
from tutelage_advisor.audit.reading import examples, open_source
from tutelage_advisor.audit.vectors import Sample, centres, vectors
from tutelage_advisor.review.seal import row_fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from tutelage_advisor.audit.report import Audit

_CLUSTERED = 10_000


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One row to look at: where it is, and why it was chosen. What it says stays in the data."""

    row: int
    place: str
    fingerprint: str
    stratum: str


def choose(path: str | Path, report: Audit, size: int, seed: int = 0) -> list[Item]:
    """Choose up to `size` different rows: at most half from findings, in turn; the rest from clusters, by their size.

    The same data, audit, size and seed choose the same rows.

    Raises:
        TutelageError: when the data can't be read.
    """
    random = Random(seed)
    strata = _from_findings(report, size // 2, random)
    for row, cluster in _from_clusters(path, size - len(strata), set(strata), random):
        strata[row] = cluster
    chosen: dict[str, Item] = {}
    for example in examples(open_source(path)):
        if example.number in strata:
            fingerprint = row_fingerprint(example.row, "" if example.row else example.error)
            item = Item(
                row=example.number, place=example.place, fingerprint=fingerprint, stratum=strata[example.number]
            )
            chosen.setdefault(fingerprint, item)  # equal rows are looked at once
    return sorted(chosen.values(), key=lambda item: (not item.stratum.startswith("finding"), item.row))


def _from_findings(report: Audit, size: int, random: Random) -> dict[int, str]:
    """Rows of each finding in turn, the gravest finding first; a row is taken once."""
    lots = []
    for finding in report.findings:
        # A finding of most rows (no licence field) says nothing of the single row.
        if 0 < len(finding.rows) <= report.rows / 2:
            lots.append((finding.check, random.sample(finding.rows, min(len(finding.rows), size))))
    chosen: dict[int, str] = {}
    while len(chosen) < size and any(rows for _, rows in lots):
        for check, rows in lots:
            if rows and len(chosen) < size:
                chosen.setdefault(rows.pop(), f"finding: {check}")
    return chosen


def _from_clusters(path: str | Path, size: int, taken: set[int], random: Random) -> list[tuple[int, str]]:
    sample = Sample(_CLUSTERED)
    for example in examples(open_source(path)):
        if example.number not in taken:
            sample.add([*example.question_words, *example.answer_words], example.number)
    if not sample.words:
        return []
    (matrix,) = vectors(sample)
    owner = (matrix @ centres(matrix, cluster_count(sample.seen)).T).argmax(axis=1).tolist()
    clusters: dict[int, list[int]] = {}
    for row, cluster in zip(sample.labels, owner, strict=True):
        clusters.setdefault(cluster, []).append(row)
    return _proportional(clusters, size, random)


def _proportional(clusters: dict[int, list[int]], size: int, random: Random) -> list[tuple[int, str]]:
    """Draw from clusters by their size, from each at least one while there is room (largest remainders)."""
    total = sum(map(len, clusters.values()))
    order = sorted(clusters, key=lambda cluster: (-len(clusters[cluster]), cluster))
    quota = {cluster: max(1, int(size * len(clusters[cluster]) / total)) for cluster in order}
    chosen = [
        (row, f"cluster {place}")
        for place, cluster in enumerate(order, 1)
        for row in random.sample(clusters[cluster], min(quota[cluster], len(clusters[cluster])))
    ][:size]
    left = {row for rows in clusters.values() for row in rows} - {row for row, _ in chosen}
    names = {row: f"cluster {place}" for place, cluster in enumerate(order, 1) for row in clusters[cluster]}
    more = random.sample(sorted(left), min(size - len(chosen), len(left)))
    return chosen + [(row, names[row]) for row in more]
