"""What is measured: each scenario yields rows, and its docstring's line is its help."""

from __future__ import annotations

from bench.rows import Scenario
from bench.scenarios.fanout import burst, fanout, latency

SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        fanout,
        burst,
        latency,
    )
}
