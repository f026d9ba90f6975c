"""Figures of a running server: counted where things happen, as plain data when somebody asks.

Law: no I/O. Where things happen, a figure is an attribute that is a number, or a `Histogram`: no names and no
labels. A `Family` is plain data, which `msgspec` encodes, so that those of several processes can be joined.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""The buckets of each duration: from an fsync of a fast disk to a long poll."""


class Sample(NamedTuple):
    """`suffix` is what follows the name of the family: `_bucket`, `_sum` and `_count` of a histogram."""

    labels: dict[str, str]
    value: float
    suffix: str = ""


class Family(NamedTuple):
    """Named and typed as Prometheus does it. The unit is in the name, and `_total` in that of a counter."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    samples: list[Sample]


def counter(name: str, help: str, value: float) -> Family:
    return Family(name, "counter", help, [Sample({}, value)])


def gauge(name: str, help: str, value: float) -> Family:
    return Family(name, "gauge", help, [Sample({}, value)])


class Histogram:
    """How often a value was at most each of `bounds`. One thread observes, any may read."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    def add(self, other: Histogram) -> None:
        """Take over what another one of the same bounds counted."""
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self._sum += other._sum

    def samples(self, labels: Mapping[str, str] | None = None) -> Iterator[Sample]:
        own, total = dict(labels or {}), 0
        bounds = (*(repr(float(bound)) for bound in self._bounds), "+Inf")
        for bound, count in zip(bounds, tuple(self._counts), strict=True):
            total += count
            yield Sample({**own, "le": bound}, total, "_bucket")
        yield Sample(own, self._sum, "_sum")
        yield Sample(own, total, "_count")


def histogram(name: str, help: str, of: Histogram) -> Family:
    return Family(name, "histogram", help, [*of.samples()])


def joined(processes: Mapping[str, Sequence[Family]], label: str) -> list[Family]:
    """The families of several processes: each sample has the name of its process as another label."""
    families: dict[str, Family] = {}
    for process, own in processes.items():
        for name, type, help, samples in own:
            family = families.setdefault(name, Family(name, type, help, []))
            for labels, value, suffix in samples:
                family.samples.append(Sample({**labels, label: process}, value, suffix))
    return list(families.values())
