"""What is measured: each scenario yields rows, and its docstring's first line is its help."""

from __future__ import annotations

from bench.rows import Scenario
from bench.scenarios.connections import connect, connections, idle
from bench.scenarios.fairness import mixed, slow
from bench.scenarios.fanout import burst, fanout, latency
from bench.scenarios.restart import restart

SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        fanout,
        burst,
        latency,
        connect,
        idle,
        connections,
        restart,
        mixed,
        slow,
    )
}
