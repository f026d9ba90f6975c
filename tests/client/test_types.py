"""What type checkers see of the SDK, and what importing the package loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import paperdb_trio

pytestmark = pytest.mark.sqlite

CASES = Path(__file__).parent / "typing_cases"


def test_type_checkers_accept_good_use_and_refuse_misuse() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-pretty",
            "--show-error-codes",
            str(CASES / "good.py"),
            str(CASES / "misuse.py"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    found = set(re.findall(r"(\w+)\.py:(\d+): error: .*\[([\w-]+)\]", done.stdout))
    expected = {
        ("misuse", str(number), code)
        for number, line in enumerate((CASES / "misuse.py").read_text().splitlines(), 1)
        for code in re.findall(r"# E: ([\w-]+)", line)
    }
    assert found == expected, done.stdout + done.stderr


def test_importing_the_commands_imports_neither_client_nor_event_loop() -> None:
    program = (
        "import sys, paperdb_trio, paperdb_trio.cli\n"
        "print([name for name in ('httpx', 'trio', 'jwt', 'quart') if name in sys.modules])\n"
        "paperdb_trio.create_client\n"
        "print('httpx' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.split("\n")[:2] == ["[]", "True"]


def test_every_name_can_be_imported() -> None:
    for name in paperdb_trio.__all__:
        assert getattr(paperdb_trio, name) is not None
        assert name in dir(paperdb_trio)
    with pytest.raises(AttributeError, match="nonsense"):
        paperdb_trio.nonsense  # type: ignore[attr-defined]  # noqa: B018
