"""API keys: made, checked and revoked. A key is `tut_<lookup>_<secret>`; only an argon2 hash of the secret is kept."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Iterable
from datetime import datetime

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage_server.accounts.caller import SCOPES, Caller
from tutelage_server.problems import Refused, refused
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Key, Tenant, new_id, now

# OWASP's least for argon2id. A secret has 256 random bits, which no machine guesses whatever the hash costs.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

FRESH_SECONDS = 2.0
"How long what is known of a key may be used; a key revoked by another process works that long still."
_MOST_KNOWN = 10_000


def tenant_named(session: Session, name: str) -> Tenant:
    """The tenant of a name, made where there is none."""
    tenant = session.scalars(select(Tenant).where(Tenant.name == name)).one_or_none()
    if tenant is None:
        tenant = Tenant(id=new_id("tenant"), name=name, limits={})
        session.add(tenant)
        session.flush()
    return tenant


def make_key(
    session: Session,
    tenant_id: str,
    name: str,
    scopes: Iterable[str] = SCOPES,
    expires_at: datetime | None = None,
    requests_per_minute: int | None = None,
) -> tuple[Key, str]:
    """A new key and its text, which is known now and never again."""
    lookup, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    key = Key(
        id=new_id("key"),
        tenant_id=tenant_id,
        name=name,
        lookup=lookup,
        hash=_HASHER.hash(secret),
        scopes=sorted(set(scopes)),
        requests_per_minute=requests_per_minute,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, f"tut_{lookup}_{secret}"


def revoke_key(session: Session, tenant_id: str, key_id: str) -> Key | None:
    """Revoke a tenant's key; one that is revoked stays so. None when the tenant has no such key."""
    key = session.scalars(select(Key).where(Key.id == key_id, Key.tenant_id == tenant_id)).one_or_none()
    if key is not None and key.revoked_at is None:
        key.revoked_at = now()
    return key


class Keys:
    """Checks keys. A secret is hashed once; after that, a digest of the key's text in memory stands for the check.

    What the store says of a key (scopes, expiry, whether it is revoked) is read anew every `FRESH_SECONDS`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._checked: dict[bytes, str] = {}
        self._known: dict[str, tuple[float, Key]] = {}

    def remembered(self, text: str) -> Caller | None:
        """Who calls, when it is known without asking the store."""
        key_id = self._checked.get(_digest(text))
        known = self._known.get(key_id) if key_id else None
        if known is None or time.monotonic() - known[0] > FRESH_SECONDS:
            return None
        return _caller(known[1])

    def check(self, text: str) -> Caller:
        """Who calls with a key; blocks on the store, and on the hash the first time.

        Raises:
            Refused: 401 when the key is none of ours, expired or revoked.
            StoreUnavailable
        """
        digest = _digest(text)
        key_id = self._checked.get(digest)
        with self._store.reading() as session:
            key = session.get(Key, key_id) if key_id else _find(session, text)
        if key is None or (key_id is None and not _matches(key, text)):
            raise unauthorized("is not known here", "check it, or ask an admin of this server for a new one")
        with self._lock:
            if len(self._checked) >= _MOST_KNOWN:
                self._checked.clear()
                self._known.clear()
            self._checked[digest] = key.id
            self._known[key.id] = (time.monotonic(), key)
        return _caller(key)

    def forget(self, key_id: str) -> None:
        """Read a key anew at its next use: it has changed."""
        with self._lock:
            self._known.pop(key_id, None)


def unauthorized(wrong: str, fix: str) -> Refused:
    """A refusal with 401."""
    return refused(401, "the key", wrong, fix, code="invalid_key", headers={"www-authenticate": "Bearer"})


def _caller(key: Key) -> Caller:
    if key.revoked_at is not None:
        raise unauthorized("was revoked", "ask an admin of this server for a new one")
    if key.expires_at is not None and key.expires_at <= now():
        raise unauthorized(f"expired on {key.expires_at:%Y-%m-%d}", "ask an admin of this server for a new one")
    return Caller(key.id, key.tenant_id, frozenset(key.scopes), key.requests_per_minute)


def _find(session: Session, text: str) -> Key | None:
    kind, _, rest = text.partition("_")
    lookup, _, secret = rest.partition("_")
    if kind != "tut" or not lookup or not secret or len(text) > 200:
        return None
    return session.scalars(select(Key).where(Key.lookup == lookup)).one_or_none()


def _matches(key: Key, text: str) -> bool:
    try:
        return _HASHER.verify(key.hash, text.split("_", 2)[2])
    except (VerificationError, InvalidHashError):
        return False


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
