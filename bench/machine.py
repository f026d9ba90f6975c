"""Cores, CPU clocks and noise."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER_CORE = 0
CLIENT_CORE = 1 if (os.cpu_count() or 1) > 1 else 0


def pin(core: int) -> None:
    """Keep this process, and all threads and processes that it starts, on one core."""
    os.sched_setaffinity(0, {core})


@contextmanager
def on_core(*cores: int) -> Iterator[None]:
    """Run the body on that core, or those. Processes that it starts inherit it from their first instruction."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its threads, in seconds, to the nanosecond (clock_getcpuclockid(3))."""
    return time.clock_gettime(((~pid) << 3) | 2)


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def children(pid: int) -> list[int]:
    """The processes that it has started and that still run."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        found += [int(n) for n in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return found


def is_busy(pid: int) -> bool:
    """Whether one of its threads runs or is ready to run."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            stat = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
        except OSError:
            continue  # the thread has just ended
        if stat.rpartition(") ")[2][0] == "R":
            return True
    return False


def raise_file_limit() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def noise() -> float:
    """The share of the server's core that other processes take: what half a second of spinning did not get."""
    with on_core(SERVER_CORE):
        wall, own = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < 0.5:
            pass
        return 1 - (time.process_time() - own) / (time.perf_counter() - wall)


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
