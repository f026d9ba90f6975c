"""What `/metrics` shows.

Law: `families` returns all figures of this process as plain data; `text` renders them. What concerns one
database is there only if it is asked for. Neither holds up the event loop.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

from paperdb_trio import __version__
from paperdb_trio.delivery.hub import Figures
from paperdb_trio.delivery.states import SubscriberState
from paperdb_trio.loop.delay import LoopDelay
from paperdb_trio.loop.turn import TimeSlice
from paperdb_trio.measures import Family, Sample, counter, gauge, histogram
from paperdb_trio.services import Services

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
STEP: Final = 32
"""Subscribers, or samples, between two looks at the clock."""


async def families(services: Services, of_each: bool) -> list[Family]:
    """The figures of this process; with `of_each` also those of each database and collection."""
    audience = await _audience(services)
    hub = services.hub.figures()
    found = [
        *of_process(services.started, services.loop_delay),
        *_connections(services, hub.values(), audience.values()),
        *services.exchanges.counts.families(),
        *services.store.measures(),
        *_delivery(services, hub.values()),
        *_cache(services),
        *services.more_measures(),
    ]
    if of_each:
        found += [*_databases(services, hub, audience), await _collections(services, hub)]
        found += await services.store.sizes()
    return found


async def text(families: Sequence[Family]) -> bytes:
    """Prometheus's text format, version 0.0.4.

    There may be thousands of samples: 1 µs each. The library prometheus_client takes 11 µs.
    """
    turn, lines = TimeSlice(), []
    for family in families:
        lines.append(f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.type}\n")
        for n, (labels, value, suffix) in enumerate(family.samples):
            shown = ",".join([f'{name}="{_escaped(of)}"' for name, of in labels.items()])
            braces = f"{{{shown}}}" if shown else ""
            lines.append(f"{family.name}{suffix}{braces} {float(value)!r}\n")
            if not n % STEP and turn.is_over():
                await turn.pass_on()
    return "".join(lines).encode()


def _escaped(text: str) -> str:
    if text.isalnum():
        return text
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def of_process(started: float, delay: LoopDelay) -> Iterator[Family]:
    """What any process of a server has."""
    yield Family(
        "paperdb_build_info", "gauge", "The version, as a label", [Sample({"version": __version__}, 1)]
    )
    yield gauge("process_start_time_seconds", "Start, in seconds since the epoch", started)
    yield counter("process_cpu_seconds_total", "CPU time, in user and system mode", time.process_time())
    with suppress(OSError), open("/proc/self/statm", "rb") as file:  # Linux
        pages = int(file.read().split()[1])
        yield gauge("process_resident_memory_bytes", "Resident memory", pages * resource.getpagesize())
    yield histogram(
        "paperdb_event_loop_delay_seconds", "How late a task woke up, ten times a second", delay.seconds
    )
    yield gauge(
        "paperdb_event_loop_delay_max_seconds", "The longest delay of the last 30 to 60 s", delay.longest
    )


# --- totals --------------------------------------------------------------------------------------


class _Audience:
    """The subscribers of one database: how many in each state, and how far the last one is behind."""

    def __init__(self) -> None:
        self.states = {"live": 0, "catching_up": 0}
        self.lag = 0


async def _audience(services: Services) -> dict[int, _Audience]:
    """By database. It takes 1 µs for each subscriber."""
    turn = TimeSlice()
    found: dict[int, _Audience] = {}
    for n, subscriber in enumerate(services.subscribers()):
        of = found.get(subscriber.database_id)
        if of is None:
            of = found[subscriber.database_id] = _Audience()
        if subscriber.state is SubscriberState.LIVE:
            of.states["live"] += 1
        elif subscriber.state is SubscriberState.CATCHING_UP:
            of.states["catching_up"] += 1
            of.lag = max(of.lag, subscriber.lag)
        if not n % STEP and turn.is_over():
            await turn.pass_on()
    return found


def _connections(
    services: Services, hub: Collection[Figures], audience: Collection[_Audience]
) -> Iterator[Family]:
    yield gauge("paperdb_connections", "Open connections", services.open_connections())
    yield gauge(
        "paperdb_live_connections",
        "WebSockets, event streams, and long polls that wait",
        services.live_connections(),
    )
    yield Family(
        "paperdb_subscribers",
        "gauge",
        "Live connections that have everything, and that read what they missed from the log",
        [Sample({"state": state}, sum(of.states[state] for of in audience)) for state in _Audience().states],
    )
    yield gauge(
        "paperdb_subscriber_lag_changes",
        "Changes by which the last subscriber is behind",
        max((of.lag for of in audience), default=0),
    )
    yield gauge("paperdb_live_queries", "Distinct live queries", sum(of.queries for of in hub))
    yield gauge("paperdb_residual_queries", "Live queries that no index finds", sum(of.residual for of in hub))


def _delivery(services: Services, hub: Collection[Figures]) -> Iterator[Family]:
    yield counter("paperdb_changes_total", "Changes published", services.hub.published_changes)
    yield counter(
        "paperdb_deliveries_total", "Buffers of events offered to live subscribers", services.hub.deliveries
    )
    yield Family(
        "paperdb_event_bytes_total",
        "counter",
        "Bytes of events offered to live subscribers, and sent to those that read the log",
        [
            Sample({"source": "live"}, sum(of.live_bytes for of in hub)),
            Sample({"source": "log"}, sum(of.log_bytes for of in hub)),
        ],
    )
    yield gauge(
        "paperdb_unpublished_changes",
        "Changes that are committed and not yet handed out",
        sum(of.unpublished for of in hub),
    )
    yield gauge("paperdb_log_changes", "Changes in the change logs", sum(of.head - of.trimmed for of in hub))


def _cache(services: Services) -> Iterator[Family]:
    cache = services.cache
    yield counter("paperdb_cache_hits_total", "Gets of a document that was in memory", cache.hits)
    yield counter("paperdb_cache_misses_total", "Gets of a document that was not", cache.misses)
    yield gauge("paperdb_cache_bytes", "Memory of the documents that are cached", cache.bytes)


# --- one database, one collection ----------------------------------------------------------------


def _databases(
    services: Services, hub: Mapping[int, Figures], audience: Mapping[int, _Audience]
) -> Iterator[Family]:
    names = {database.id: database.name for database in services.accounts.databases()}
    of_hub = [({"database": names[id]}, of) for id, of in sorted(hub.items()) if id in names]
    nobody = _Audience()
    of_audience = [({"database": name}, audience.get(id, nobody)) for id, name in names.items()]
    requests = services.exchanges.counts.by_database()

    def gauges(name: str, help: str, value: Callable[[Figures], float]) -> Family:
        return Family(name, "gauge", help, [Sample(labels, value(of)) for labels, of in of_hub])

    yield Family(
        "paperdb_database_requests_total",
        "counter",
        "Requests with a valid key or token of the database",
        [Sample({"database": name}, requests.get(id, 0)) for id, name in names.items()],
    )
    yield Family(
        "paperdb_database_subscribers",
        "gauge",
        "As paperdb_subscribers",
        [
            Sample({**labels, "state": state}, of.states[state])
            for labels, of in of_audience
            for state in of.states
        ],
    )
    yield Family(
        "paperdb_database_subscriber_lag_changes",
        "gauge",
        "As paperdb_subscriber_lag_changes",
        [Sample(labels, of.lag) for labels, of in of_audience],
    )
    yield Family(
        "paperdb_database_deliveries_total",
        "counter",
        "As paperdb_deliveries_total",
        [Sample(labels, of.deliveries) for labels, of in of_hub],
    )
    yield Family(
        "paperdb_database_event_bytes_total",
        "counter",
        "As paperdb_event_bytes_total",
        [
            Sample({**labels, "source": source}, size)
            for labels, of in of_hub
            for source, size in (("live", of.live_bytes), ("log", of.log_bytes))
        ],
    )
    yield gauges("paperdb_database_live_queries", "As paperdb_live_queries", lambda of: of.queries)
    yield gauges("paperdb_database_log_head", "The seq of the newest change", lambda of: of.head)
    yield gauges("paperdb_database_log_trimmed", "The seq of the newest change gone", lambda of: of.trimmed)


async def _collections(services: Services, hub: Mapping[int, Figures]) -> Family:
    turn = TimeSlice()
    samples: list[Sample] = []
    for database in services.accounts.databases():
        changes = hub[database.id].changes if database.id in hub else {}
        samples += [
            Sample({"database": database.name, "collection": name}, count) for name, count in changes.items()
        ]
        if turn.is_over():
            await turn.pass_on()
    return Family(
        "paperdb_collection_changes_total",
        "counter",
        "Changes published; beyond 1,000 collections of a database, those of the rest have no name",
        samples,
    )
