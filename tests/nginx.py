"""nginx with the configuration from a page, except for the changes that a test needs, such as the port."""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import need, wait_until
from tests.docs import blocks

OPERATIONS = "docs/operations.md"


@contextmanager
def nginx(home: Path, port: int, changes: dict[str, str], page: str = OPERATIONS) -> Iterator[None]:
    """Runs until the block ends. `changes` are replacements in the snippet of `page`; it listens on `port`."""
    program = need("nginx")
    (snippet,) = (block.source for block in blocks(page, "nginx"))
    folders = "".join(
        f"{kind}_temp_path {home}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (home / "nginx.conf").write_text(
        f"pid {home}/pid;\nerror_log {home}/error.log;\nworker_processes 1;\nuser root;\n"
        f"events {{}}\nhttp {{\n{folders}{_changed(snippet, changes)}}}\n"
    )
    process = subprocess.Popen(
        [program, "-c", home / "nginx.conf", "-p", home, "-g", "daemon off;"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: _responds(port) or process.poll() is not None, 10)
        assert process.poll() is None, process.communicate()[1]
        yield
    finally:
        process.terminate()
        process.communicate(timeout=10)


def free_port() -> int:
    """Below those that the kernel gives to clients and to servers on port 0: none takes it meanwhile."""
    first, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    while True:
        port = random.randrange(first // 2, first)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _changed(snippet: str, changes: dict[str, str]) -> str:
    for documented, here in changes.items():
        assert documented in snippet, f"the page's nginx snippet no longer has '{documented}'"
        snippet = snippet.replace(documented, here)
    return snippet


def _responds(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
