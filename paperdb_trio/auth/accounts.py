"""Databases, keys and signing secrets, in memory.

Law: read from the file as a whole, replaced as a whole. Of revoked tokens there may be many: only new ones are
read. A change made by another process (the command line) is seen within half a second, because it raises the
file's version.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
import trio

from paperdb_trio.auth.keys import hash_key
from paperdb_trio.errors import ApiError, bad_request
from paperdb_trio.logs import SparingLog
from paperdb_trio.store.protocol import Directories, Directory, RevocationRow

Keyring = tuple[tuple[str, bytes, float], ...]
"""`(kid, secret, retired_at)` of each signing secret; `retired_at` in seconds since the epoch, infinite for the
current one."""

REALTIME_PLANS: Final = frozenset({"pro", "team"})


@dataclass(frozen=True, slots=True)
class Database:
    id: int
    name: str
    plan: str

    @property
    def realtime(self) -> bool:
        return self.plan in REALTIME_PLANS

    def require_name(self, name: str) -> None:
        """Raises a 403 `OTHER_DATABASE`."""
        if name != self.name:
            raise ApiError(
                403, "OTHER_DATABASE", f"The key or token is for another database than '{name[:80]}'"
            )

    def require_realtime(self) -> None:
        """Raises a 403 `PLAN_REQUIRED`."""
        if not self.realtime:
            raise ApiError(
                403, "PLAN_REQUIRED", "Realtime is only available on Pro and Team plans", plan=self.plan
            )


SERVER: Final = Database(0, "", "free")
"""Stands for no database, in the identity of an admin key that names none."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`database_id`: None for an admin key. `secret`: it may write. `revoked`: or it has expired. `expires`: in
    seconds since the epoch, infinite for never."""

    id: str
    database_id: int | None
    kind: str
    label: str
    secret: bool
    revoked: bool
    expires: float

    @property
    def admin(self) -> bool:
        return self.database_id is None

    @property
    def by(self) -> str:
        """Who does what is done with it, for the record."""
        return f"key {self.id} ({self.label})" if self.label else f"key {self.id}"


class Identity(msgspec.Struct, frozen=True):
    """A valid key, and its database. An admin key's is the one that the request names."""

    key: ApiKey
    database: Database


@dataclass(frozen=True, slots=True)
class _Snapshot:
    version: int = 0
    databases: dict[int, Database] = field(default_factory=dict)
    database_ids: dict[str, int] = field(default_factory=dict)
    keys: dict[str, ApiKey] = field(default_factory=dict)
    key_ids: dict[bytes, str] = field(default_factory=dict)
    keyring: Keyring = ()
    signing: tuple[str, bytes] = ("", b"")
    next_expiry: float = math.inf
    """When the next key expires, in seconds since the epoch."""
    identities: dict[str, Identity] = field(default_factory=dict)
    """By an `Authorization` header, `Bearer KEY`, once the key was used: hashing it takes a twentieth of a get.
    Not those of admin keys."""


PRUNE_SECONDS: Final = 3600.0
LINES_A_MINUTE: Final = 100
"""Log lines for each kind of change: a user who leaves may have thousands of tokens."""


class _Revocations:
    """Those that matter, by database, kind and name. There may be many, so only new rows are read."""

    def __init__(self) -> None:
        self.last = 0
        self._known: dict[tuple[int, str, str], tuple[int, int]] = {}
        self._pruned = time.monotonic()

    def add(self, rows: list[RevocationRow]) -> None:
        for self.last, database_id, kind, name, at, until in rows:
            self._known[database_id, kind, name] = (at, until)
        if time.monotonic() > self._pruned + PRUNE_SECONDS:
            self._pruned = time.monotonic()
            now = time.time() * 1000
            self._known = {key: times for key, times in self._known.items() if times[1] >= now}

    def at(self, database_id: int, kind: str, name: str) -> int:
        return self._known.get((database_id, kind, name), (0, 0))[0]

    def cover(self, database_id: int, jti: str, subject: str | None, issued: int) -> bool:
        if not self._known:
            return False
        if (database_id, "jti", jti) in self._known:
            return True
        return subject is not None and issued <= self.at(database_id, "subject", subject)


