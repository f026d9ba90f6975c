"""Documents out and in as lines of JSON: `paperdb export` and `paperdb import`.

Law: a line is `{"database", "collection", "document"}` or `{"database", "collection", "schema"}`. A
collection's schema comes after its documents, because documents older than the schema need not satisfy it.
Imported lines are written by the one writer, like all other writes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from paperdb_trio.errors import ApiError, StartupError, bad_request
from paperdb_trio.json_input import decode, parse_json, unwrap
from paperdb_trio.model import (
    Document,
    check_collection,
    check_document,
    check_id,
    document_bytes,
    encode,
    new_id,
    reverse_patch,
)
from paperdb_trio.store.document_schema import MAX_BYTES as MAX_SCHEMA_BYTES
from paperdb_trio.store.document_schema import DocumentSchema, parse_schema
from paperdb_trio.store.operations import SetSchema, satisfy_schema
from paperdb_trio.store.rowkeys import SEQ_BITS
from paperdb_trio.store.transaction import Transaction

BATCH_LINES: Final = 250
BATCH_BYTES: Final = 256 * 1024
"""Bytes of lines that one operation writes. Other writers wait about 10 ms for it."""
MAX_REFUSALS: Final = 20
"""Refused lines that are reported with a reason; the others are only counted."""


def export(
    found: list[tuple[str, str | None, int | None, str | None]],
    documents: Callable[[int], Iterable[bytes]],
    databases: tuple[str, ...],
    collections: tuple[str, ...],
) -> Iterator[bytes]:
    """The lines of all documents and schemas, without line ends.

    `found`: all collections, as `(database, name, id, schema)`; a database without any has one row of None.
    `documents(id)`: those of a collection. `databases` and `collections`, if not empty, narrow the export to
    these names. Raises `StartupError`, before the first line, for a name that does not exist.
    """
    rows = [row for row in found if not databases or row[0] in databases]
    for kind, wanted, there in (
        ("database", databases, {row[0] for row in rows}),
        ("collection", collections, {row[1] for row in rows}),
    ):
        for name in wanted:
            if name not in there:
                raise StartupError(f"There is no {kind} '{name}'")
    for database, collection, id, schema in rows:
        if collection is None or id is None or (collections and collection not in collections):
            continue
        head = b'{"database":"%b","collection":"%b",' % (database.encode(), collection.encode())
        for data in documents(id):
            yield b'%b"document":%b}' % (head, data)
        if schema is not None:
            yield b'%b"schema":%b}' % (head, schema.encode())


class Imported(NamedTuple):
    """A document, with its system fields apart. A time that is None means now."""

    id: str
    fields: Document
    created: str | None
    updated: str | None


class Line(NamedTuple):
    """A parsed line, checked as far as possible without the database."""

    number: int
    database: str
    collection: str
    content: Imported | DocumentSchema


class Tally(msgspec.Struct):
    """The result of an import. `refusals`: the first refused lines, each with its number and the reason."""

    inserted: int = 0
    replaced: int = 0
    unchanged: int = 0
    schemas: int = 0
    refused: int = 0
    refusals: list[str] = []

    def refuse(self, number: int, error: ApiError) -> None:
        self.refused += 1
        if len(self.refusals) < MAX_REFUSALS:
            self.refusals.append(f"line {number}: {error.message}")

    def add(self, other: Tally) -> None:
        self.inserted += other.inserted
        self.replaced += other.replaced
        self.unchanged += other.unchanged
        self.schemas += other.schemas
        self.refused += other.refused
        self.refusals = (self.refusals + other.refusals)[:MAX_REFUSALS]


@dataclass(slots=True)
class ImportLines:
    """Write lines, each of which succeeds or fails alone. Returns a tally. Returns None, having written
    nothing, while an index is being built: one of a schema, which then is the only line (see `SetSchema`), or
    one that a unique check needs.

    A document that differs from the existing one is refused, or replaces it with `replace`.
    """

    lines: list[Line]
    replace: bool
    max_bytes: int
    begun: bool = False

    def apply(self, tx: Transaction) -> Tally | None:
        tally = Tally()
        ids = tx.databases()
        for database, collection in sorted({(line.database, line.collection) for line in self.lines}):
            collection_id = tx.collection_id(ids[database], collection) if database in ids else None
            if collection_id is not None:
                if not tx.is_ready(collection_id, set()):
                    return None
                tx.expect(
                    collection_id,
                    (
                        (line.content.id, encode(line.content.fields))
                        for line in self.lines
                        if isinstance(line.content, Imported)
                        and (line.database, line.collection) == (database, collection)
                    ),
                )
        for line in self.lines:
            try:
                if line.database not in ids:
                    raise bad_request(f"There is no database '{line.database}'")
                if isinstance(line.content, DocumentSchema):
                    schema = SetSchema(ids[line.database], line.collection, line.content, self.begun)
                    self.begun = True
                    if not schema.apply(tx):
                        return None
                    tally.schemas += 1
                else:
                    self._write(tx, ids[line.database], line.collection, line.content, tally)
            except ApiError as error:
                tally.refuse(line.number, error)
        return tally

    def _write(
        self, tx: Transaction, database_id: int, collection: str, document: Imported, tally: Tally
    ) -> None:
        id, fields, created, updated = document
        collection_id = tx.collection_id(database_id, collection)
        found = None if collection_id is None else tx.document(collection_id, id)

        def is_there() -> bool:
            """Whether the same document exists. A missing time matches any time."""
            if found is None:
                return False
            old = found[2]
            times = {} if created and updated else decode(old)
            made = created or times["createdAt"], updated or times["updatedAt"]
            return document_bytes(id, encode(fields), *made, max(self.max_bytes, len(old))) == old

        if is_there():  # then today's limits, schema and rules for ids do not matter
            tally.unchanged += 1
            return
        check_id(id)
        satisfy_schema(tx, database_id, collection, fields)
        data = document_bytes(id, encode(fields), created or tx.stamp, updated or tx.stamp, self.max_bytes)
        if found is None:
            tx.insert(database_id, collection, id, data, created)
            tally.inserted += 1
        elif is_there():  # with the schema's defaults
            tally.unchanged += 1
        elif self.replace:
            was = decode(found[2])
            tx.update(database_id, collection, found[0], id, found[2], data, reverse_patch(was, decode(data)))
            if (created or tx.stamp) != was["createdAt"]:
                tx.disorder(found[0] >> SEQ_BITS)
            tally.replaced += 1
        else:
            raise ApiError(409, "CONFLICT", f"Another document with the id '{id}' exists in '{collection}'")


class Importer:
    """Bytes in, operations out. The caller submits each operation, and adds its result to `tally`."""

    def __init__(self, *, database: str | None, replace: bool, max_bytes: int) -> None:
        self._database = database
        self._replace = replace
        self._max_bytes = max_bytes
        # Every character may be written as \uXXXX.
        self._max_line = 6 * max(max_bytes, MAX_SCHEMA_BYTES) + 4096
        self._buffer = b""
        self._lines: list[Line] = []
        self._bytes = 0
        self._number = 0
        self.tally = Tally()

    def feed(self, data: bytes) -> Iterator[ImportLines]:
        """Take a piece of the input. Raises a 413 for a line that is too long for any document or schema."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for text in lines:
            yield from self._take(text)
        if len(self._buffer) > self._max_line:
            raise ApiError(413, "LINE_TOO_LONG", f"Line {self._number + 1} is over {self._max_line:,} bytes")

    def end(self) -> Iterator[ImportLines]:
        yield from self._take(self._buffer)
        if self._lines:
            yield self._batch()

    def _take(self, text: bytes) -> Iterator[ImportLines]:
        self._number += 1
        if self._number == 1:
            text = text.removeprefix(codecs.BOM_UTF8)
        if not text.strip():
            return
        try:
            line = parse_line(self._number, text, self._database)
        except ApiError as error:
            self.tally.refuse(self._number, error)
            return
        alone = isinstance(line.content, DocumentSchema)
        if alone and self._lines:
            yield self._batch()
        self._lines.append(line)
        self._bytes += len(text)
        if alone or len(self._lines) >= BATCH_LINES or self._bytes >= BATCH_BYTES:
            yield self._batch()

    def _batch(self) -> ImportLines:
        lines, self._lines, self._bytes = self._lines, [], 0
        return ImportLines(lines, self._replace, self._max_bytes)


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    database: Any = "default"
    collection: Any = None
    document: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    schema: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_envelope: Final = msgspec.json.Decoder(_Envelope)


