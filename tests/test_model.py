"""Names, ids, timestamps, JSON in and events out: the parts that need neither file nor socket."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperdb_trio.errors import ApiError
from paperdb_trio.model import (
    MAX_DEPTH,
    Change,
    check_collection,
    check_id,
    cursor_event,
    document_bytes,
    new_id,
    parse_json,
    plain_event,
    timestamp,
)

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
def test_a_timestamp_is_utc_with_milliseconds_and_never_ahead(seconds: float, text: str) -> None:
    assert timestamp(seconds) == text


@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_timestamps_sort_as_their_times_do(one: float, two: float) -> None:
    earlier, later = sorted((one, two))
    assert timestamp(earlier) <= timestamp(later)
    assert datetime.fromisoformat(timestamp(one)).tzinfo == UTC


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a/b", "é", "a\n", "\n", "a" * 65, "a\0", "Ａ", "٣", "*"])
def test_a_wrong_collection_name_is_refused(name: str) -> None:
    with pytest.raises(ApiError) as refused:
        check_collection(name)
    assert refused.value.code == "INVALID_COLLECTION"
    assert refused.value.message.isprintable()


def refusal(check: Callable[[], object]) -> ApiError | None:
    try:
        check()
    except ApiError as error:
        return error
    return None


@given(st.text())
def test_a_refused_id_is_shown_short_and_printable(id: str) -> None:
    error = refusal(lambda: check_id(id))
    if error is None:
        assert 0 < len(id) <= 128
        assert "/" not in id
    else:
        assert error.status == 400
        assert len(error.message) < 300
        assert error.message.isprintable()


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(JSON, st.booleans())
def test_json_is_read_as_pythons_own_reader_reads_it(value: object, ascii: bool) -> None:
    assert json.dumps(parse_json(json.dumps(value, ensure_ascii=ascii).encode())) == json.dumps(value)


NOISE = st.text(alphabet='{}[]",:0123456789eE+-.\\u\0tfn ', max_size=40).map(str.encode)


@settings(max_examples=300)
@given(st.binary(max_size=40) | NOISE)
def test_whatever_is_no_json_is_a_400_and_nothing_else(data: bytes) -> None:
    error = refusal(lambda: parse_json(data))
    if error is None:
        assert json.dumps(json.loads(data)) == json.dumps(parse_json(data))
    else:
        assert (error.status, error.code) == (400, "INVALID_JSON")


@pytest.mark.parametrize(
    "text",
    [
        "[" * MAX_DEPTH + "]" * MAX_DEPTH,
        '{"a":' * (MAX_DEPTH - 1) + "{}" + "}" * (MAX_DEPTH - 1),
        "[" + "[],{}," * 1000 + "1]",
        json.dumps("[" * 1000),
        "1.7976931348623157e308",
        "-1.7976931348623157e308",
        "1" + "0" * 308,
        "5e-324",
        "1e-400",
        json.dumps("1" * 400),
        '"\\\\u0000"',
        '"\\ud83d\\ude00"',
    ],
)
def test_what_is_within_the_limits_passes(text: str) -> None:
    assert parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        '{"a":[' * 33 + "]}" * 33,
        "1" + "0" * 309,
        "-18" + "0" * 307,
        "1.8e308",
        '"\\u0000"',
        '{"\\u0000": 1}',
        '"\\ud800"',
        '"\\udc00x"',
    ],
)
def test_what_is_beyond_the_limits_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_json(text.encode())
    assert (refused.value.status, refused.value.code) == (400, "INVALID_JSON")


def test_a_document_is_one_line_with_the_servers_fields_around_its_own() -> None:
    data = document_bytes("a", {"text": "x\ny\u2028", "n": 1}, STAMP, STAMP, 1000)
    assert b"\n" not in data
    assert list(json.loads(data)) == ["_id", "text", "n", "createdAt", "updatedAt"]


def test_the_limit_of_a_documents_size_is_in_bytes_not_characters() -> None:
    size = len(document_bytes("a", {"é": "é"}, STAMP, STAMP, 1000))
    assert document_bytes("a", {"é": "é"}, STAMP, STAMP, size)
    with pytest.raises(ApiError) as refused:
        document_bytes("a", {"é": "é"}, STAMP, STAMP, size - 1)
    assert refused.value.status == 413


def test_events_have_exactly_the_documented_shape() -> None:
    change = Change(7, 42, "update", "notes", "a", b'{"_id":"a"}')
    assert json.loads(plain_event(change)) == {"type": "update", "collection": "notes", "data": {"_id": "a"}}
    assert json.loads(cursor_event(change)) == {"seq": 42, **json.loads(plain_event(change))}


@pytest.mark.parametrize("before", [0, 1, 307, 308, 309, 310, 617, 618, 1000])
@pytest.mark.parametrize("after", [0, 1, 308, 309])
def test_a_number_beyond_a_double_is_found_wherever_it_stands(before: int, after: int) -> None:
    def body(digits: int) -> bytes:
        return b'{"a":"%b","n":%b,"z":"%b"}' % (b"x" * before, b"1" * digits, b"y" * after)

    with pytest.raises(ApiError, match="Number out of range"):
        parse_json(body(310))
    assert parse_json(body(309))["n"] == int("1" * 309)
