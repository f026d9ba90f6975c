"""Writes within a view: a document must be in it before and after, and only its visible fields are written.

Law: the law of `operations` holds here, too. A document outside the view is treated as missing. No error says
more of what is not visible than that an id, or a value that must be unique, is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from paperdb_trio.errors import ApiError, bad_request, not_found
from paperdb_trio.json_input import decode
from paperdb_trio.model import SYSTEM_FIELDS
from paperdb_trio.store.operations import Delete, Insert, Patch, Replace, Write, Written, frees
from paperdb_trio.store.transaction import Transaction, outside_rule
from paperdb_trio.store.view import View


@dataclass(frozen=True, slots=True)
class Within:
    """A write within a view. It returns what the view shows of the document."""

    operation: Insert | Patch | Replace | Delete
    view: View

    @property
    def frees(self) -> bool:
        return frees(self.operation)

    @property
    def database_id(self) -> int:
        return self.operation.database_id

    @property
    def collection(self) -> str:
        return self.operation.collection

    def apply(self, tx: Transaction) -> Written:
        operation = self.operation
        tx.within = self.view.question
        try:
            if not isinstance(operation, Insert):
                operation = self._of_visible(tx, operation)
            written = operation.apply(tx)
        except ApiError as error:
            raise self._told(error) from None
        finally:
            tx.within = None
        return msgspec.structs.replace(written, shown=self.view.project(written.data))

    def _of_visible(self, tx: Transaction, operation: Patch | Replace | Delete) -> Patch | Replace | Delete:
        """The operation, without its condition, which holds. Raises a 404, 412, or 403 `RULE`."""
        collection_id = tx.collection_id(self.database_id, self.collection)
        found = None if collection_id is None else tx.document(collection_id, operation.id)
        question = self.view.question
        visible = found is not None and (question is None or tx.satisfies(found[2], question))
        if not visible and not isinstance(operation, Replace):
            raise not_found()
        if operation.condition is not None:
            seen = None
            if found is not None and visible:
                seen = (found[0], self.view.tag(self.view.project(found[2]), found[1]), found[2])
            operation.condition.check(tx, seen)
        if found is not None and not visible:
            raise outside_rule()
        operation = replace(operation, condition=None)
        if isinstance(operation, Replace) and found is not None and self.view.select is not None:
            kept = {
                name: value
                for name, value in decode(found[2]).items()
                if name not in SYSTEM_FIELDS and not self.view.writes(name)
            }
            operation = replace(operation, fields={**kept, **operation.fields})
        return operation

    def _told(self, error: ApiError) -> ApiError:
        """The error, as far as it may be told."""
        if error.code == "CONFLICT":
            return ApiError(409, "CONFLICT", "The id, or a value that must be unique, is taken")
        if self.view.select is not None and error.code == "VALIDATION_FAILED":
            return bad_request("The document would not satisfy the collection's schema", "VALIDATION_FAILED")
        if self.view.select is not None and error.code == "DOCUMENT_TOO_LARGE":
            return ApiError(413, "DOCUMENT_TOO_LARGE", "The document would be too large")
        return error


def within(view: View | None, operation: Insert | Patch | Replace | Delete) -> Write:
    """The operation within a view. Raises a 403 `RULE` for fields that may not be written."""
    if view is None:
        return operation
    names: Iterable[str] = ()
    if isinstance(operation, Insert):
        # It looks at all documents. A schema's unique fields are checked in any case.
        if operation.draft.unique:
            raise ApiError(403, "RULE", "'unique' in a document is not for tokens with a rule; use a schema")
        if view.select is not None:
            names = decode(operation.draft.fields)
    elif not isinstance(operation, Delete):
        names = operation.fields
    for name in names:
        if not view.writes(name):
            raise ApiError(
                403, "RULE", f"The token's rule does not select the field '{name[:80]}': it cannot be written"
            )
    return Within(operation, view)