def parse_line(number: int, text: bytes, database: str | None = None) -> Line:
    """Parse a line. `database` overrides the one in the line. Raises 400s."""
    try:
        line = unwrap(text, _envelope)
    except msgspec.ValidationError as error:
        found = str(error)[:120].replace("`", "'")
        raise bad_request(f'Expected {{"database", "collection", "document" or "schema"}}: {found}') from None
    name = database or line.database
    if not isinstance(name, str) or not isinstance(line.collection, str):
        raise bad_request("'database' and 'collection' must be strings")
    collection = check_collection(line.collection)
    if isinstance(line.document, msgspec.Raw) == isinstance(line.schema, msgspec.Raw):
        raise bad_request("Expected either 'document' or 'schema'")
    if isinstance(line.schema, msgspec.Raw):
        return Line(number, name, collection, parse_schema(parse_json(bytes(line.schema))))
    assert isinstance(line.document, msgspec.Raw)
    fields = check_document(parse_json(bytes(line.document)))
    id = fields.pop("_id", None)
    if id is None:
        id = new_id()
    elif not isinstance(id, str):
        check_id(id)
    document = Imported(id, fields, _moment(fields, "createdAt"), _moment(fields, "updatedAt"))
    return Line(number, name, collection, document)


_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def _moment(fields: Document, name: str) -> str | None:
    text = fields.pop(name, None)
    if text is None:
        return None
    try:
        if isinstance(text, str) and _MOMENT.fullmatch(text):
            datetime.fromisoformat(text)
            return text
    except ValueError:
        pass
    raise bad_request(f"'{name}' must be a time like 2026-01-31T12:00:00.000Z, or be left out")


# --- between `paperdb import` and a running server: see `import_socket` ------------------------------


class ImportRequest(msgspec.Struct):
    """The first line that the command sends. The lines to import follow it, up to the end of the stream."""

    database: str | None
    replace: bool


class ImportAnswer(msgspec.Struct):
    """The response. `tally`: None if nobody knows. `error`: the reason why the import stopped before the last
    line, if it did."""

    tally: Tally | None
    error: str | None
