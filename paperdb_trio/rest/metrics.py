"""What `/metrics` shows.

Law: totals of the whole server only. It needs no key, so it must reveal nothing about any one database.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from paperdb_trio.services import Services

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Totals(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        services = self._services
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        yield gauge("paperdb_connections", "Open connections", services.open_connections())
        yield gauge("paperdb_live_connections", "WebSockets and event streams", services.live_connections())
        queries, residual = services.hub.queries
        yield gauge("paperdb_live_queries", "Distinct live queries", queries)
        yield gauge("paperdb_residual_queries", "Live queries that no index finds", residual)
        yield counter("paperdb_commits", "Transactions committed", services.store.commits)
        yield counter("paperdb_operations", "Writes requested, done or refused", services.store.operations)
        yield counter("paperdb_changes", "Changes published", services.hub.published_changes)
        yield counter(
            "paperdb_deliveries", "Buffers of events offered to live subscribers", services.hub.deliveries
        )


def metrics_text(services: Services) -> bytes:
    """All metrics, in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Totals(services))
    return generate_latest(registry)
