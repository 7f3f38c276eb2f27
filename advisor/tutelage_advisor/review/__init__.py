"""People sign that data is accurate, unbiased and appropriate; what they signed can't be changed unnoticed."""

from __future__ import annotations

from tutelage_advisor.review.card import write_card
from tutelage_advisor.review.reviewing import Decision, State, begin, decide, record_path, shown, sign, state
from tutelage_advisor.review.verifying import Verification, is_signed, unsigned, verify

__all__ = [
    "Decision",
    "State",
    "Verification",
    "begin",
    "decide",
    "is_signed",
    "record_path",
    "shown",
    "sign",
    "state",
    "unsigned",
    "verify",
    "write_card",
]
