"""Autobahn's cases against our WebSockets (RFC 6455), driven by kosoku, each held to the verdict that it has.

A verdict that changes fails, for better or worse, and so does a case that is missing or new. The suite is a
process of its own: it puts modules in front of Python's path.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.conftest
from tests.conftest import Server, shared_server

WELL = "OK"
BINARY = {f"1.2.{number}": "FAILED 1003" for number in range(1, 9)}
"""We take text only, and close with 1003. The suite wants an echo."""
LATE = {"6.4.3": "NON-STRICT 1007", "6.4.4": "NON-STRICT 1007"}
"""One frame comes in three pieces, the second not UTF-8. We decode a frame when it is whole."""
OPEN = {"7.1.6": "INFORMATIONAL 1000", "7.13.1": "INFORMATIONAL 1002", "7.13.2": "INFORMATIONAL 1002"}
"""RFC 6455 leaves open what is right: a close behind 256 KiB; the close codes 5000 and 65535."""
COMPRESSED = {
    f"{group}.{subgroup}.{number}": "UNIMPLEMENTED 1000"
    for group in (12, 13)
    for subgroup in range(1, 6 if group == 12 else 8)
    for number in range(1, 19)
}
"""Compression is offered, and we decline it."""

pytestmark = pytest.mark.interpreted  # the echo replaces a method
MAX_MESSAGE_BYTES = 16 << 20
"""The largest message of the suite, in 9.1.6."""


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tests.conftest, "COMMAND", [sys.executable, "-m", "tests.conformance.echo"])
        yield from shared_server(tmp_path_factory, "--max-message-bytes", str(MAX_MESSAGE_BYTES))


def verdicts(server: Server, folder: Path, *options: str) -> dict[str, str]:
    """What each case came to: OK, or another verdict and the code of our close frame."""
    url = f"{server.ws_url}/?token={server.token('x')}"
    command = [str(Path(sys.executable).with_name("kosoku")), url, *options, "--outdir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    report = folder / "index.json"
    assert report.exists(), done.stderr
    (cases,) = json.loads(report.read_text()).values()
    return {case: verdict(found) for case, found in cases.items()}


def verdict(found: dict[str, object]) -> str:
    if found["behavior"] == found["behaviorClose"] == WELL:
        return WELL
    return f"{found['behavior']} {found['remoteCloseCode']}"


def test_framing_fragments_utf_8_and_closing(echo: Server, tmp_path: Path) -> None:
    excluded = (f"--exclude={group}.*" for group in (9, 12, 13))
    found = verdicts(echo, tmp_path, *excluded, "--parallelism", "8")
    assert {case: what for case, what in found.items() if what != WELL} == {**BINARY, **LATE, **OPEN}
    assert len(found) == 247


def test_limits_and_performance_with_text(echo: Server, tmp_path: Path) -> None:
    """Messages of up to 16 MiB, in up to 65,536 fragments and pieces; 6,000 round trips."""
    included = (f"--include=9.{group}.*" for group in (1, 3, 5, 7))
    found = verdicts(echo, tmp_path, *included)
    assert set(found.values()) == {WELL}, found
    assert len(found) == 27


def test_compression_is_declined(echo: Server, tmp_path: Path) -> None:
    assert verdicts(echo, tmp_path, "--include=12.*", "--include=13.*", "--parallelism", "8") == COMPRESSED
