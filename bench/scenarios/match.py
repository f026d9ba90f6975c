"""What finding the queries costs that a change concerns, beside the server."""

from __future__ import annotations

from collections.abc import Iterator

from bench.audience import TEXT
from bench.machine import SERVER_CORE, on_core
from bench.match import FEW, KINDS, Load, change, memory
from bench.rows import Row, Scale, ratio
from paperdb_trio.match.query import query


def match(scale: Scale) -> Iterator[Row]:
    """The matcher alone: CPU per change with 10 and 10,000 queries of each kind; adding; memory of a query."""
    many, changes, rounds = scale(10_000, 10_000, 20), scale(500, 100, 5), scale(15, 5, 2)
    asked = [change(n % FEW, TEXT) for n in range(changes)]
    with on_core(SERVER_CORE):
        for kind, (budget, filter) in KINDS.items():
            few, most = Load(filter, FEW), Load(filter, many)
            some = asked if most.matcher.residual == 0 else asked[: max(len(asked) // 250, 1)]
            took: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                for load, times in zip((few, most), took, strict=True):
                    cost, events = load.probe(some)
                    times.append(cost)
            name = f"{kind}, {FEW} queries"
            yield Row(name, took[0], "µs/change")
            note = f"{events / len(some):,.0f} events"
            yield Row(f"{kind}, {many:,}", took[1], "µs/change", name, ratio(took[1], took[0]), budget, note)
            fresh = [query("c", filter(n)) for n in range(many, many + 100)]
            most.matcher._max_residual += len(fresh)
            coming = [most.come_and_go(fresh) for _ in range(rounds)]
            yield Row(f"{kind}, one more comes and goes", coming, "µs")
            yield Row(f"{kind}, memory of one", [memory(filter, min(many, 2000))], "bytes")