class Accounts:
    """Call `refresh()` before the first use, and then regularly."""

    def __init__(self) -> None:
        self._now = _Snapshot()
        self._one_at_a_time = trio.Lock()
        self._looked = -math.inf
        self._revocations = _Revocations()
        self._log = SparingLog(logging.getLogger("paperdb.accounts"), burst=LINES_A_MINUTE)
        self.used: set[str] = set()
        """Ids of the keys that were used since the last `used_at`."""

    def age(self) -> float:
        """Seconds since the last `refresh` that could read the file."""
        return trio.current_time() - self._looked

    async def refresh(self, store: Directories) -> bool:
        """Read the directory again if it has changed; returns whether something has, also if a key expired."""
        async with self._one_at_a_time:  # else two read the same changes, and the older reading may end last
            changed = self._expire()
            directory = await store.directory(self._now.version, self._revocations.last)
            self._looked = trio.current_time()
            if directory is None:
                return changed
            before, self._now = self._now, _snapshot(directory)
            self._revocations.add(directory.revocations)
            if before.version:  # else it is the first reading
                for what, fields in _differences(before, self._now, directory.revocations):
                    self._log.log(logging.INFO, what, fields=fields)
            return True

    def _expire(self) -> bool:
        """Revoke the keys that have expired, so that a request need not look at the clock."""
        now = time.time()
        if now < self._now.next_expiry:
            return False
        keys = self._now.keys.copy()
        for key in self._now.keys.values():
            if key.expires <= now and not key.revoked:
                keys[key.id] = replace(key, revoked=True)
                self._log.log(logging.INFO, "a key has expired", fields={"key": key.id, "kind": key.kind})
        self._now = replace(self._now, keys=keys, next_expiry=_next_expiry(keys), identities={})
        return True

    def known(self, authorization: str) -> Identity | None:
        """The identity of a header `Authorization: Bearer KEY`, if the key was used before and is valid."""
        return self._now.identities.get(authorization)

    def identify(self, key: str) -> Identity:
        """Raises a 401 for a key that is unknown, revoked or expired, and a 400 for an admin key."""
        header = f"Bearer {key}"
        known = self._now.identities.get(header)
        if known is not None:
            return known
        found = self.key_of(key)
        if found.database_id is None:
            raise bad_request(
                "This is an admin key: name the database in a header, X-PaperDB-Database: default",
                "DATABASE_NEEDED",
            )
        identity = self._now.identities[header] = Identity(found, self._now.databases[found.database_id])
        return identity

    def identify_in(self, key: str, name: str) -> Identity:
        """The same with the name of a database, which an admin key needs. Raises a 400 if it does not exist,
        and a 403 if another key belongs to another one."""
        found = self.key_of(key)
        if found.database_id is not None:
            identity = self.identify(key)
            identity.database.require_name(name)
            return identity
        database = self.database_named(name)
        if database is None:
            raise bad_request(f"There is no database '{name[:80]}'", "DATABASE_NEEDED")
        return Identity(found, database)

    def key_of(self, key: str) -> ApiKey:
        """Raises a 401 for a key that is unknown, revoked or expired."""
        id = self._now.key_ids.get(hash_key(key))
        if id is None or self._now.keys[id].revoked:
            raise unauthorized(": the API key does not exist, has expired or has been revoked")
        return self._now.keys[id]

    def still(self, key_id: str, database_id: int) -> Identity:
        """The identity as it is now. Raises a 401 if the key or the database is not valid any more."""
        key, database = self._now.keys.get(key_id), self._now.databases.get(database_id)
        if key is None or key.revoked or database is None:
            raise unauthorized()
        return Identity(key, database)

    def used_at(self, now: float) -> dict[str, int]:
        """The keys that were used since the last call, with the time in milliseconds."""
        used, self.used = self.used, set()
        return dict.fromkeys(used, int(now * 1000))

    async def used_lately(self, _: Any = None) -> set[str]:
        """The keys that were used since the last `used_at`, as a report of this process."""
        return self.used

    def database(self, id: int) -> Database | None:
        return self._now.databases.get(id)

    def databases(self) -> list[Database]:
        return list(self._now.databases.values())

    def database_named(self, name: str) -> Database | None:
        id = self._now.database_ids.get(name)
        return None if id is None else self._now.databases[id]

    def key(self, id: str) -> ApiKey | None:
        return self._now.keys.get(id)

    def is_revoked(self, database_id: int, jti: str, subject: str | None, issued: int) -> bool:
        """Whether a token was ended before its time. `issued`: milliseconds since the epoch."""
        return self._revocations.cover(database_id, jti, subject, issued)

    def revoked_until(self, database_id: int, subject: str) -> int:
        """The time, as `issued`, up to which a subject's tokens are revoked; 0 if they are not."""
        return self._revocations.at(database_id, "subject", subject)

    @property
    def keyring(self) -> Keyring:
        """Every secret that may have signed a token that is still valid."""
        return self._now.keyring

    @property
    def signing(self) -> tuple[str, bytes]:
        """`(kid, secret)` for new tokens."""
        return self._now.signing


