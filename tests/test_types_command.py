"""`paperdb types`: what it prints, and that compilers accept it. Some 3 s of CPU, most of it mypy and tsc."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from paperdb_trio.cli.types import python, shapes, typescript
from tests.auth.commands import fails
from tests.auth.commands import run as run_command
from tests.conftest import StartServer
from tests.web.npm import TYPESCRIPT
from tests.web.test_types import check
from tests.web.tools import node_tool

SCHEMAS: dict[str, Any] = {
    "messages": {
        "properties": {
            "text": {"type": "string", "required": True},
            "likes": {"type": "number"},
            "read": {"type": "boolean", "default": False},
            "by.name": {"index": True},
            "createdAt": {"index": True},
            "tags": {"type": "array", "required": True},
            "extra": {"type": "object"},
            "any": {},
        }
    },
    "odd-names": {
        "properties": {
            "class": {"type": "string"},
            "first-name": {"required": True},
            "__x": {},
            'it\'s "é"\\\n': {"type": "number"},
            "ﬁ": {},
        }
    },
    "odd_names": {"properties": {}},
    "2024": {"properties": {}},
    "any": {"properties": {}},
    "typedDict": {"properties": {}},
    "collections": {"properties": {"a": {"required": True}}},
    "record": {"properties": {"a": {"type": "object"}}},
    "_": {"properties": {}},
}

PYTHON = """\
from typing import NotRequired, TypedDict


class Messages(TypedDict):
    _id: str
    createdAt: str
    updatedAt: str
    text: str
    likes: NotRequired[float | None]
"""

TYPED = """\
export interface Messages {
  _id: string;
  createdAt: string;
  updatedAt: string;
  text: string;
  likes?: number | null;
}

export interface Collections {
  messages: Messages;
}
"""


def test_it_prints_the_types_of_a_server(start_server: StartServer) -> None:
    server = start_server()
    properties = {"text": {"type": "string", "required": True}, "likes": {"type": "number"}}
    assert server.request("PUT", "/messages/schema", json={"properties": properties}).status_code == 200
    server.insert("without", {"n": 1})
    command = ("types", "--url", server.url, "--key", server.key, "--language")
    assert run_command(*command, "python").stdout == PYTHON
    assert run_command(*command, "ts").stdout == TYPED
    fails(run_command("types", "--url", server.url, "--key", "pdb_sk_x", "--language", "ts"), 1, "401")
    fails(run_command("types", "--url", "ftp://x", "--key", "k", "--language", "ts"), 2, "ftp://x")


def test_mypy_accepts_what_it_prints(tmp_path: Path) -> None:
    source = python(shapes(SCHEMAS))
    use = """
a: Messages = {"_id": "", "createdAt": "", "updatedAt": "", "text": "", "tags": [1], "likes": 1}
b: OddNames = {"_id": "", "createdAt": "", "updatedAt": "", "first-name": 1, "it's \\"é\\"\\\\\\n": None}
reveal_type(a["likes"])
a["text"] = 5
c: Any2; d: TypedDict2; e: Collections2; f: Collection2024; g: Collection; h: OddNames2
"""
    (tmp_path / "made.py").write_text(source + use)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-pretty", str(tmp_path / "made.py")],
        cwd=Path(__file__).parents[1],  # its cache
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    lines = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert [line.partition(":")[0] for line in lines[:-1]] == ["note", "error"], done.stdout
    assert "float | None" in lines[0]
    assert '"text"' in lines[1]


def test_tsc_accepts_what_it_prints(tmp_path: Path) -> None:
    use = """
const system = { _id: "", createdAt: "", updatedAt: "" };
const messages: Collections["messages"] = { ...system, text: "", tags: [1], likes: null };
const odd: Collections["odd-names"] = { ...system, "first-name": 1, "it's \\"é\\"\\\\\\n": 2 };
// @ts-expect-error
messages.text = 5;
// @ts-expect-error
odd.nothing;
let others: [Any2, TypedDict2, Collections2, Collection2024, Collection, OddNames2, Record];
export {};
"""
    (tmp_path / "made.mts").write_text(typescript(shapes(SCHEMAS)) + use)
    assert check(node_tool(TYPESCRIPT) / "bin/tsc", tmp_path, "made.mts") == ""
