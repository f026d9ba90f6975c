"""`paperdb export` and `import`: an import restores an export exactly, and a bad line affects no other line."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperdb_trio.json_input import MAX_CONTAINERS, MAX_DEPTH
from paperdb_trio.model import new_id
from paperdb_trio.store.document_schema import parse_schema
from paperdb_trio.store.operations import Replace, SetSchema
from paperdb_trio.store.query import ask
from paperdb_trio.store.sqlite.file import connect
from paperdb_trio.store.sqlite.find import find, shelf
from paperdb_trio.store.transfer import Importer, ImportLines, Tally, parse_line
from tests.auth.commands import fails_here, run_here
from tests.conftest import Server
from tests.store.tools import (
    DATABASE,
    DOCUMENTS,
    MAX_BYTES,
    apply_all,
    committed,
    exactly,
    insert,
    inserting,
    new_file,
    rows,
    scratch,
    without_system_fields,
)

OLD = "2020-01-31T12:00:00.000Z"


def line(document: Any, collection: str = "c", **more: Any) -> bytes:
    return json.dumps({"database": "default", "collection": collection, "document": document, **more}).encode()


def import_text(data: Path, *lines: bytes, options: tuple[str, ...] = ()) -> Any:
    return run_here("import", *options, "--data", data, input=b"\n".join(lines))


def exported(data: Path, *options: str) -> list[dict[str, Any]]:
    done = run_here("export", *options, "--data", data)
    assert done.exit_code == 0, done.stderr
    return [json.loads(text) for text in done.stdout.split("\n") if text]


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.executable
def test_import_restores_an_export_exactly(data: Path, tmp_path: Path) -> None:
    """Also documents that are older than their collection's schema and do not satisfy it, and fields whose
    names have a meaning in an insert."""
    schema = {"properties": {"email": {"type": "string", "required": True, "unique": True}}}
    apply_all(
        data / "paperdb.sqlite",
        inserting({"_id": "old", "text": "é\n\u2028"}),
        Replace(DATABASE, "c", "odd", {"key": "k", "unique": ["n"], "n": 1e22}, None, MAX_BYTES),
        SetSchema(DATABASE, "c", parse_schema(schema)),
        inserting({"_id": "new", "email": "a@b"}),
        inserting({"_id": "old"}, "d"),
    )
    run_here("databases", "create", "second", "--plan", "free", "--data", data)
    import_text(data, line({"_id": "x"}), options=("--database", "second"))
    before = exported(data)
    assert [item.get("document", {}).get("_id") for item in before] == ["old", "odd", "new", None, "old", "x"]
    assert before[3] == {"database": "default", "collection": "c", "schema": schema}
    run_here("export", "--output", tmp_path / "out", "--data", data)

    other = tmp_path / "other"
    other.mkdir()
    new_file(other)
    run_here("databases", "create", "second", "--plan", "free", "--data", other)
    done = run_here("import", tmp_path / "out", "--data", other)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("5 documents inserted, 0 replaced, 0 unchanged, 1 schemas")
    assert exported(other) == before
    assert run_here("check", "--data", other).exit_code == 0
    (text,) = [
        text for (text,) in rows(other / "paperdb.sqlite", "SELECT json(data) FROM documents WHERE id='odd'")
    ]
    assert json.loads(text).keys() == {"_id", "key", "unique", "n", "createdAt", "updatedAt"}


@given(st.lists(DOCUMENTS, max_size=4), st.integers(1, 200))
def test_import_of_any_document_in_any_pieces_is_exact(
    shared_file: Path, documents: list[dict[str, Any]], size: int
) -> None:
    text = b"\n".join(line({"_id": str(n), **document}) for n, document in enumerate(documents))
    importer = Importer(database=None, replace=False, max_bytes=MAX_BYTES)
    pieces = (text[at : at + size] for at in range(0, len(text), size))
    operations = [operation for piece in pieces for operation in importer.feed(piece)]
    with scratch(shared_file) as tx:
        for operation in [*operations, *importer.end()]:
            tally = operation.apply(tx)
            assert tally is not None
            importer.tally.add(tally)
        assert importer.tally == Tally(inserted=len(documents))
        found = tx.connection.execute("SELECT json(data) FROM documents ORDER BY rowkey").fetchall()
        inserted = [insert(tx, {"_id": str(n), **document}, "d") for n, document in enumerate(documents)]
    assert [exactly(without_system_fields(data)) for (data,) in found] == [
        exactly(without_system_fields(written.data)) for written in inserted
    ]


def nested(levels: int) -> dict[str, Any]:
    return {"in": nested(levels - 1)} if levels > 1 else {}


@pytest.mark.executable
def test_documents_at_the_limits_can_be_imported_repeatedly(
    server: Server, data: Path, collection: str
) -> None:
    """Neither the line around a document nor the array of a bulk counts against the document's limits."""
    edges: list[dict[str, Any]] = [
        nested(MAX_DEPTH),
        {"in": [[]] * (MAX_CONTAINERS - 2)},
        {"in": "é" * ((1024 * 1024 - 200) // 2)},
        {"in": '\\\n"' * 170_000},
        {"": None, "key ": 1e308, "createdAt ": 10**308},
    ]
    for document in edges:
        server.insert(collection, document)
        for bulk in ([document], {"documents": [document]}):
            answer = server.request("POST", f"/{collection}/bulk", json=bulk).json()
            assert answer["inserted"] == 1, answer
        assert server.request("PUT", f"/{collection}/docs/{new_id()}", json=document).status_code == 201
    text = server.cli("export", "--collection", collection).encode()
    for directory, became in ((server.data, "unchanged"), (data, "inserted"), (data, "unchanged")):
        done = run_here("import", "--data", directory, input=text)
        assert (done.exit_code, done.stderr) == (0, ""), done.stdout
        assert re.search(rf"\b20 (documents )?{became}", done.stdout)
    assert run_here("export", "--data", data).stdout.encode() == text


def test_existing_documents_are_not_checked_against_current_rules(data: Path) -> None:
    """A newer schema, a lower limit and stricter rules for ids apply only to new documents."""
    required = parse_schema({"properties": {"n": {"required": True}, "d": {"default": 7}}})
    apply_all(
        data / "paperdb.sqlite",
        inserting({"_id": "old"}),
        inserting({"_id": "large", "n": "x" * 5000}),
        Replace(DATABASE, "c", "..", {}, None, MAX_BYTES),
        SetSchema(DATABASE, "c", required),
        inserting({"_id": "new", "n": 1}),
    )
    before = exported(data)
    lines = [json.dumps(item).encode() for item in before]
    for options in ((), ("--replace",)):
        done = import_text(data, *lines, options=("--max-document-bytes", "1024", *options))
        assert (done.exit_code, done.stderr) == (0, "")
        assert "0 documents inserted, 0 replaced, 4 unchanged, 1 schemas" in done.stdout
    assert exported(data) == before
    done = import_text(
        data,
        line({"_id": "old", "m": 1}),
        line({"_id": "large", "n": "y" * 5000}),
        line({"_id": ".", "n": 1}),
        options=("--max-document-bytes", "1024", "--replace"),
    )
    assert "line 1: Field 'n' is required" in done.stdout
    assert "line 2: The document is 5," in done.stdout
    assert "line 3: Invalid document id: '.'" in done.stdout


def test_schema_may_be_larger_than_a_document(data: Path) -> None:
    """Also if its line is read in two pieces."""
    schema = {"properties": {f"{n}": {"default": "x" * 300} for n in range(190)}}
    apply_all(data / "paperdb.sqlite", SetSchema(DATABASE, "c", parse_schema(schema)))
    text = run_here("export", "--data", data).stdout.encode()
    done = run_here("import", "--data", data, "--max-document-bytes", "1024", input=b"\n" * 40_000 + text)
    assert (done.exit_code, "1 schemas" in done.stdout) == (0, True), done


def test_lines_without_times_can_be_imported_again(data: Path) -> None:
    """The times and defaults that the first import filled in do not count as a difference."""
    apply_all(
        data / "paperdb.sqlite", SetSchema(DATABASE, "c", parse_schema({"properties": {"d": {"default": 7}}}))
    )
    lines = [line({"_id": "a", "n": 1}), line({"_id": "b", "createdAt": OLD}), line({"_id": "c", "d": 8})]
    assert "3 documents inserted" in import_text(data, *lines).stdout
    before = exported(data)
    done = import_text(data, *lines)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "0 documents inserted, 0 replaced, 3 unchanged" in done.stdout
    assert exported(data) == before


def test_byte_order_mark_before_the_first_line_is_ignored(data: Path, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text(line({"_id": "é"}).decode(), "utf-8-sig")
    assert run_here("import", tmp_path / "lines", "--data", data).exit_code == 0
    done = import_text(data, line({"_id": "a"}), b"\xef\xbb\xbf" + line({}))
    assert "line 2: Invalid JSON" in done.stdout  # it is invalid elsewhere


def test_export_is_narrowed_to_existing_names(data: Path) -> None:
    apply_all(data / "paperdb.sqlite", inserting({}, "a"), inserting({}, "b"), inserting({}, "c"))
    run_here("databases", "create", "empty", "--plan", "free", "--data", data)
    names = [item["collection"] for item in exported(data, "--collection", "a", "--collection", "c")]
    assert names == ["a", "c"]
    assert exported(data, "--database", "empty") == []
    for options in (["--collection", "x"], ["--database", "x"], ["--database", "empty", "--collection", "a"]):
        done = run_here("export", *options, "--data", data)
        fails_here(done, 1, options[-1])
        assert done.stdout == ""


def test_output_file_appears_whole_or_not_at_all(data: Path, tmp_path: Path) -> None:
    apply_all(data / "paperdb.sqlite", inserting({"_id": "a"}))
    target = tmp_path / "out"
    target.write_text("precious")
    fails_here(run_here("export", "--output", target, "--data", data), 9, "--force")
    fails_here(run_here("export", "--output", target, "--force", "--collection", "x", "--data", data), 1, "'x'")
    assert target.read_text() == "precious"
    assert run_here("export", "--output", target, "--force", "--data", data).exit_code == 0
    assert json.loads(target.read_text())["document"]["_id"] == "a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


# --- the lines of an import ----------------------------------------------------------------------


def test_import_keeps_times_and_fills_in_missing_ones(data: Path) -> None:
    done = import_text(data, line({"_id": "old", "createdAt": OLD, "updatedAt": OLD}), line({"n": 1}))
    assert done.exit_code == 0
    old, new = (item["document"] for item in exported(data))
    assert (old["createdAt"], old["updatedAt"]) == (OLD, OLD)
    assert len(new["_id"]) == 21
    assert new["createdAt"] == new["updatedAt"] > "2026"


def test_existing_document_is_refused_replaced_or_unchanged(data: Path) -> None:
    same, other = line({"_id": "a", "createdAt": OLD, "updatedAt": OLD}), line({"_id": "b", "n": 1})
    assert import_text(data, same, other).exit_code == 0
    done = import_text(data, same, line({"_id": "b", "n": 2}), line({"_id": "d"}))
    fails_here(done, 10, "1 lines were refused")
    assert "1 documents inserted, 0 replaced, 1 unchanged" in done.stdout
    assert "line 2: Another document with the id 'b' exists in 'c'" in done.stdout
    done = import_text(data, same, line({"_id": "b", "n": 2}), options=("--replace",))
    assert (done.exit_code, "0 documents inserted, 1 replaced, 1 unchanged" in done.stdout) == (0, True)
    log = rows(data / "paperdb.sqlite", "SELECT type FROM changes ORDER BY rowkey")
    assert [type for (type,) in log] == ["insert", "insert", "insert", "update"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", "Invalid JSON"),
        (b"[]", "Expected"),
        (b'{"collection": "c"}', "either 'document' or 'schema'"),
        (b'{"collection": "c", "document": {}, "schema": {}}', "either 'document' or 'schema'"),
        (b'{"collection": "c", "documents": {}}', "'documents'"),
        (b'{"collection": 1, "document": {}}', "strings"),
        (b'{"document": {}}', "strings"),
        (line({}, "a b"), "a b"),
        (line([]), "must be a JSON object"),
        (line({"_id": "a/b"}), "a/b"),
        (line({"_id": 5}), "Invalid document id: 5"),
        (line({"createdAt": "yesterday"}), "createdAt"),
        (line({"updatedAt": "2020-13-01T00:00:00.000Z"}), "updatedAt"),
        (line({"text": "x" * 2000}), "at most 1,500"),
        (line({}, database="nowhere"), "'nowhere'"),
        (b'{"collection": "c", "schema": {"n": 1}}', "Invalid schema"),
        (b'{"collection": "c", "schema": {"properties": {"n": {"unique": true}}}}', "Unique field"),
        (b"\xff", "Invalid JSON"),
    ],
)
def test_bad_line_is_refused_by_number_and_the_others_are_written(data: Path, bad: bytes, reason: str) -> None:
    good = [line({"n": 1}), b"", bad, line({"n": 1})]
    done = import_text(data, *good[:1], *good[3:], *good[:3], options=("--max-document-bytes", "1500"))
    fails_here(done, 10, "1 lines were refused")
    assert "line 5: " in done.stdout
    assert reason in done.stdout
    assert len(exported(data)) == 3


def test_import_obeys_the_schema_in_force(data: Path) -> None:
    schema = parse_schema({"properties": {"n": {"type": "number", "default": 7}, "u": {"unique": True}}})
    apply_all(data / "paperdb.sqlite", SetSchema(DATABASE, "c", schema))
    done = import_text(data, line({"_id": "a", "u": 1}), line({"n": "text"}), line({"u": 1}))
    fails_here(done, 10, "2 lines")
    assert "line 2: Field 'n' must be of type number" in done.stdout
    assert "line 3: Unique field violation" in done.stdout
    assert exported(data)[0]["document"]["n"] == 7


def test_too_long_line_stops_the_import_and_keeps_earlier_lines(data: Path) -> None:
    done = import_text(
        data, *[line({})] * 300, b"x" * 500_000, line({}), options=("--max-document-bytes", "1024")
    )
    fails_here(done, 10, "stopped", "Line 301")
    assert len(exported(data)) >= 250


def test_only_the_first_refusals_are_listed(data: Path) -> None:
    done = import_text(data, *[b"x"] * 1000)
    fails_here(done, 10, "1,000 lines")
    assert done.stdout.count("\n") == 21


def test_failed_export_on_a_full_disk_leaves_nothing(data: Path, small_disk: Path) -> None:
    apply_all(data / "paperdb.sqlite", *(inserting({"pad": "x" * 100_000}) for _ in range(200)))
    done = run_here("export", "--output", small_disk / "lines", "--data", data)
    fails_here(done, 6, f"Cannot write {small_disk}/lines: No space left on device")
    assert list(small_disk.iterdir()) == []
    done = run_here("export", "--output", small_disk / "none" / "lines", "--data", data)
    fails_here(done, 6, f"Cannot write {small_disk}/none/lines: No such file or directory")


def test_document_replaced_without_a_created_time_is_the_newest(file: Path) -> None:
    """It keeps its place, so that the collection is no longer in order of `createdAt`."""
    with committed(file) as tx:
        for n in range(5):
            tx.stamp = f"2020-01-01T00:00:0{n}.000Z"
            insert(tx, {"_id": str(n)})
    line = parse_line(1, b'{"collection": "c", "document": {"_id": "0", "new": true}}')
    apply_all(file, ImportLines([line], True, MAX_BYTES))
    with closing(connect(file, read_only=True)) as connection:
        of = shelf(connection, DATABASE, "c")
        assert of is not None
        (newest,) = find(connection, ask(None, "-createdAt"), of, None, 1, 0).documents
    assert json.loads(newest)["_id"] == "0"
