"""What a file may be called. A name is shown and tells how a file is read; no path is made of it."""

from __future__ import annotations

import unicodedata

from tutelage_server.problems import refused

LONGEST = 255
_STRANGE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"Categories of characters that hide, reorder or break text (Unicode, general categories)."


def check_name(name: str, place: str = "name") -> str:
    """The name in Unicode's composed form (NFC).

    Raises:
        Refused: 422 when it is empty, too long, or holds what could be taken for a path, or hides in a listing.
    """
    name = unicodedata.normalize("NFC", name)
    if not name.strip() or name != name.strip():
        raise refused(422, place, "is empty, or begins or ends with a blank", "give the file's name alone")
    if len(name.encode("utf-8", "replace")) > LONGEST:
        raise refused(422, place, f"has more than {LONGEST} bytes in UTF-8", "shorten it")
    if any(unicodedata.category(each) in _STRANGE for each in name):
        raise refused(422, place, "holds characters that control, hide or reorder text", "leave them out")
    folded = unicodedata.normalize("NFKC", name)
    if any(each in "/\\" for each in name + folded) or folded.strip(". ") == "":
        raise refused(422, place, "is a path, and not a file's name", "give the last part of it alone")
    return name
