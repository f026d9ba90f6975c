"""What PostgreSQL does to find documents: what it sorts, and how much it sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from paperdb_trio.errors import ApiError
from paperdb_trio.store.paging import edge_text, parse_edge
from paperdb_trio.store.postgres import find as finding
from paperdb_trio.store.query import ask
from tests.postgres import Postgres
from tests.store.engines import InPostgres, OfPostgres

INDEXES = [["a"], ["a", "-b"]]


@pytest.fixture(scope="module")
def collection(postgres: Postgres) -> Iterator[OfPostgres]:
    """20 documents of 200 bytes."""
    engine = InPostgres(postgres)
    with engine.opened([{"a": n % 2, "b": n, "c": -n, "pad": "x" * 100} for n in range(20)], INDEXES) as of:
        assert isinstance(of, OfPostgres)
        yield of
    engine.close()


@pytest.mark.parametrize(
    ("filter", "sort", "sorts"),
    [
        ("{}", "", []),
        ("{}", "-", []),
        ("{}", "createdAt", []),
        ("{}", "-createdAt,-", []),
        ('{"a": 1}', "", []),
        ('{"a": {"gte": 0}}', "a", []),
        ('{"a": 1}', "-b", []),
        ('{"a": 1}', "b", ["Incremental Sort"]),
        ("{}", "c", ["Sort"]),
        ('{"a": {"in": [0, 1]}}', "-c", ["Sort"]),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_only_what_is_not_in_order_is_sorted_and_never_texts(
    collection: OfPostgres, filter: str, sort: str, sorts: list[str], later: bool
) -> None:
    question, of, edge = ask(filter, sort), collection.shelf, None
    plan = collection.run(finding.choose_plan(question, of))
    if later:
        page = collection.run(finding.find(plan, question, of, None, 3, 0, 2**20))
        edge = parse_edge(edge_text(sort, question, page.documents[-1], page.last), sort, question, of.id)
    (((tree,),),) = collection.explain(finding._page(plan, question, of, edge, 6, 0, 2**20))
    nodes = list(_nodes(tree["Plan"]))
    assert [node["Node Type"] for node in nodes if "Sort Key" in node] == sorts
    for node in nodes:
        if "Sort Key" in node:
            assert not any("data" in column and "json" not in column for column in node["Output"]), node
    wrong = {"Seq Scan", "Bitmap Heap Scan", "Hash Join", "Merge Join", "Gather", "Gather Merge"}
    assert not wrong & {node["Node Type"] for node in nodes}


def _nodes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for inner in tree.get("Plans", []):
        yield from _nodes(inner)


def test_page_is_refused_if_it_is_too_large_unless_it_is_one_document(collection: OfPostgres) -> None:
    question, of = ask(None), collection.shelf
    plan = collection.run(finding.choose_plan(question, of))
    sizes = [
        len(text) for text in collection.run(finding.find(plan, question, of, None, 3, 0, 2**20)).documents
    ]
    most = sum(sizes) + 2  # and two newlines between them
    page = collection.run(finding.find(plan, question, of, None, 3, 0, most))
    assert (len(page.documents), page.more) == (3, True)
    with pytest.raises(ApiError, match="larger than") as refused:
        collection.run(finding.find(plan, question, of, None, 3, 0, most - 1))
    assert (refused.value.status, refused.value.code) == (400, "RESULT_TOO_LARGE")
    assert len(collection.run(finding.find(plan, question, of, None, 1, 0, 10)).documents) == 1


def test_only_what_a_view_shows_counts(collection: OfPostgres) -> None:
    question, of = ask(None), collection.shelf
    plan = collection.run(finding.choose_plan(question, of))
    page = collection.run(finding.find(plan, question, of, None, 5, 0, 20, lambda data: data[:4]))
    assert page.documents == [b'{"_i'] * 5
    with pytest.raises(ApiError, match="larger than"):
        collection.run(finding.find(plan, question, of, None, 5, 0, 19, lambda data: data[:4]))


def test_explanation_counts_the_entries_of_the_plan(collection: OfPostgres) -> None:
    question, of = ask('{"a": {"in": [1, 7]}}'), collection.shelf
    plan = collection.run(finding.choose_plan(question, of))
    explained = collection.run(finding.explain(plan, question, of))
    assert (explained["index"], explained["looksAt"], explained["documents"]) == (("a",), 10, 20)
    assert json.dumps(explained)
