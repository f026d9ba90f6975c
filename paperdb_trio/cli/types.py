"""`paperdb types`: the types of a server's documents, as source text.

A schema holds for later writes only, and a field that is not required may be null. So only required fields and
those of the server are always there.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import click

from paperdb_trio.cli.base import main, url_option
from paperdb_trio.errors import StartupError

SYSTEM: Final = ("_id", "createdAt", "updatedAt")
PYTHON: Final = {
    "string": "str",
    "number": "float",
    "boolean": "bool",
    "object": "dict[str, Any]",
    "array": "list[Any]",
    None: "Any",
}
TYPESCRIPT: Final = {
    "string": "string",
    "number": "number",
    "boolean": "boolean",
    "object": "{ [name: string]: unknown }",
    "array": "unknown[]",
    None: "unknown",
}
TAKEN: Final = frozenset({"Any", "Collections", "NotRequired", "TypedDict", "None", "True", "False"})


class Field(NamedTuple):
    name: str
    type: str | None
    required: bool


class Shape(NamedTuple):
    """A collection and its type's name."""

    collection: str
    name: str
    fields: list[Field]


@main.command()
@click.option("--language", type=click.Choice(("ts", "python")), required=True, help="TypeScript or Python.")
@url_option
@click.option("--key", envvar="PAPERDB_API_KEY", show_envvar=True, required=True, help="An API key.")
def types(language: str, url: str, key: str) -> None:
    """Print types of the documents of all collections that have a schema.

    Python: a TypedDict for each. TypeScript: an interface for each, and Collections, which has them by name.
    """
    made = shapes(_schemas(url, key))
    click.echo(python(made) if language == "python" else typescript(made), nl=False)


def _schemas(url: str, key: str) -> dict[str, Any]:
    # Imports that other commands do without.
    from paperdb_trio.client.errors import PaperDBError
    from paperdb_trio.client.http import Endpoint, SyncTransport
    from paperdb_trio.client.requests import RestRequest, RestResponse

    def read(response: RestResponse) -> dict[str, Any]:
        listed = json.loads(response.body)["collections"]
        return {entry["name"]: entry["schema"] for entry in listed if entry["schema"] is not None}

    try:
        transport = SyncTransport(Endpoint(url, key, None, 30.0, None))
    except ValueError as error:
        raise StartupError(str(error), 2) from None
    try:
        return transport.send(RestRequest("GET", "/collections", read))
    except PaperDBError as error:
        raise StartupError(f"The server refused: {error}" if error.status else str(error)) from None
    finally:
        transport.close()


def shapes(schemas: Mapping[str, Any]) -> list[Shape]:
    """The shapes of collections, from their schemas."""
    made: list[Shape] = []
    taken = set(TAKEN)
    for collection, schema in sorted(schemas.items()):
        words = "".join(word[0].upper() + word[1:] for word in re.split("[-_]+", collection) if word)
        name = wanted = words if words[:1].isalpha() else f"Collection{words}"
        number = 1
        while name in taken:
            number += 1
            name = f"{wanted}{number}"
        taken.add(name)
        fields = [Field(system, "string", required=True) for system in SYSTEM]
        fields += [
            Field(property, rules.get("type"), rules.get("required", False))
            for property, rules in schema["properties"].items()
            if "." not in property and property not in SYSTEM  # these two have an index at most
        ]
        made.append(Shape(collection, name, fields))
    return made


def python(made: Iterable[Shape]) -> str:
    blocks = [_python_class(shape) for shape in made]
    used = [name for name in ("Any", "NotRequired") if any(re.search(rf"\b{name}\b", b) for b in blocks)]
    head = f"from typing import {', '.join((*used, 'TypedDict'))}\n"
    return "\n\n".join((head, *blocks))


def _python_class(shape: Shape) -> str:
    types = {
        field.name: PYTHON[field.type]
        if field.required
        else f"NotRequired[{PYTHON[field.type]}{'' if field.type is None else ' | None'}]"
        for field in shape.fields
    }
    if all(map(_is_python_name, types)):
        lines = "".join(f"    {name}: {type}\n" for name, type in types.items())
        return f"class {shape.name}(TypedDict):\n{lines}"
    lines = "".join(f"        {name!r}: {type},\n" for name, type in types.items())
    return f"{shape.name} = TypedDict(\n    {shape.name!r},\n    {{\n{lines}    }},\n)\n"


def _is_python_name(name: str) -> bool:
    # A class would mangle a name like __x, and read a name like ﬁ as fi.
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and name[:2] != "__"


def typescript(made: Iterable[Shape]) -> str:
    made = list(made)
    blocks = [_interface(shape) for shape in made]
    named = "".join(f"  {_member(shape.collection)}: {shape.name};\n" for shape in made)
    return "\n".join((*blocks, f"export interface Collections {{\n{named}}}\n"))


def _interface(shape: Shape) -> str:
    lines = "".join(
        f"  {_member(field.name)}{'' if field.required else '?'}: {TYPESCRIPT[field.type]}"
        f"{'' if field.required or field.type is None else ' | null'};\n"
        for field in shape.fields
    )
    return f"export interface {shape.name} {{\n{lines}}}\n"


def _member(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_$][\w$]*", name, re.ASCII) else json.dumps(name)
