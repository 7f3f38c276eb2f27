"""Finds and masks what has a checkable form: personal data and secrets. Names, addresses and health have none.

Check digits are python-stdnum's (Luhn for cards, ISO 7064 for IBANs), phone numbers those of Google's libphonenumber
(phonenumbers). Presidio finds names too, but needs spaCy and a model, and fetches a list of domains when it is used.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECRET_HINTS = (
    *("-----BEGIN", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "xox", "AIza", "sk-"),
    *("k_live_", "glpat-", "hf_", "npm_", "eyJ", "://"),
)
"One of these is in every secret of a known form; looking for them first is quick."
_SECRET_NAMES = ("password", "passwd", "pwd", "secret", "token", "key")


def personal(text: str, region: str = "US") -> Iterator[tuple[str, str]]:
    """Kind and value of each e-mail address, card, IBAN, US social security number, public IP address and phone number.

    `region` is the country whose phone numbers may come without +.
    """
    find = _patterns()
    if "@" in text:
        yield from (("e-mail addresses", match.group()) for match in find["email"].finditer(text))
    if find["digits"].search(text):
        taken: list[tuple[int, int]] = []
        for kind, start, end in _numbers(text):
            taken.append((start, end))
            if kind:
                yield kind, text[start:end]
        for start, end in _phones(text, region):
            if all(end <= other_start or start >= other_end for other_start, other_end in taken):
                yield "phone numbers", text[start:end]


def secrets(text: str) -> Iterator[tuple[str, str]]:
    """Kind and value of each key, token or password: known forms, and random-looking values that are called so."""
    find = _patterns()
    if any(hint in text for hint in _SECRET_HINTS):
        for match in find["secret"].finditer(text):
            yield (match.lastgroup or "secret").replace("_", " "), match.group()
    lower = text.lower()
    if any(name in lower for name in _SECRET_NAMES):
        for match in find["named secret"].finditer(text):
            if looks_random(match.group(1)):
                yield "password or key", match.group(1)


def masked(value: str) -> str:
    """A value that a person recognises in the row but nobody can use."""
    return f"{value[:3]}{'*' * min(8, max(1, len(value) - 5))}{value[-2:]}"


def redacted(text: str) -> str:
    """Text with all that `personal` and `secrets` find masked."""
    for _, value in {*secrets(text), *personal(text)}:
        text = text.replace(value, masked(value))
    return text


def looks_random(value: str) -> bool:
    """Whether a value mixes letters and digits and has about 3 bits of entropy a character, as passwords do."""
    letters, digits = any(map(str.isalpha, value)), any(map(str.isdigit, value))
    entropy = -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
    enough = 2.75 if len(value) < 12 else 3.0  # a short value can't have more
    placeholder = re.search(r"(?i)your|example|xxx|\*\*\*|placeholder|changeme|\.\.\.", value)
    return letters and digits and entropy >= enough and not placeholder


def _numbers(text: str) -> Iterator[tuple[str, int, int]]:
    """Kind (empty for an IP address that is not public), start and end of numbers with check digits or a fixed form."""
    from stdnum import iban, luhn
    from stdnum.us import ssn

    find = _patterns()
    for match in find["card"].finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn.is_valid(digits):
            yield "payment cards", *match.span()
    for match in find["iban"].finditer(text):
        if iban.is_valid(match.group()):
            yield "IBANs", *match.span()
    for match in find["ssn"].finditer(text):
        if ssn.is_valid(match.group()):
            yield "US social security numbers", *match.span()
    for match in find["address"].finditer(text):
        yield "public IP addresses" if _public(match.group()) else "", *match.span()


def _phones(text: str, region: str) -> Iterator[tuple[int, int]]:
    from phonenumbers import PhoneNumberMatcher

    found = [match.span() for match in _patterns()["us phone"].finditer(text)]
    yield from found
    if not any(_may_be_a_phone(match.group(), region) for match in _patterns()["run"].finditer(text)):
        return  # libphonenumber takes milliseconds for a text with numbers, and most hold none of phones
    for match in PhoneNumberMatcher(text, region):
        if (match.start, match.end) not in found and _like_a_phone(match.raw_string):
            yield match.start, match.end


def _may_be_a_phone(run: str, region: str) -> bool:
    """Whether digits and separators are long enough; a number without + has 10 digits in the United States."""
    digits = sum(map(str.isdigit, _patterns()["date"].sub("", run)))
    return digits >= (10 if region == "US" and not run.startswith("+") else 7)


def _like_a_phone(written: str) -> bool:
    """libphonenumber takes any digits of a valid length; without + or separators they may be an order number."""
    date = _patterns()["date"].search(written)
    return written.startswith("+") or bool(re.search(r"\d[\s()./-]+\d", written) and not date)


def _public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    return {
        # All numbers that are looked for hold such a run of digits and separators.
        "digits": re.compile(r"\d[\d\s()./-]{5,}\d"),
        "run": re.compile(r"\+?[(\d][\d\s()./-]{5,}\d"),
        "date": re.compile(r"\d{4}-\d{2}-\d{2}"),
        "email": re.compile(
            r"(?<![\w.+-])[\w.+-]{1,64}@(?:[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\.)+[a-z]{2,24}\b", re.IGNORECASE
        ),
        "card": re.compile(r"(?<![\w.])[2-6]\d{3}(?:[ -]?\d{3,6}){2,4}(?![\w]|\.\d)"),
        "iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
        "ssn": re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"),
        "us phone": re.compile(r"(?<![\w.+-])(?:\+?1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-]|\.\d)"),
        "address": re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"),
        "secret": re.compile(
            r"(?P<private_key>-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----)"
            r"|\b(?P<aws_key>(?:AKIA|ASIA)[0-9A-Z]{16})\b"
            r"|\b(?P<github_token>gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})\b"
            r"|\b(?P<slack_token>xox[abprs]-[A-Za-z0-9-]{10,})"
            r"|\b(?P<google_key>AIza[0-9A-Za-z_-]{35})(?![\w-])"
            r"|\b(?P<api_key>sk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}|(?:sk|rk)_live_[A-Za-z0-9]{16,}|glpat-[A-Za-z0-9_-]{20,}"
            r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36})"
            r"|\b(?P<json_web_token>eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})"
            r"|(?P<password_in_url>\b[a-z][a-z0-9+]{1,15}://[^\s:/@\"']{1,50}:[^\s:/@\"'{<$]{3,100}@)"
        ),
        "named secret": re.compile(
            r"(?:password|passwd|pwd|secret|token|api[_ -]?key|access[_ -]?key|auth[_ -]?key)[\"']?"
            r"(?:\s+is|\s*[:=]+)\s*[\"'`]?([^\s\"'`,;<>{}()]{8,200})",
            re.IGNORECASE,
        ),
    }
