"""The rooms of the package, and which may import which: arrows only point down.

Imports for types alone count, too, because a reader has to know those modules as well.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "paperdb_trio"

FLOORS = (
    ("__main__",),
    ("cli",),
    ("server",),
    ("doors", "import_socket"),  # listeners
    ("rest", "realtime", "demo"),  # handlers; live connections; a client inside the server
    ("services", "hooks", "backups"),  # the last two speak HTTP to others
    ("delivery",),  # from a commit to bytes: knows neither sockets nor Services
    ("match",),  # which queries a change concerns: no I/O
    ("exchanges",),  # the end of each request
    ("net", "request_counts"),  # bytes and framing; requests by route
    ("auth",),
    ("store", "limits"),  # opens no socket, speaks no protocol
    ("config", "json_input"),
    ("model", "files", "origins", "store_url"),
    ("loop", "errors", "logs"),
    ("measures",),  # figures as plain data
    ("client", "web"),  # the SDKs: they depend on nothing above
)
"""From the top down. A room imports only rooms below it."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__").removesuffix("__init__")] = path
    return found


MODULES = modules()


def imports(module: str) -> set[str]:
    """The modules of the package that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:  # within the SDK's folder
            assert node.level == 1
            found |= {f"{room(module)}.{node.module or alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "paperdb_trio":
            base = node.module.removeprefix("paperdb_trio").removeprefix(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".removeprefix(".")
                found.add(full if full in MODULES else base)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names if alias.name.split(".")[0] == "paperdb_trio")
            found |= {name.removeprefix("paperdb_trio").removeprefix(".") for name in names}
    return found - {module, ""}  # the package itself only re-exports names


def room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", sorted(module for module in MODULES if module))
def test_module_imports_only_from_rooms_below_its_own(module: str) -> None:
    for other in imports(module):
        if room(other) != room(module):
            assert FLOOR[room(other)] > FLOOR[room(module)], f"{module} imports {other}, which is not below it"


def test_imports_have_no_circle() -> None:
    graph = {module: imports(module) for module in MODULES if module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle: {' -> '.join(error.args[1])}") from None


def test_delivery_and_net_know_nothing_of_services() -> None:
    for module in MODULES:
        if room(module) in ("delivery", "match", "net", "store", "auth", "loop"):
            assert not any(room(other) in ("services", "rest", "realtime") for other in imports(module)), module


SEAM = {
    f"store.{name}"
    for name in (
        *("protocol", "operations", "housekeeping", "requests", "revocations", "within"),  # reads and writes
        *("administration", "records", "webhooks", "webhook_changes"),  # those of administrators
        *("query", "view", "projection", "document_schema", "indexes", "keys", "refusals"),  # plain values
        *("predicate", "cache", "slow"),
    )
}
"""All of the store that the rooms above it know. An engine's modules are known to the command line, to imports
and to the start of the server."""


def test_handlers_and_delivery_know_only_the_seam_of_the_store() -> None:
    for module in MODULES:
        if room(module) in (
            "rest",
            "realtime",
            "delivery",
            "match",
            "auth",
            "net",
            "demo",
            "services",
            "doors",
            "hooks",
        ):
            known = {other for other in imports(module) if room(other) == "store"}
            assert known <= SEAM, f"{module} imports {sorted(known - SEAM)}"
