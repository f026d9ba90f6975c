"""What OpenAPI cannot tell schemathesis. `tests/rest/test_openapi.py` makes it load this module.

Rules: each hook is as narrow as its reason. Another test of this folder tries what a hook leaves out.
"""

from __future__ import annotations

import json
from typing import Any

import schemathesis
from hypothesis import strategies as st

from paperdb_trio.errors import ApiError
from paperdb_trio.model import check_id

# --- formats: texts with a grammar that no pattern can hold --------------------------------------

names = st.text("abcdefgXYZ_0123456789 é§😀'", min_size=1, max_size=8).filter(str.strip).map(str.strip)
paths = st.lists(names, min_size=1, max_size=3).map(".".join)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text("abc é😀'\"%", max_size=8)
conditions = scalars | st.fixed_dictionaries({"gte": st.integers(0, 99)}) | st.just({"exists": True})
filters = st.recursive(
    st.dictionaries(paths, conditions, max_size=3),
    lambda inner: (
        st.fixed_dictionaries({"or": st.lists(inner, max_size=3)}) | st.fixed_dictionaries({"not": inner})
    ),
    max_leaves=6,
)
fields = st.lists(paths, max_size=8).map(",".join)


def is_id(text: str) -> bool:
    try:
        return bool(check_id(text))
    except ApiError:
        return False


schemathesis.openapi.format("filter", filters.map(json.dumps))
schemathesis.openapi.format("sort", st.lists(paths.map("-".__add__) | paths, max_size=8).map(",".join))
schemathesis.openapi.format("fields", fields)
schemathesis.openapi.format("indexField", paths)
schemathesis.openapi.format("field", paths)
schemathesis.openapi.format("webhookUrl", st.sampled_from(["http://127.0.0.1:9/hook", "https://[::1]:9"]))
# Which characters are printable depends on the version of Unicode: this one is Python's.
schemathesis.openapi.format("printable", st.text(min_size=1, max_size=128).filter(is_id))


# --- requests that depend on more than one part of them ------------------------------------------


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Each status must be one of those that the route names: a default would allow any."""
    for item in raw_schema["paths"].values():
        for operation in item.values():
            del operation["responses"]["default"]


LISTS = ("list_databases", "list_keys", "list_audit", "list_connections")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    operation = case.operation.definition.raw.get("operationId")
    if operation == "drop" and case.meta.generation.mode.is_positive:
        # It must be the collection's name, which is in another place of the request.
        case.query["confirm"] = case.path_parameters["collection"]
    if operation == "delete_database" and case.meta.generation.mode.is_positive:
        case.query["confirm"] = case.path_parameters["database"]
    if operation == "explain_connection" and case.meta.generation.mode.is_positive:
        # Either this, or the other two together.
        case.query = {"seq": (case.query or {}).get("seq", 1)}
    if operation in LISTS and case.query and case.meta.generation.mode.is_positive:
        case.query.pop("after", None)  # it comes from a response
        case.query.pop("database", None)
    if operation in ("find", "query") and case.meta.generation.mode.is_positive:
        # What it takes comes from a response, and only with the same `sort`.
        for given in (case.query, case.body):
            if isinstance(given, dict):
                given.pop("after", None)
        # A filter as an object has the grammar of a filter as text.
        if isinstance(case.body, dict):
            # Its texts have no format in the description: what violates one may still be valid.
            fields = {"filter": {"a": {"gte": 1}}, "sort": "-a,b.c", "select": "a,b.c"}
            case.body |= {name: fields[name] for name in fields.keys() & case.body.keys()}
    if operation == "add_webhook" and case.meta.generation.mode.is_positive and isinstance(case.body, dict):
        # A filter needs a collection, and has its own grammar.
        case.body.pop("filter", None)
    if operation == "batch" and case.meta.generation.mode.is_positive and isinstance(case.body, dict):
        for item in case.body["operations"]:
            if "where" in item:
                item["where"] = {"a": {"gte": 1}}
    if operation == "mint_token" and case.meta.generation.mode.is_positive:
        collections = case.body["collections"]
        for rule in collections.values() if isinstance(collections, dict) else ():
            if "filter" in rule:
                rule["filter"] = {"a": {"gte": 1}}
    if operation == "changes" and case.query:
        # It is only for streams, and OpenAPI cannot declare the Accept header that asks for one.
        case.query.pop("lastEventId", None)
    if operation == "put_schema" and case.meta.generation.mode.is_positive:
        # It decides what later documents must look like: no other operation gets such a collection.
        case.path_parameters["collection"] = f"with-schema-{case.path_parameters['collection']}"[:64]
