"""h2spec against a server with TLS: `python -m tests.conformance.h2spec [section …]`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import Server

if __name__ == "__main__":
    if (h2spec := shutil.which("h2spec")) is None:
        sys.exit("needs h2spec on the PATH (summerwind/h2spec)")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "data", ("--tls-self-signed",))
        try:
            target = [
                "--tls",
                "--insecure",
                "--strict",
                "--path=/healthz",
                "-h",
                "127.0.0.1",
                "-p",
                str(server.port),
            ]
            done = subprocess.run([h2spec, *target, *sys.argv[1:]], timeout=300, check=False)
        finally:
            server.stop()
    sys.exit(done.returncode)
