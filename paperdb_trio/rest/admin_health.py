"""What the health page shows: the figures of `/metrics`, slow queries, and who listens.

Law: cheap enough to be asked each second. Counts nothing itself. A secret key sees only what is about its own
database.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from paperdb_trio import __version__
from paperdb_trio.measures import Family, Sample
from paperdb_trio.model import timestamp
from paperdb_trio.net.messages import Response, json_response
from paperdb_trio.rest import admin_responses as responses
from paperdb_trio.rest.admin_call import AdminCall
from paperdb_trio.services import Services

MOST_SLOW: Final = 100
MOST_COLLECTIONS: Final = 200
"""Of the collections with most changes, so many are in the figures for an admin key."""

SUMMED: Final = frozenset(
    {
        *("paperdb_connections", "paperdb_live_connections", "paperdb_subscribers", "paperdb_live_queries"),
        *("paperdb_residual_queries", "paperdb_cache_bytes", "process_resident_memory_bytes"),
        *("paperdb_database_subscribers", "paperdb_database_live_queries", "paperdb_database_residual_queries"),
    }
)
"""Gauges of which each process has its own share. Of the others, such as a lag, the highest counts."""
PUBLISHED: Final = frozenset({"paperdb_changes_total", "paperdb_collection_changes_total"})
"""Counters of what every worker publishes: the highest counts."""


async def report(services: Services, database_id: int | None) -> dict[str, Any]:
    """The report of this process, as plain data; only of one database, if one is given. Its figures are in
    another one: `metrics`."""
    names = {database.id: database.name for database in services.accounts.databases()}
    slow = [
        {**query, "database": names[query["database"]]}
        for query in services.store.slow_queries()
        if query["database"] in names and database_id in (None, query["database"])
    ]
    return {"slow": slow, "audience": await services.reports["audience"](database_id)}


async def health(call: AdminCall) -> Response:
    own, gather = call.own, call.services.gather
    found = await gather("metrics", True)
    by_process = [(name, [Family(*family) for family in of]) for name, of in found]
    families = [family for _, of in by_process for family in of]
    families = [_of_server(family) if own is None else _of_database(family, own.name) for family in families]
    reports = [of for _, of in await gather("health", None if own is None else own.id)]
    slow = sorted((query for of in reports for query in of["slow"]), key=lambda query: query["at"])
    body = responses.ServerHealth(
        timestamp(time.time()),
        __version__,
        [_process(name, of) for name, of in by_process] if own is None else [],
        _measures(families),
        _joined([of["audience"] for of in reports]),
        [msgspec.convert(query, responses.SlowQuery) for query in reversed(slow[-MOST_SLOW:])],
    )
    return json_response(200, body)


def _process(name: str, families: list[Family]) -> responses.Process:
    values = {family.name: Sample(*family.samples[0]).value for family in families if family.samples}
    return responses.Process(
        name,
        values["process_cpu_seconds_total"],
        values.get("process_resident_memory_bytes", 0),  # Linux only
        values.get("paperdb_connections", 0),  # the one that writes has none
        values["paperdb_event_loop_delay_max_seconds"],
    )


def _of_server(family: Family) -> Family:
    """Without the figures of each database, but for the busiest collections."""
    if family.name.startswith("paperdb_collection_"):
        busiest = sorted(family.samples, key=lambda sample: Sample(*sample).value, reverse=True)
        return family._replace(samples=busiest[:MOST_COLLECTIONS])
    return family._replace(samples=[s for s in family.samples if "database" not in Sample(*s).labels])


def _of_database(family: Family, name: str) -> Family:
    return family._replace(samples=[s for s in family.samples if Sample(*s).labels.get("database") == name])


def _measures(found: Iterable[Family]) -> list[responses.Measure]:
    """The families of all processes together. Samples of single routes are added up: there are hundreds."""
    types: dict[str, str] = {}
    values: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = {}
    for name, type, _, samples in found:
        types[name] = type
        adds = name in SUMMED if type == "gauge" else name not in PUBLISHED
        for labels, value, suffix in samples:
            rest = tuple((key, of) for key, of in labels.items() if key not in ("route", "method"))
            key = (name, suffix, rest)
            before = values.get(key)
            values[key] = value if before is None else before + value if adds else max(before, value)
    measures: dict[str, responses.Measure] = {}
    for (name, suffix, rest), value in values.items():
        measure = measures.setdefault(name, responses.Measure(name, types[name], []))
        measure.samples.append(responses.MeasureSample(dict(rest), float(value), suffix))
    return [*measures.values()]


def _joined(audiences: list[dict[str, Any]]) -> responses.Audience:
    joined = responses.Audience()
    for of in audiences:
        joined.live += of["live"]
        joined.catching_up += of["catchingUp"]
        joined.max_lag_changes = max(joined.max_lag_changes, of["maxLagChanges"])
        for total, own in (
            (joined.by_transport, of["byTransport"]),
            (joined.by_database, of["byDatabase"]),
        ):
            for name, count in own.items():
                total[name] = total.get(name, 0) + count
    return joined
