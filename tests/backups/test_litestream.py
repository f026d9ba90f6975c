"""The recipe for Litestream in docs/operations.md, with its executable."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.auth.commands import run_here
from tests.backups.programs import program
from tests.conftest import StartServer, wait_until
from tests.docs import text

pytestmark = pytest.mark.sqlite


def test_what_litestream_replicated_restores(start_server: StartServer, tmp_path: Path) -> None:
    (recipe,) = re.findall(r"^litestream replicate \S+ (\S+)$", text("docs/operations.md"), re.MULTILINE)
    assert recipe == "s3://bucket/paperdb"
    server = start_server("--max-wal-bytes", "1048576")  # so that it starts over while this test runs
    file, replica = server.data / "paperdb.sqlite", f"file://{tmp_path}/replica"
    process = subprocess.Popen(
        [program("litestream"), "replicate", str(file), replica],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for n in range(40):
            server.request("POST", "/c/bulk", json=[{"n": n, "text": "x" * 500} for _ in range(100)])
        last = server.insert("c", {"last": True})

        def replicated() -> bool:
            copy = tmp_path / "copy.sqlite"
            copy.unlink(missing_ok=True)
            command = [program("litestream"), "restore", "-o", str(copy), replica]
            restored = subprocess.run(command, capture_output=True, check=False, timeout=60)
            return restored.returncode == 0 and last["_id"].encode() in copy.read_bytes()

        wait_until(replicated, 60)
        server.kill()
    finally:
        process.kill()
        process.wait()
    assert run_here("restore", tmp_path / "copy.sqlite", "--data", tmp_path / "new").exit_code == 0
    assert run_here("check", "--data", tmp_path / "new").exit_code == 0
    again = start_server(data=tmp_path / "new")
    assert again.request("GET", "/c/count", key=server.key).json() == {"count": 4001}
    # The server goes on with a file that Litestream has been in.
    server.start()
    assert server.insert("c", {})
    assert run_here("check", "--data", server.data).exit_code == 0
