"""Rules for every source file: its imports are declared, and pinned where we use internals; it raises nothing
within `except*`; it uses nothing private of another module; the files that it names exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import need

ROOT = Path(__file__).parent.parent
FOLDERS = ("paperdb_trio", "tests", "bench", "binary", "examples")
OURS = {*FOLDERS, "compiled", *sys.stdlib_module_names}  # binary/ is no package
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def parsed(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        yield from parsed_folder(folder)


@cache
def parsed_folder(folder: str) -> list[tuple[Path, ast.Module]]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [(path.relative_to(ROOT), ast.parse(path.read_text())) for path in paths]


def imported(tree: ast.Module) -> Iterator[str]:
    """The packages that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


def declared(*extras: str) -> dict[str, str]:
    """The declared dependencies: names and their bounds."""
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    found = (re.fullmatch(r"([\w-]+)([^;]*).*", line) for line in lines)
    return {match[1]: match[2] for match in found if match is not None}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("paperdb_trio", ("postgres", "s3")),
        ("tests", ("test",)),
        ("bench", ("postgres", "test")),
        ("binary", ("binary",)),
        ("examples", ()),
    ],
)
def test_imported_packages_are_declared(folder: str, extras: tuple[str, ...]) -> None:
    distributions = packages_distributions()
    # Type checkers bring typing_extensions. That it is not needed at run time, tests/web/test_wheel.py says.
    names = {name for _, tree in parsed(folder) for name in imported(tree)} - OURS - {"typing_extensions"}
    undeclared = {
        name
        for name in names
        if not {found.lower().replace("_", "-") for found in distributions.get(name, [name])}
        & {*declared(*extras)}
    }
    assert undeclared == set()


@pytest.mark.parametrize(
    "name",
    [
        "flask",
        "h11",
        "h2",
        "hypercorn",
        "priority",
        "quart",
        "quart-trio",
        "trio",
        "trio-websocket",
        "werkzeug",
        "wsproto",
    ],
)
def test_packages_whose_internals_we_use_are_pinned(name: str) -> None:
    assert re.fullmatch(r">=[\d.]+,<[\d.]+", declared()[name])


def test_nothing_is_raised_within_an_except_star() -> None:
    """Before Python 3.11.4 (Debian 12 has 3.11.2) such an exception is wrapped in a group again."""
    raising = [
        f"{path.relative_to(ROOT)}:{inner.lineno}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "except*" in (text := path.read_text())
        for block in ast.walk(ast.parse(text))
        if isinstance(block, ast.TryStar)
        for handler in block.handlers
        for inner in ast.walk(handler)
        if isinstance(inner, ast.Raise)
        or (
            isinstance(inner, ast.Call)
            and ast.unparse(inner.func).rpartition(".")[2] in ("exit", "fail", "skip")
        )
    ]
    assert raising == []


def defined(tree: ast.Module) -> Iterator[str]:
    """The names that a module itself gives: to functions, classes, variables, and attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield node.attr


def is_own(value: ast.expr) -> bool:
    return ast.unparse(value) in ("self", "cls", "super()")


def is_private(name: str) -> bool:
    """Those of named tuples are not."""
    return name.startswith("_") and not name.endswith("__") and name not in ("_asdict", "_replace")


def test_no_module_uses_what_is_private_to_another() -> None:
    found = set()
    for path, tree in parsed("paperdb_trio"):
        own = set(defined(tree))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Attribute) and not is_own(node.value):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names]
            found |= {f"{path}: {name}" for name in names if is_private(name) and name not in own}
    assert found == {
        "paperdb_trio/doors/hypercorn.py: _complete",  # Hypercorn's own
        "paperdb_trio/server/supervisor.py: _exit",  # of `os`
        "paperdb_trio/logs.py: _srcfile",  # as Python's documentation says
    }


def test_files_named_in_texts_exist() -> None:
    listed = subprocess.run(
        [need("git"), "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    missing = {}
    for path in listed.split():
        try:
            text = (ROOT / path).read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        for name in re.findall(rf"\b(?:{'|'.join(FOLDERS)})/[\w/]+\.(?:py|mjs|ts|js|html)\b", text):
            if not (ROOT / name).exists():
                missing[name] = path
    assert missing == {}
