"""The linter over all JavaScript: the SDK, the tests' scripts, those of HTML pages (see eslint.config.mjs)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs import ROOT, blocks
from tests.web.tools import current_node, node_tool

SCRIPTS = ("paperdb_trio/web/*/*.js", "tests/**/*.mjs", "examples/**/*.mjs", "eslint.config.mjs")
PAGES = ("examples/**/*.html",)
SCRIPT = re.compile(r"<script type=\"module\">\n(.*?)^ *</script>", re.DOTALL | re.MULTILINE)


def scripts_of(page: str) -> str:
    """The module scripts of a page, on the lines on which they are there."""
    kept = {line for found in SCRIPT.finditer(page) for line in lines(page, *found.span(1))}
    assert kept
    return "".join(
        text if number in kept else "\n" for number, text in enumerate(page.splitlines(keepends=True))
    )


def lines(page: str, begin: int, end: int) -> range:
    return range(page.count("\n", 0, begin), page.count("\n", 0, end))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files to lint, at their paths in the repository; a page's scripts at `PATH.mjs`."""
    tree = tmp_path_factory.mktemp("lint")
    texts = {
        path.relative_to(ROOT): path.read_text("utf-8") for pattern in SCRIPTS for path in ROOT.glob(pattern)
    }
    assert len(texts) > 12
    pages = {
        path.relative_to(ROOT): path.read_text("utf-8") for pattern in PAGES for path in ROOT.glob(pattern)
    }
    pages[Path("docs/tutorial.md.html")] = "".join(block.source for block in blocks("docs/tutorial.md", "html"))
    texts |= {path.with_name(f"{path.name}.mjs"): scripts_of(page) for path, page in pages.items()}
    for path, text in texts.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text, "utf-8")
    return tree


def lint(tree: Path) -> str:
    """What the linter finds."""
    program = node_tool("eslint@10") / "bin/eslint.js"
    done = subprocess.run(
        [current_node(), str(program), "."], cwd=tree, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


def test_the_linter_finds_nothing(tree: Path) -> None:
    assert lint(tree) == ""


def test_the_linter_reads_pages_and_knows_what_the_sdk_may_use(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "eslint.config.mjs").symlink_to(tree / "eslint.config.mjs")
    for path in ("examples/chat/index.html.mjs", "paperdb_trio/web/sdk/timers.js"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text((tree / path).read_text("utf-8") + "\nprocess.exit(0);\n", "utf-8")
    assert lint(tmp_path).count("'process' is not defined") == 2


MARKUP = (
    "document.body.innerHTML = location.hash;",
    'document.body["outerHTML"] = location.hash;',
    "document.write(location.hash);",
    'document.body.setAttribute("onclick", location.hash);',
    "new DOMParser();",
    'new Function("return 1")();',
)
"""Ways in which a text becomes markup or code."""


def test_a_text_of_the_dashboard_cannot_become_markup(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "eslint.config.mjs").symlink_to(tree / "eslint.config.mjs")
    folder = tmp_path / "paperdb_trio/web/dashboard"
    folder.mkdir(parents=True)
    for number, line in enumerate(MARKUP):
        (folder / f"{number}.js").write_text(f"{line}\n", "utf-8")
    found = lint(tmp_path)
    assert [number for number in range(len(MARKUP)) if f"/{number}.js" not in found] == []
