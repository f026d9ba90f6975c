"""How cost grows."""

from __future__ import annotations

from collections.abc import Iterator

from bench.audience import measure
from bench.rows import Point, Row, Scale, ratio

AXES = {
    "subscribers": "subscribers of one collection",
    "collections": "collections, 1,000 subscribers",
    "bytes of text": "bytes of text, 1,000 subscribers",
}
LINES = (
    "bare loop of os.write",
    "PaperDB with inserts",
    "without inserts",
    "two workers: the busiest process",
)


def growth(scale: Scale) -> Iterator[Row]:
    """µs per delivery as subscribers, collections and documents grow, and with two workers; see --chart."""
    # Three services with 5,000 subscribers each: a process may have 20,000 open files.
    usual = scale(1000, 1000, 10)
    for subscribers in scale((100, 1000, 5000), (100, 1000, 4000), (4,)):
        yield from _rows(scale, "subscribers", subscribers, connections=subscribers)
    for collections in scale((1, 10, 100), (1, 10, 100), (5,)):
        yield from _rows(scale, "collections", collections, connections=usual, collections=collections)
    for size in scale((100, 1000, 10_000), (100, 1000, 10_000), (10_000,)):
        yield from _rows(scale, "bytes of text", size, connections=usual, size=size)


def _rows(
    scale: Scale, axis: str, x: int, *, connections: int, collections: int = 1, size: int = 100
) -> Iterator[Row]:
    rounds = scale(30, 8, 2)
    found = measure(connections, 1, rounds, text="x" * size, collections=collections, workers=True)
    name = f"{axis} {x:,}"
    for label, samples in zip(LINES, (found.bare, found.whole, found.net, found.busiest), strict=True):
        yield Row(
            f"{name}: {label}",
            samples,
            "µs/delivery",
            "" if label == LINES[0] else f"{name}: {LINES[0]}",
            None if label == LINES[0] else ratio(samples, found.bare),
            point=Point(AXES[axis], label, x),
        )
