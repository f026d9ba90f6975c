"""What can happen to the machines of examples/cluster: programs are killed or stopped, cables are cut.

Each fault is an async context manager: within it, something is wrong; afterwards, all runs again. Programs are
started on the main thread.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

from examples.cluster.cluster import BALANCER, DATABASES, NODES, Cluster
from examples.cluster.network import Namespaces

Fault = Callable[[Cluster, random.Random], AbstractAsyncContextManager[str]]
"""Yields the name of what it hits."""

SHORT = (1.0, 4.0)
LONG = (24.0, 30.0)
"""Seconds: longer than the `ttl` of patroni.yml, so that a standby takes over."""


def processes(cluster: Cluster, program: str) -> list[int]:
    """A program and its children, PostgreSQL's with Patroni. Parents come first."""
    found = [cluster.processes[program].pid]
    name, _, machine = program.partition("@")
    if name == "patroni" and (pid := cluster.postmaster(machine)) is not None:
        found.append(pid)
    for parent in found:  # it grows
        with suppress(OSError):
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def signal_all(found: list[int], number: signal.Signals) -> None:
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@asynccontextmanager
async def killed(cluster: Cluster, programs: list[str], seconds: float) -> AsyncIterator[None]:
    for program in programs:
        signal_all(processes(cluster, program), signal.SIGKILL)
        cluster.processes.pop(program).wait()
    yield
    await asyncio.sleep(seconds)
    for program in programs:
        cluster.begin(program)


@asynccontextmanager
async def stopped(cluster: Cluster, programs: list[str], seconds: float) -> AsyncIterator[None]:
    found = [process for program in programs for process in processes(cluster, program)]
    signal_all(found, signal.SIGSTOP)
    yield
    await asyncio.sleep(seconds)
    signal_all(found, signal.SIGCONT)


@asynccontextmanager
async def cut_off(
    cluster: Cluster, machine: str, others: list[str] | None, seconds: float
) -> AsyncIterator[None]:
    assert isinstance(cluster.network, Namespaces)
    cluster.network.cut(machine, others)
    yield
    await asyncio.sleep(seconds)
    cluster.network.mend()


async def primary_of(cluster: Cluster) -> str:
    while (primary := await asyncio.to_thread(cluster.healthy)) is None:
        await asyncio.sleep(0.2)
    return primary


def database_fault(role: str, how: str, seconds: tuple[float, float]) -> Fault:
    @asynccontextmanager
    async def fault(cluster: Cluster, dice: random.Random) -> AsyncIterator[str]:
        primary = await primary_of(cluster)
        machine = primary if role == "primary" else dice.choice([n for n in DATABASES if n != primary])
        duration = dice.uniform(*seconds)
        here: AbstractAsyncContextManager[None]
        if how == "kill":
            here = killed(cluster, [f"patroni@{machine}", f"etcd@{machine}"], duration)
        elif how == "stop":
            here = stopped(cluster, [f"patroni@{machine}", f"etcd@{machine}"], duration)
        else:
            others = None if how == "cut" else [name for name in DATABASES if name != machine]
            here = cut_off(cluster, machine, others, duration)
        async with here:
            yield machine

    return fault


@asynccontextmanager
async def postgresql_killed(cluster: Cluster, dice: random.Random) -> AsyncIterator[str]:
    machine = await primary_of(cluster)
    pid = cluster.postmaster(machine)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    yield machine


def program_fault(programs: list[str], how: str, seconds: tuple[float, float]) -> Fault:
    @asynccontextmanager
    async def fault(cluster: Cluster, dice: random.Random) -> AsyncIterator[str]:
        program = dice.choice(programs)
        context = killed if how == "kill" else stopped
        async with context(cluster, [program], dice.uniform(*seconds)):
            yield program

    return fault


@asynccontextmanager
async def node_cut_off(cluster: Cluster, dice: random.Random) -> AsyncIterator[str]:
    node = dice.choice(NODES)
    async with cut_off(cluster, node, None, dice.uniform(5, 12)):
        yield node


@asynccontextmanager
async def node_cut_from_databases(cluster: Cluster, dice: random.Random) -> AsyncIterator[str]:
    node = dice.choice(NODES)
    async with cut_off(cluster, node, list(DATABASES), dice.uniform(5, 12)):
        yield node


PAPERDB = [f"paperdb@{node}" for node in NODES]
ETCD = [f"etcd@{name}" for name in DATABASES]

FAULTS: dict[str, Fault] = {
    "PaperDB node killed": program_fault(PAPERDB, "kill", SHORT),
    "PaperDB node stopped": program_fault(PAPERDB, "stop", (2, 12)),
    "HAProxy killed": program_fault([f"haproxy@{BALANCER}"], "kill", SHORT),
    "etcd member killed": program_fault(ETCD, "kill", SHORT),
    "etcd member stopped": program_fault(ETCD, "stop", (2, 12)),
    "primary's PostgreSQL killed": postgresql_killed,
    "primary killed, back soon": database_fault("primary", "kill", SHORT),
    "primary killed, back later": database_fault("primary", "kill", LONG),
    "primary stopped, on soon": database_fault("primary", "stop", SHORT),
    "primary stopped, on later": database_fault("primary", "stop", LONG),
    "standby killed": database_fault("standby", "kill", (2, 12)),
    "standby stopped": database_fault("standby", "stop", (2, 12)),
}
CUTS: dict[str, Fault] = {
    "primary cut off": database_fault("primary", "cut", LONG),
    "primary cut from the standbys": database_fault("primary", "cut from others", LONG),
    "standby cut off": database_fault("standby", "cut", (5, 12)),
    "PaperDB node cut off": node_cut_off,
    "PaperDB node cut from PostgreSQL": node_cut_from_databases,
}
