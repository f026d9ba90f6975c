"""The server under measurement: `paperdb serve` as its own process on its own core."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.machine import SERVER_CORE, cpu_seconds, pin, resident_bytes


@dataclass
class Process:
    """A server process that listens on `port` of 127.0.0.1. `key` is an API key, for those that have any."""

    process: subprocess.Popen[str]
    port: int
    key: str = ""

    @property
    def cpu(self) -> float:
        return cpu_seconds(self.process.pid)

    @property
    def memory(self) -> int:
        return resident_bytes(self.process.pid)


@contextmanager
def paperdb(*options: str) -> Iterator[Process]:
    """Start one with an empty data directory; stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="paperdb-bench-") as data:
        command = [
            sys.executable,
            "-m",
            "paperdb_trio",
            "serve",
            "--data",
            f"{data}/d",
            "--port",
            "0",
            *options,
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PAPERDB_")}
        with Path(data, "stderr").open("w") as stderr:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                preexec_fn=lambda: pin(SERVER_CORE),
            )
        try:
            key = ""
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"pdb_sk_[\w-]{43}", line):
                    key = key or found[0]
                if found := re.match(r"Listening on http://.*:(\d+)", line):
                    yield Process(process, int(found[1]), key)
                    break
            else:
                raise RuntimeError(Path(data, "stderr").read_text())
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
            assert process.stdout is not None
            process.stdout.close()
