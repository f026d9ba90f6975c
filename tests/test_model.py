"""Names, ids, timestamps, documents and events, without files or sockets."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperdb_trio.delivery.encodings import cursor_event, plain_event
from paperdb_trio.errors import ApiError
from paperdb_trio.model import (
    Change,
    check_collection,
    check_id,
    document_bytes,
    encode,
    new_id,
    reverse_patch,
    timestamp,
    version_before,
)
from tests.conftest import refusal
from tests.store.tools import VALUES, exactly

STAMP = "2024-01-01T00:00:00.000Z"


def test_ids_use_all_64_characters_of_the_url_safe_alphabet() -> None:
    ids = [new_id() for _ in range(500)]
    assert len(set(ids)) == 500
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{21}", id) for id in ids)
    assert len(set("".join(ids))) == 64


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1.5, "1970-01-01T00:00:01.500Z"),
        (951782400, "2000-02-29T00:00:00.000Z"),
        (4102444799.9996, "2099-12-31T23:59:59.999Z"),
    ],
)
def test_timestamp_is_utc_with_milliseconds_and_never_ahead(seconds: float, text: str) -> None:
    assert timestamp(seconds) == text


@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_timestamps_sort_as_their_times_do(one: float, two: float) -> None:
    earlier, later = sorted((one, two))
    assert timestamp(earlier) <= timestamp(later)
    assert datetime.fromisoformat(timestamp(one)).tzinfo == UTC


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a/b", "é", "a\n", "\n", "a" * 65, "a\0", "Ａ", "٣", "*"])
def test_wrong_collection_name_is_refused(name: str) -> None:
    with pytest.raises(ApiError) as refused:
        check_collection(name)
    assert refused.value.code == "INVALID_COLLECTION"
    assert refused.value.message.isprintable()


@given(st.text())
def test_refused_id_is_quoted_short_and_printable(id: str) -> None:
    error = refusal(lambda: check_id(id))
    if error is None:
        assert 0 < len(id) <= 128
        assert "/" not in id
    else:
        assert error.status == 400
        assert len(error.message) < 300
        assert error.message.isprintable()


def test_document_is_one_line_with_the_servers_fields_around_its_own() -> None:
    data = document_bytes("a", encode({"text": "x\ny\u2028", "n": 1}), STAMP, STAMP, 1000)
    assert b"\n" not in data
    assert list(json.loads(data)) == ["_id", "text", "n", "createdAt", "updatedAt"]


def test_document_limit_is_in_bytes_not_characters() -> None:
    size = len(document_bytes("a", encode({"é": "é"}), STAMP, STAMP, 1000))
    assert document_bytes("a", encode({"é": "é"}), STAMP, STAMP, size)
    with pytest.raises(ApiError) as refused:
        document_bytes("a", encode({"é": "é"}), STAMP, STAMP, size - 1)
    assert refused.value.status == 413


def test_events_have_exactly_the_documented_shape() -> None:
    change = Change(7, 42, "update", "notes", "a", b'{"_id":"a"}')
    assert json.loads(plain_event(change)) == {"type": "update", "collection": "notes", "data": {"_id": "a"}}
    assert json.loads(cursor_event(change)) == {"seq": 42, **json.loads(plain_event(change))}
    change = Change(7, 42, "update", "notes", "a", b'{"_id":"a"}', b"[{},[]]", 41)
    assert json.loads(cursor_event(change)) == {"seq": 42, "txn": 41, **json.loads(plain_event(change))}


DOCUMENTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


@given(DOCUMENTS, DOCUMENTS)
def test_reverse_patch_restores_the_old_version(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = json.loads(reverse_patch(old, new))
    assert exactly(version_before(new, patch)) == exactly(old)
    assert not [name for name in patch[0] if name in new and exactly(new[name]) == exactly(old[name])]
