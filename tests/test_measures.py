"""Figures as plain data: histograms count as Prometheus wants it, families survive a socket and join, and what
is rendered cannot be forged by a label."""

from __future__ import annotations

import msgspec

from paperdb_trio.measures import Family, Histogram, Sample, counter, histogram, joined
from paperdb_trio.rest.metrics import text


def test_a_bucket_counts_all_values_up_to_its_bound() -> None:
    seen = Histogram((1, 2, 4))
    for value in (0, 1, 1.5, 2, 3, 4, 4.01, 100):
        seen.observe(value)
    samples = [*seen.samples({"kind": "get"})]
    assert [(sample.labels.get("le"), sample.value) for sample in samples] == [
        ("1.0", 2),
        ("2.0", 4),
        ("4.0", 6),
        ("+Inf", 8),
        (None, 115.51),
        (None, 8),
    ]
    assert [sample.suffix for sample in samples[-2:]] == ["_sum", "_count"]
    assert all(sample.labels["kind"] == "get" for sample in samples)


def test_families_of_processes_join_behind_a_socket() -> None:
    seconds = Histogram((1,))
    seconds.observe(0.5)
    one = [counter("a_total", "A", 1), histogram("b_seconds", "B", seconds)]
    two = [counter("a_total", "A", 2), Family("c", "gauge", "C", [Sample({"part": "x"}, 3)])]
    sent = [msgspec.json.decode(msgspec.json.encode(part), type=list[Family]) for part in (one, two)]
    assert sent == [one, two]
    both = joined({"1": sent[0], "2": sent[1]}, "worker")
    assert [family.name for family in both] == ["a_total", "b_seconds", "c"]
    assert both[0].samples == [Sample({"worker": "1"}, 1), Sample({"worker": "2"}, 2)]
    assert both[2].samples == [Sample({"part": "x", "worker": "2"}, 3)]
    assert one[0].samples == [Sample({}, 1)]


async def test_no_label_breaks_out_of_its_quotes() -> None:
    rendered = await text([Family("a", "gauge", "A", [Sample({"name": 'x"} 1\nb{c="\\'}, 2)])])
    assert rendered.decode() == '# HELP a A\n# TYPE a gauge\na{name="x\\"} 1\\nb{c=\\"\\\\"} 2.0\n'
