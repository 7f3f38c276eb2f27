"""What a run tells people afterwards: report.html, report.md, and the model card of an artifact."""

from __future__ import annotations

from tutelage.report.card import model_card
from tutelage.report.writing import write_report

__all__ = ["model_card", "write_report"]
