"""Cores, CPU clocks and noise: what the measurements stand on."""

from __future__ import annotations

import os
import time
from pathlib import Path

SERVER_CORE = 0
CLIENT_CORE = 1 if (os.cpu_count() or 1) > 1 else 0


def pin(core: int, pid: int = 0) -> None:
    """Keep a process, with all threads it will start, on one core."""
    os.sched_setaffinity(pid, {core})


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with all its threads, in seconds, to the nanosecond (clock_getcpuclockid(3))."""
    return time.clock_gettime(((~pid) << 3) | 2)


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def raise_file_limit() -> int:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def noise() -> float:
    """How much of the server's core others take, as a share: spin for half a second and look what we got."""
    before = os.sched_getaffinity(0)
    pin(SERVER_CORE)
    try:
        wall, own = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < 0.5:
            pass
        return 1 - (time.process_time() - own) / (time.perf_counter() - wall)
    finally:
        os.sched_setaffinity(0, before)


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
