"""Times that callers send."""

from __future__ import annotations

from datetime import UTC, datetime

from tutelage_server.problems import refused


def in_utc(at: datetime, place: str) -> datetime:
    """A time in UTC, as the store keeps it; without a zone it is the server's.

    Raises:
        Refused: 422 when it lies before the year 1 or after 9999 there.
    """
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise refused(
            422, place, "is a time that no calendar here has", "give one between the years 1 and 9999"
        ) from None
