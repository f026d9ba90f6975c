"""What mypyc demands of the modules that it compiles (binary/compiled.py), seen in the sources.

`just test-compiled` runs all tests against compiled modules, and CI those marked `executable`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "paperdb_trio"


def compiled_modules() -> set[str]:
    """MODULES, without importing mypyc."""
    tree = ast.parse((ROOT / "binary" / "compiled.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES":
            names: tuple[str, ...] = eval(compile(ast.Expression(node.value), "compiled.py", "eval"))
            return {"paperdb_trio." + name.replace("/", ".") for name in names}
    raise AssertionError("there are no MODULES")


COMPILED = compiled_modules()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield module_of(path), ast.parse(path.read_text())


TREES = dict(trees())


def names_in(module: str) -> dict[str, str]:
    """What each name in a module refers to, as far as it is of this package: `module` or `module.name`."""
    found = {
        node.name: f"{module}.{node.name}" for node in TREES[module].body if isinstance(node, ast.ClassDef)
    }
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def bases(module: str) -> Iterator[tuple[str, str]]:
    """Each class of a module, with the full name of each of its bases."""
    names = names_in(module)
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                text = ast.unparse(base).partition("[")[0]
                first, _, rest = text.partition(".")
                yield node.name, ".".join(filter(None, (names.get(first, first), rest)))


def test_compiled_modules_exist() -> None:
    assert TREES.keys() >= COMPILED


def test_an_interpreted_class_inherits_from_no_compiled_one() -> None:
    """It cannot be made: "interpreted classes cannot inherit from compiled". Protocols and errors may."""
    good = {
        f"{module}.{name}"
        for module in COMPILED
        for name, base in bases(module)
        if base.endswith("Protocol") or base == "Exception"
    }
    wrong = {
        f"{module}.{name} inherits from {base}"
        for module in TREES.keys() - COMPILED
        for name, base in bases(module)
        if base.rpartition(".")[0] in COMPILED and base not in good
    }
    assert wrong == set()


def test_a_compiled_module_has_no_struct() -> None:
    """It would lose the annotations of its fields, without which msgspec cannot decode into it."""
    decoded = {
        f"{module}.{name}"
        for module in COMPILED
        for name, base in bases(module)
        if base.rpartition(".")[2] == "Struct"
    }
    assert decoded == set()
