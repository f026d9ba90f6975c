"""The scenarios: each yields rows, and the first line of its docstring is its help."""

from __future__ import annotations

from bench.rows import Scenario
from bench.scenarios.card import card
from bench.scenarios.catchup import catchup
from bench.scenarios.compiled import compiled
from bench.scenarios.connections import connect, connections, idle
from bench.scenarios.fairness import mixed, slow
from bench.scenarios.fanout import burst, fanout, latency
from bench.scenarios.growth import growth
from bench.scenarios.live import live
from bench.scenarios.match import match
from bench.scenarios.peers import peers
from bench.scenarios.postgres import postgres
from bench.scenarios.rest import bulk, rest
from bench.scenarios.restart import restart
from bench.scenarios.store import questions, strangers
from bench.scenarios.tls import tls
from bench.scenarios.workers import workers

SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        fanout,
        burst,
        latency,
        peers,
        card,
        tls,
        growth,
        connect,
        idle,
        connections,
        restart,
        mixed,
        slow,
        catchup,
        rest,
        compiled,
        bulk,
        questions,
        strangers,
        match,
        live,
        workers,
        postgres,
    )
}
