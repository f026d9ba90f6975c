"""What a scenario yields, and how large it runs. Nothing is measured here."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """A row's place in the chart: on `line` of the panel `axis`, at `x`."""

    axis: str
    line: str
    x: float


@dataclass
class Row:
    """One line of the table. `samples` are in `unit`; the table shows their median and their middle half.

    `ratio` is to the row named `baseline`, measured in the same period. A row without samples has a `note`
    instead.
    """

    name: str
    samples: list[float]
    unit: str
    baseline: str = ""
    ratio: float | None = None
    budget: str = ""
    note: str = ""
    point: Point | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def middle_half(self) -> tuple[float, float] | None:
        if len(self.samples) < 4:
            return None
        low, _, high = statistics.quantiles(self.samples, n=4)
        return low, high


@dataclass(frozen=True)
class Scale:
    """How large a scenario runs: for a figure, for a rough look, or only to show that the scenario works."""

    name: str
    level: int

    def __call__(self, full: T, quick: T, tiny: T) -> T:
        return (full, quick, tiny)[self.level]


FULL = Scale("full", 0)
QUICK = Scale("quick", 1)
TINY = Scale("tiny", 2)

Scenario = Callable[[Scale], Iterator[Row]]


def ratio(ours: list[float], baseline: list[float]) -> float:
    return statistics.median(ours) / statistics.median(baseline)


def percentile(samples: list[float], percent: int) -> float:
    return statistics.quantiles(samples, n=100)[percent - 1] if len(samples) > 1 else samples[0]


def line(row: Row) -> str:
    """The row as text, without trailing space."""
    median = "" if row.median is None else _number(row.median)
    spread = "" if row.middle_half is None else " – ".join(map(_number, row.middle_half))
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    text = f"{row.name:62}{median:>10} {spread:>19}  {row.unit:12} {ratio:>6}  {row.budget:8}".rstrip()
    return f"{text}{'  (' + row.note + ')' if row.note else ''}"


HEAD = f"{'':62}{'median':>10} {'middle half':>19}  {'unit':12} {'ratio':>6}  budget"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}"
