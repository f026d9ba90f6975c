"""The types, by the TypeScript compiler with --strict: on the page, on good use, on misuse."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.web.npm import TYPESCRIPT
from tests.web.test_page import subscribe_snippet, token_snippet
from tests.web.tools import HERE, node_tool, type_errors

# The page's process.env, without a dependency on @types/node.
PROCESS = "declare const process: { env: Record<string, string | undefined> };\n"


@pytest.fixture(scope="session")
def tsc() -> Path:
    return node_tool(TYPESCRIPT) / "bin/tsc"


def check(tsc: Path, folder: Path, *files: str, resolution: str = "nodenext") -> str:
    """What the compiler finds wrong."""
    module = "nodenext" if resolution == "nodenext" else "esnext"
    flags = ("--lib", "es2022,dom", "--module", module, "--moduleResolution", resolution)
    return type_errors(tsc, folder, *flags, *files)


def copy(package: Path) -> list[str]:
    """The files of `types/`, beside the installed package."""
    shutil.copy(HERE / "types/bad.ts", package / "bad.mts")
    (package / "good.mts").write_text(PROCESS + (HERE / "types/good.ts").read_text())
    return ["good.mts", "bad.mts"]


@pytest.mark.parametrize("resolution", ["nodenext", "bundler"])
def test_good_use_and_the_page_compile_and_misuse_does_not(tsc: Path, package: Path, resolution: str) -> None:
    files = copy(package)
    (package / "page.mts").write_text(PROCESS + "".join(subscribe_snippet()) + "\n" + token_snippet())
    # One file in which the compiler must find something, and only there.
    source = "// @ts-expect-error\n" + "".join(subscribe_snippet()) + "\nunsubscribe(3);"
    (package / "wrong.mts").write_text(f"{PROCESS}{source}")
    found = check(tsc, package, "page.mts", *files, "wrong.mts", resolution=resolution)
    unused_mark, too_many_arguments = "TS2578", "TS2554"
    assert re.findall(r"^(\S+\.mts)\(.*(TS\d+):", found, re.MULTILINE) == [
        ("wrong.mts", unused_mark),
        ("wrong.mts", too_many_arguments),
    ]
