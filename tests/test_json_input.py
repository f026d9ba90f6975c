"""JSON in: accepted and refused texts, and the splitting of an array of documents."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperdb_trio import json_input
from paperdb_trio.errors import ApiError
from paperdb_trio.json_input import (
    MAX_CONTAINERS,
    MAX_DEPTH,
    decode,
    parse_document,
    parse_json,
    split_items,
)
from tests.conftest import refusal

TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(JSON, st.booleans())
def test_json_is_decoded_as_by_pythons_own_decoder(value: object, ascii: bool) -> None:
    assert json.dumps(parse_json(json.dumps(value, ensure_ascii=ascii).encode())) == json.dumps(value)


NOISE = st.text(alphabet='{}[]",:0123456789eE+-.\\u\0tfn ', max_size=40).map(str.encode)


@settings(max_examples=300)
@given(st.binary(max_size=40) | NOISE)
def test_invalid_json_is_always_a_400(data: bytes) -> None:
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
def test_json_within_the_limits_passes(text: str) -> None:
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
def test_json_beyond_the_limits_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_json(text.encode())
    assert (refused.value.status, refused.value.code) == (400, "INVALID_JSON")


@pytest.mark.parametrize("before", [0, 1, 307, 308, 309, 310, 617, 618, 1000])
@pytest.mark.parametrize("after", [0, 1, 308, 309])
def test_number_beyond_a_double_is_found_anywhere(before: int, after: int) -> None:
    def body(digits: int) -> bytes:
        return b'{"a":"%b","n":%b,"z":"%b"}' % (b"x" * before, b"1" * digits, b"y" * after)

    with pytest.raises(ApiError, match="Number out of range"):
        parse_json(body(310))
    assert parse_json(body(309))["n"] == int("1" * 309)


# --- numbers that msgspec decodes slowly ---------------------------------------------------------

EXTREMES = st.builds(
    "{}{}{}{}".format,
    st.integers(-999, 999) | st.floats(-99, 99),
    st.sampled_from(["e", "E"]),
    st.sampled_from(["", "+", "-", "-0"]),
    st.integers(0, 400),
).filter(lambda literal: literal.count("e") + literal.count("E") == 1)


@settings(max_examples=300)
@given(st.lists(EXTREMES, min_size=1), st.booleans())
def test_numbers_are_decoded_as_by_pythons_own_decoder(literals: list[str], many: bool) -> None:
    text = f"[{','.join(literals * (1000 if many else 1))}]"
    value = json.loads(text)
    if any(number in (float("inf"), float("-inf")) for number in value):
        with pytest.raises(ApiError, match="out of range") as refused:
            parse_json(text.encode())
        assert refused.value.code == "INVALID_JSON"
    else:
        assert list(map(repr, parse_json(text.encode()))) == list(map(repr, value))


@pytest.mark.interpreted
@pytest.mark.parametrize("literal", ["1e308", "1E308", "1e+308", "-1.7976931348623157E+308", "5e-324"])
def test_many_slow_numbers_are_not_left_to_msgspec(monkeypatch: pytest.MonkeyPatch, literal: str) -> None:
    monkeypatch.setattr(json_input, "_decode_any", None)
    text = f"[{','.join([literal] * 1000)}]"
    assert decode(text.encode()) == json.loads(text)


# --- a document, and arrays of them --------------------------------------------------------------


def test_document_that_cannot_fit_is_refused_before_decoding() -> None:
    for text in (b'{"a":"%b"}' % (b"x" * 100), b"x" * 101, b"[" * 101):
        with pytest.raises(ApiError) as refused:
            parse_document(text, 100)
        assert (refused.value.status, refused.value.code) == (413, "DOCUMENT_TOO_LARGE")


def test_escaped_backslash_before_a_u_is_not_an_escape() -> None:
    text = b'{"a":"%b"}' % (b"\\\\u" * 100)
    assert parse_document(text, len(text)) == json.loads(text)
    with pytest.raises(ApiError) as refused:
        parse_document(text, len(text) - 1)
    assert refused.value.code == "DOCUMENT_TOO_LARGE"


@pytest.mark.parametrize("unit", ["[]", "{}", "[[]]", '{"a":{}}'])
def test_brackets_in_strings_do_not_count_as_arrays_and_objects(unit: str) -> None:
    containers = unit.count("[") + unit.count("{")
    fits = (MAX_CONTAINERS - 1) // containers
    text = f'["{"[{" * MAX_CONTAINERS}","\\"[","\\\\",{",".join([unit] * fits)}'
    assert len(parse_json((text + "]").encode())) == fits + 3
    with pytest.raises(ApiError, match="arrays and objects") as refused:
        parse_json(f"{text},{unit}]".encode())
    assert refused.value.code == "INVALID_JSON"


@given(JSON, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_whitespace_and_escapes_do_not_count(value: object, ascii: bool, indent: int | str | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii, indent=indent).replace("/", "\\/").encode()
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    assert json.dumps(parse_document(text, size)) == json.dumps(value)


@given(st.lists(JSON, max_size=5), st.booleans(), st.sampled_from([None, 1]))
def test_array_is_split_into_its_elements(values: list[object], wrapped: bool, indent: int | None) -> None:
    body = json.dumps({"documents": values} if wrapped else values, indent=indent).encode()
    parts = split_items(b" \n" + body, 5, "documents")
    assert [json.dumps(parse_document(part, 10_000)) for part in parts] == list(map(json.dumps, values))


@pytest.mark.parametrize("unit", ["{}", "0", "[]", '""'])
def test_one_document_too_many_is_refused_and_so_are_millions(unit: str) -> None:
    assert len(split_items(f"[{','.join([unit] * 5)}]".encode(), 5, "documents")) == 5
    for count in (6, 3_000_000):
        with pytest.raises(ApiError) as refused:
            split_items(f"[{','.join([unit] * count)}]".encode(), 5, "documents")
        assert (refused.value.status, refused.value.code) == (413, "TOO_MANY_DOCUMENTS")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"[1,]",
        b"[1 2]",
        b"[1]x",
        b'[{"a":1]',
        b'{"documents":[1}',
        b'{"documents":[1],"documents":}',
        b'{"documents":[1},"documents":[]}',
        b"[" + b"1," * 20 + b"}",
        b"[" * 100_000,
        b'["\\ud800]',
    ],
)
def test_array_broken_anywhere_is_a_400(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        split_items(body, 5, "documents")
    assert (refused.value.status, refused.value.code) == (400, "INVALID_JSON")


def test_element_is_checked_when_it_is_parsed() -> None:
    deep = b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1)
    for part in (b'"\xff"', b'"\\u0000"', deep, b"1e309"):
        (text,) = split_items(b"[%b]" % part, 5, "documents")
        assert isinstance(text, bytes)
        with pytest.raises(ApiError) as refused:
            parse_document(text, 10_000)
        assert refused.value.code == "INVALID_JSON"
