"""A collection's documents: the methods that users call, for Trio and blocking.

Law: no logic; each method makes a request and sends it. All of them raise `PaperDBError`: `NETWORK` (status 0)
when no response came, else the server's refusal. A write without a response, or one that was cancelled, may
have happened; the same call with the same `idempotency_key` finds out, and writes only if it has not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, overload

from . import requests
from .http import AsyncTransport, SyncTransport
from .links import Links
from .live import Live
from .schema import SchemaBook
from .shape import fields_of, show_as
from .types import BulkResult, D, Document, Documents, Version


class Collection(Generic[D]):
    """`db.messages`, or `db.collection("messages")`. It need not exist: its first write creates it.

    `db.collection("messages", Message)`, where `Message` is a TypedDict or a msgspec Struct, gives documents of
    that type, unless there is a `select`. One that does not fit is an error `WRONG_TYPE`.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        links: Links,
        schemas: SchemaBook,
        name: str,
        shape: type[D] | None = None,
    ) -> None:
        self._transport = transport
        self._links = links
        self._schemas = schemas
        self.name = requests.check_collection(name)
        self._shape = shape
        self._show: Callable[[Document], D] = show_as(name, shape)

    def __repr__(self) -> str:
        return f"<collection {self.name!r}>"

    async def insert(self, document: D | Mapping[str, Any], *, idempotency_key: str | None = None) -> D:
        """Store a new document; returns it as stored.

        `"_id"` (or `"key"`) in it sets its id; otherwise the server does. `"unique": ["email"]` refuses it when
        another document has the same email. 409 `CONFLICT` for an id or a unique value that is taken.

        `idempotency_key`: instead of the one that the SDK makes for each write. The server keeps it for a
        day: the same call with the same key writes nothing, and returns what the first one returned.
        """
        prepared = self._schemas.prepare(self.name, fields_of(document))
        return self._show(await self._transport.send(requests.insert(self.name, prepared, idempotency_key)))

    async def insert_bulk(
        self,
        documents: Iterable[D | Mapping[str, Any]],
        *,
        atomic: bool = False,
        idempotency_key: str | None = None,
    ) -> BulkResult:
        """Store many (at most 1,000 by default). Each succeeds or fails alone; the result says which failed.

        `atomic`: all or none. The first failure is raised, with its `index` in `extra`.
        """
        prepared = [self._schemas.prepare(self.name, fields_of(document)) for document in documents]
        return await self._transport.send(requests.insert_bulk(self.name, prepared, atomic, idempotency_key))

    @overload
    async def find(
        self,
        filter: Mapping[str, Any] | None = None,
        *,
        sort: str | Sequence[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
        select: None = None,
        count: bool = False,
        after: str | None = None,
    ) -> Documents[D]: ...

    @overload
    async def find(
        self,
        filter: Mapping[str, Any] | None = None,
        *,
        sort: str | Sequence[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
        select: str | Sequence[str],
        count: bool = False,
        after: str | None = None,
    ) -> Documents[Document]: ...

    async def find(
        self,
        filter: Mapping[str, Any] | None = None,
        *,
        sort: str | Sequence[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
        select: str | Sequence[str] | None = None,
        count: bool = False,
        after: str | None = None,
    ) -> Documents[Any]:
        """Documents that match `filter`, such as `{"age": {"gte": 18}}`.

        `sort`: field names, with `-` in front for descending. `limit`: 1 to 1,000; the server's default is 100.
        `select`: only these fields. `count`: also count all that match, into `.total`. `after`: the
        `.next` of the page before, found with the same `sort`. A subscription continues
        from the list's `.seq`: `subscribe(…, since=found.seq)`.
        """
        found: Documents[Any] = await self._transport.send(
            requests.find(self.name, filter, sort, limit, offset, select, count, after)
        )
        if self._shape is not None and select is None:
            found[:] = map(self._show, found)
        return found

    @overload
    async def get(self, id: str, *, select: None = None) -> D: ...

    @overload
    async def get(self, id: str, *, select: str | Sequence[str]) -> Document: ...

    async def get(self, id: str, *, select: str | Sequence[str] | None = None) -> Any:
        """One document. 404 `NOT_FOUND`."""
        found = await self._transport.send(requests.get(self.name, id, select))
        return self._show(found) if select is None else found

    async def history(self, id: str, *, limit: int | None = None) -> list[Version]:
        """The versions of a document that the server's log still holds, newest first. 404 `NOT_FOUND`."""
        return await self._transport.send(requests.history(self.name, id, limit))

    async def update(
        self,
        id: str,
        fields: Mapping[str, Any],
        *,
        if_match: int | None = None,
        where: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> D:
        """Merge `fields`, not deeply, and return the whole document. `{"n": {"increment": 1}}` is atomic; so
        are `decrement`, `push`, `pull` and `unset`.

        404 `NOT_FOUND`. With `if_match`, 412 `PRECONDITION_FAILED` unless the document has that `seq`.
        `where` is a filter: 412 `CONDITION_FAILED` unless the document satisfies it. `idempotency_key` as for
        `insert`.
        """
        return self._show(
            await self._transport.send(
                requests.write("PATCH", self.name, id, fields, if_match, where, idempotency_key)
            )
        )

    async def replace(
        self,
        id: str,
        document: D | Mapping[str, Any],
        *,
        if_match: int | None = None,
        where: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> D:
        """Replace the document with this id, or insert it. The conditions as for `update`."""
        fields = fields_of(document)
        return self._show(
            await self._transport.send(
                requests.write("PUT", self.name, id, fields, if_match, where, idempotency_key)
            )
        )

    async def delete(
        self,
        id: str,
        *,
        if_match: int | None = None,
        where: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """404 `NOT_FOUND`; the conditions as for `update`."""
        await self._transport.send(requests.delete(self.name, id, if_match, where, idempotency_key))

    async def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """How many documents match `filter`, or how many there are."""
        return await self._transport.send(requests.count(self.name, filter))

    @overload
    def live(
        self,
        filter: Mapping[str, Any] | None = None,
        *,
        sort: str | Sequence[str] | None = None,
        limit: int | None = None,
        select: None = None,
    ) -> Live[D]: ...

    @overload
    def live(
        self,
        filter: Mapping[str, Any] | None = None,
        *,
        sort: str | Sequence[str] | None = None,
        limit: int | None = None,
        select: str | Sequence[str],
    ) -> Live[Document]: ...

    def live(
        self,
        filter: Mapping[str, Any] | None = None,
        *,
        sort: str | Sequence[str] | None = None,
        limit: int | None = None,
        select: str | Sequence[str] | None = None,
    ) -> Live[Any]:
        """A list that stays as `find` would have it: `async with db.messages.live({"room": "r1"}) as live:
        async for documents in live: …`

        Entering waits for the first list. `limit`: the first so many; `await live.more()` shows more. Without
        it, all. With `select`, the fields of `sort` come, too. Outages, gaps and new rules are dealt with:
        `live.status` says whether the list is up to date.
        """
        show: Callable[[Document], Any] = self._show if select is None else lambda document: document
        return Live(self._transport, self._links, self.name, filter, sort, limit, select, show)


class SyncCollection:
    """The blocking twin of `Collection`; the same docstrings apply."""

    def __init__(self, transport: SyncTransport, schemas: SchemaBook, name: str) -> None:
        self._transport = transport
        self._schemas = schemas
        self.name = requests.check_collection(name)

    def __repr__(self) -> str:
        return f"<collection {self.name!r}>"

    def insert(self, document: Mapping[str, Any], *, idempotency_key: str | None = None) -> Document:
        prepared = self._schemas.prepare(self.name, document)
        return self._transport.send(requests.insert(self.name, prepared, idempotency_key))

    def insert_bulk(
        self,
        documents: Iterable[Mapping[str, Any]],
        *,
        atomic: bool = False,
        idempotency_key: str | None = None,
    ) -> BulkResult:
        prepared = [self._schemas.prepare(self.name, document) for document in documents]
        return self._transport.send(requests.insert_bulk(self.name, prepared, atomic, idempotency_key))

    def find(
        self,
        filter: Mapping[str, Any] | None = None,
        *,
        sort: str | Sequence[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
        select: str | Sequence[str] | None = None,
        count: bool = False,
        after: str | None = None,
    ) -> Documents:
        return self._transport.send(requests.find(self.name, filter, sort, limit, offset, select, count, after))

    def get(self, id: str, *, select: str | Sequence[str] | None = None) -> Document:
        return self._transport.send(requests.get(self.name, id, select))

    def history(self, id: str, *, limit: int | None = None) -> list[Version]:
        return self._transport.send(requests.history(self.name, id, limit))

    def update(
        self,
        id: str,
        fields: Mapping[str, Any],
        *,
        if_match: int | None = None,
        where: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Document:
        return self._transport.send(
            requests.write("PATCH", self.name, id, fields, if_match, where, idempotency_key)
        )

    def replace(
        self,
        id: str,
        document: Mapping[str, Any],
        *,
        if_match: int | None = None,
        where: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Document:
        return self._transport.send(
            requests.write("PUT", self.name, id, document, if_match, where, idempotency_key)
        )

    def delete(
        self,
        id: str,
        *,
        if_match: int | None = None,
        where: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        self._transport.send(requests.delete(self.name, id, if_match, where, idempotency_key))

    def count(self, filter: Mapping[str, Any] | None = None) -> int:
        return self._transport.send(requests.count(self.name, filter))
