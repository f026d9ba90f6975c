"""The documentation as the tests read it: its pages, their blocks, headings and links.

A block in `sh`, `python` or `js` runs as it is; `console` marks commands that a test cannot run (root, Docker).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
)
RUNS = ("sh", "python", "js")


def text(page: str) -> str:
    """A page by its path in the repository."""
    return (ROOT / page).read_text("utf-8")


@dataclass(frozen=True)
class Block:
    """A fenced block. `output`: the `text` or `json` block right after it, which shows its output."""

    language: str
    source: str
    line: int
    output: str | None = None


_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page, or those in one of `languages`."""
    source = text(page)
    found = list(_FENCE.finditer(source))
    made = []
    for match, following in zip_longest(found, found[1:]):
        output = None
        if following is not None and following[1] in ("text", "json"):
            adjacent = not source[match.end() : following.start()].strip()
            output = following[2] if adjacent else None
        made.append(Block(match[1], match[2], source.count("\n", 0, match.start()) + 1, output))
    return [block for block in made if not languages or block.language in languages]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub derives from a page's headings."""
    made: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        again = 0
        while (unique := f"{anchor}-{again}" if again else anchor) in made:
            again += 1
        made.add(unique)
    return made


def links(page: Path) -> list[str]:
    """The targets of a page's links and images inside the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def printed_as(expected: str, output: str) -> bool:
    """Whether a program's output matches its page. White space does not matter; `…` matches anything."""
    pattern = ".*?".join(re.escape(re.sub(r"\s+", "", part)) for part in expected.split("…"))
    return re.fullmatch(pattern, re.sub(r"\s+", "", output), re.DOTALL) is not None
