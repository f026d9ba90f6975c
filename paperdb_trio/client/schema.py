"""What the schema given to a client does to its writes: defaults, unique fields, registration.

Law: no I/O. A user's document is copied, never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import requests
from .requests import RestRequest
from .types import Operation, Schema


class SchemaBook:
    """The schemas of a client's collections, and which of them the server already has.

    Raises ValueError for a schema that is not `{collection: {"properties": {field: {…}}}}`.
    """

    def __init__(self, schema: Schema | None, *, register: bool) -> None:
        self._properties: dict[str, Mapping[str, Any]] = {}
        self._given: Schema = schema or {}
        for collection, definition in (schema or {}).items():
            requests.check_collection(collection)
            properties = definition.get("properties") if isinstance(definition, Mapping) else None
            if not isinstance(properties, Mapping) or not all(
                isinstance(rules, Mapping) for rules in properties.values()
            ):
                raise ValueError(
                    f"The schema of '{collection}' is wrong; expected something like "
                    '{"properties": {"email": {"type": "string", "required": True}}}'
                )
            self._properties[collection] = properties
        self._unregistered = set(self._properties) if register else set()

    def prepare(self, collection: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of `document` with the missing defaults, and with `unique` for the server to check."""
        prepared = dict(document)
        unique = []
        for name, rules in self._properties.get(collection, {}).items():
            if "default" in rules and name not in prepared:
                prepared[name] = rules["default"]
            if rules.get("unique"):
                unique.append(name)
        if unique and "unique" not in prepared:
            prepared["unique"] = unique
        return prepared

    def prepare_batch(self, operations: Iterable[Operation]) -> list[Operation]:
        """Copies of the operations, with the documents of inserts prepared."""
        return [
            {**operation, "document": self.prepare(operation["collection"], operation["document"])}
            if operation["op"] == "insert"
            else operation
            for operation in operations
        ]

    def registrations(self, collections: Iterable[str]) -> list[tuple[str, RestRequest[None]]]:
        """What must be sent before the first write to each of these, if anything."""
        names = sorted(self._unregistered.intersection(collections))
        return [(name, requests.put_schema(name, self._given[name])) for name in names]

    def registered(self, collection: str) -> None:
        self._unregistered.discard(collection)
