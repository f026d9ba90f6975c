"""Requests that are remembered by their `Idempotency-Key`: a retry gets the first response, and writes nothing.

Law: the law of `operations` holds here, too. A response is remembered in the very transaction of its writes. A
request that wrote nothing because the storage failed is not remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, TypeVar

import msgspec

from paperdb_trio.errors import ApiError
from paperdb_trio.store.operations import Operation, Written, frees
from paperdb_trio.store.rowkeys import SEQ_BITS
from paperdb_trio.store.transaction import Remembered, Transaction

REMEMBERED_SECONDS: Final = 86_400.0
"""The age, by the log's clock, at which a request is forgotten."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RequestKey:
    """`scope`: whose key it is. `digest`: of everything that the request says."""

    database_id: int
    scope: str
    key: str
    digest: bytes


class Kept(msgspec.Struct, frozen=True):
    """A response. `again`: it was remembered."""

    status: int
    headers: dict[str, str]
    body: bytes
    again: bool = False


@dataclass(frozen=True, slots=True)
class Recall:
    """Returns the response of a request that is remembered. Raises a 422 if the key was used for another, and a
    410 if the change that holds the response is gone."""

    request: RequestKey

    def apply(self, tx: Transaction) -> Kept | None:
        found = tx.recall(self.request.scope, self.request.key)
        if found is None or found.at < (tx.log_time - REMEMBERED_SECONDS) * 1000:
            return None
        _, digest, response, body, change = found
        if digest != self.request.digest:
            raise ApiError(
                422,
                "IDEMPOTENCY_KEY_REUSED",
                "This Idempotency-Key was used for another request. Use a new key for each request, and the "
                "same one only to repeat it unchanged",
            )
        status, headers = msgspec.json.decode(response)
        if body is None:
            body = None if change is None else tx.change_data(change)
            if body is None:
                raise ApiError(
                    410,
                    "RESPONSE_EXPIRED",
                    "This request was done before, but the change log does not hold its response any more: "
                    "read the document",
                )
        return Kept(status, headers, body, again=True)


@dataclass(frozen=True, slots=True)
class Once(Generic[Result]):
    """An operation that is applied only the first time. `respond` makes the response of its result, or of its
    refusal. Returns None while the operation returns a false result (see `until_indexed`)."""

    request: RequestKey
    operation: Operation[Result | None]
    respond: Callable[[Result | ApiError], Kept]

    @property
    def frees(self) -> bool:
        return frees(self.operation)

    def apply(self, tx: Transaction) -> Kept | None:
        kept = Recall(self.request).apply(tx)
        if kept is not None:
            return kept
        outcome: Result | ApiError | None
        try:
            outcome = self.operation.apply(tx)
        except ApiError as error:
            outcome = error
        if not outcome:
            return None
        kept = self.respond(outcome)
        # Usually the response is the document, which the log holds: it need not be stored once more.
        logged = isinstance(outcome, Written) and kept.body == outcome.data
        seq = outcome.seq if logged and isinstance(outcome, Written) else None
        Remember(self.request, kept, seq).apply(tx)
        return kept


@dataclass(frozen=True, slots=True)
class Remember:
    """Remember the response of a request. `seq`: that of the change whose document is the body."""

    request: RequestKey
    kept: Kept
    seq: int | None = None

    def apply(self, tx: Transaction) -> None:
        response = msgspec.json.encode([self.kept.status, self.kept.headers]).decode()
        tx.remember(
            self.request.scope,
            self.request.key,
            Remembered(
                int(tx.log_time * 1000),
                self.request.digest,
                response,
                self.kept.body if self.seq is None else None,
                None if self.seq is None else self.request.database_id << SEQ_BITS | self.seq,
            ),
        )


@dataclass(frozen=True, slots=True)
class ForgetRequests:
    """Forget some requests that are older than `REMEMBERED_SECONDS`. Returns whether there may be more."""

    frees: ClassVar = True

    limit: int = 100

    def apply(self, tx: Transaction) -> bool:
        before = (tx.log_time - REMEMBERED_SECONDS) * 1000
        return tx.forget_requests(before, self.limit) == self.limit
