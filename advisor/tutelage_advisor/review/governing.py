"""`governance: reviewed` in a recipe: nothing is learnt from data that people have not signed as it is."""

from __future__ import annotations

from pathlib import Path

from tutelage.errors import Problem
from tutelage.governance import Governance
from tutelage_advisor.review.verifying import unsigned


class Reviewed(Governance):
    """Refuses data that was not reviewed and signed, or was changed since."""

    name = "reviewed"

    def check(self, data: Path, place: str) -> list[Problem]:
        """The review's own findings: not signed, changed rows, a record that was tampered with."""
        return unsigned(data, place)
