"""nginx with the configuration from a page, except for the changes that a test needs, such as the port."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
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


_held: list[socket.socket] = []


def free_port() -> int:
    """A port to listen on. It stays bound while this process lives, although nothing listens: thus the kernel
    gives it to no one else."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _held.append(holder)
    return int(holder.getsockname()[1])


def _changed(snippet: str, changes: dict[str, str]) -> str:
    for documented, here in changes.items():
        assert documented in snippet, f"the page's nginx snippet no longer has '{documented}'"
        snippet = snippet.replace(documented, here)
    return snippet


def _responds(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
