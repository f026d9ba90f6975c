"""Executables: seconds from start to `Listening on`, size, and memory when idle.

`python binary/measure.py dist/paperdb …`: for each, the first start ever (the file is not in the page cache,
nothing is unpacked, there is no data directory), and the median of five more on that data directory.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(command: list[str], home: Path) -> tuple[float, float]:
    """Seconds to `Listening on`, and resident MB of all its processes a second later."""
    began = time.perf_counter()
    environment = {"HOME": str(home), "TMPDIR": str(home), "PATH": os.environ["PATH"]}
    process = subprocess.Popen(
        [*command, "serve", "--port", "0", "--data", str(home / "data"), "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Listening on"):
            break
    seconds = time.perf_counter() - began
    time.sleep(1)
    resident = resident_mb(process.pid)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0, process.returncode
    return seconds, resident


def resident_mb(pid: int) -> float:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{pid}/status").read_text()
    own = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert own is not None
    return int(own[1]) / 1024 + sum(resident_mb(int(child)) for child in children)


def main() -> None:
    print("| executable | size | first start | further starts | resident, idle |\n|---|---|---|---|---|")
    for argument in sys.argv[1:]:
        command = [shutil.which(argument) or argument]
        os.sync()
        with open(command[0], "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with tempfile.TemporaryDirectory() as home:
            first, _ = start(command, Path(home))
            others = [start(command, Path(home)) for _ in range(5)]
        size = Path(command[0]).stat().st_size / 1e6
        seconds = statistics.median(seconds for seconds, _ in others)
        resident = statistics.median(resident for _, resident in others)
        print(
            f"| {argument} | {size:.1f} MB | {first:.2f} s | {seconds:.2f} s | {resident:.0f} MB |", flush=True
        )


if __name__ == "__main__":
    main()
