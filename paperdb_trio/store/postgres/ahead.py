"""What operations will read, so that it can be read in one round trip.

Law: no I/O. An operation that is missing here is done all the same, with a trip for each thing that it reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paperdb_trio.store.operations import Batch, Delete, Draft, Insert, InsertBulk, Patch, Replace, SetSchema
from paperdb_trio.store.postgres.transaction import Needs
from paperdb_trio.store.requests import Once, Recall, Remember
from paperdb_trio.store.within import Within


def database_of(operation: Any) -> int | None:
    """The one database that an operation writes to."""
    if isinstance(operation, Once | Recall | Remember):
        return operation.request.database_id
    if isinstance(operation, Batch):
        return operation.operations[0].database_id
    found: int | None = getattr(operation, "database_id", None)
    return found


def is_blind(operation: Any) -> bool:
    """Whether it only inserts documents: then what it needs to know can be guessed."""
    if isinstance(operation, Insert):
        return not operation.draft.unique
    if isinstance(operation, InsertBulk):
        return operation.within is None and all(
            not draft.unique for draft in operation.drafts if isinstance(draft, Draft)
        )
    return False


def needs(operations: Iterable[Any]) -> Needs:
    found = Needs([], [], [])
    for operation in operations:
        _note(operation, found)
    return found


def _note(operation: Any, found: Needs) -> None:
    match operation:
        case Once() | Within():
            if isinstance(operation, Once):
                found.requests.append((operation.request.scope, operation.request.key))
            _note(operation.operation, found)
        case Recall():
            found.requests.append((operation.request.scope, operation.request.key))
        case Batch():
            for each in operation.operations:
                _note(each, found)
        case Insert():
            found.documents.append((operation.collection, operation.draft.id))
        case InsertBulk():
            ids = [draft.id for draft in operation.drafts if isinstance(draft, Draft)]
            found.collections.append(operation.collection)
            found.documents.extend((operation.collection, id) for id in ids)
        case Patch() | Replace() | Delete():
            found.documents.append((operation.collection, operation.id))
        case SetSchema():
            found.collections.append(operation.collection)
        case _:
            name = getattr(operation, "collection", None)
            if name is not None:
                found.collections.append(name)