def unauthorized(why: str = "") -> ApiError:
    """A 401 with the hosted service's sentence and `why`."""
    return ApiError(
        401,
        "UNAUTHORIZED",
        f"Missing or invalid Authorization header{why}",
        headers={"WWW-Authenticate": 'Bearer realm="paperdb"'},
    )


def _snapshot(directory: Directory) -> _Snapshot:
    databases = {id: Database(id, name, plan) for id, name, plan in directory.databases}
    now = time.time()
    keys = {}
    for row in directory.keys:
        expires = math.inf if row.expires is None else row.expires
        revoked = row.revoked or expires <= now
        keys[row.id] = ApiKey(
            row.id, row.database_id, row.kind, row.label, row.kind != "public", revoked, expires
        )
    return _Snapshot(
        directory.version,
        databases,
        {database.name: database.id for database in databases.values()},
        keys,
        {key.hash: key.id for key in directory.keys},
        tuple(
            (kid, secret, math.inf if retired is None else retired)
            for kid, secret, retired in directory.secrets
        ),
        next(((kid, secret) for kid, secret, retired in directory.secrets if retired is None), ("", b"")),
        _next_expiry(keys),
    )


def _next_expiry(keys: dict[str, ApiKey]) -> float:
    return min((key.expires for key in keys.values() if not key.revoked), default=math.inf)


def _differences(
    before: _Snapshot, after: _Snapshot, revocations: list[RevocationRow]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What changed, for the log: a sentence, and names and ids, never a key, a hash or a secret."""
    names = {id: database.name for id, database in (before.databases | after.databases).items()}
    for id, database in after.databases.items():
        old = before.databases.get(id)
        if old is None:
            yield "a database was created", {"database": database.name, "plan": database.plan}
            continue
        if database.plan != old.plan:
            plans = {"plan": database.plan, "before": old.plan}
            yield "a database has another plan", {"database": database.name, **plans}
        if database.name != old.name:
            yield "a database was renamed", {"database": database.name, "before": old.name}
    for id in before.databases.keys() - after.databases.keys():
        yield "a database was removed", {"database": names[id]}
    for key in after.keys.values():
        fields: dict[str, Any] = {"key": key.id, "kind": key.kind}
        if key.database_id is not None:
            fields["database"] = names[key.database_id]
        known = before.keys.get(key.id)
        if known is None:
            yield "a key was created", fields
        if key.revoked and not (known is not None and known.revoked):
            yield "a key was revoked" if key.expires > time.time() else "a key has expired", fields
    for lost in before.keys.keys() - after.keys.keys():
        yield "a key was removed", {"key": lost}
    if before.signing[0] != after.signing[0]:
        yield "new tokens are signed with another secret", {"kid": after.signing[0]}
    for row in revocations:
        what = "the tokens of a subject were revoked" if row.kind == "subject" else "a token was revoked"
        yield what, {row.kind: row.name, "database": names.get(row.database_id)}
