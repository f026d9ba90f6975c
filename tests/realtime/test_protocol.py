"""The client's messages: valid actions, invalid ones and the reason; the replies' text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperdb_trio.errors import ApiError
from paperdb_trio.realtime.protocol import Action, BadMessage, CloseCode, error_reply, parse_action, reply


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ({"action": "ping"}, Action("ping", {}, None)),
        ({"action": "ping", "ref": 1}, Action("ping", {}, 1)),
        ({"action": "ping", "ref": "x" * 128}, Action("ping", {}, "x" * 128)),
        ({"action": "subscribe", "collection": "a", "ref": "r"}, Action("subscribe", {"collection": "a"}, "r")),
        ({"action": "unsubscribe", "collection": "a"}, Action("unsubscribe", {"collection": "a"}, None)),
        ({"action": "auth", "token": "t"}, Action("auth", {"token": "t"}, None)),
        ({"ref": None, "action": "ping"}, Action("ping", {}, None)),
    ],
)
def test_action_is_parsed(message: dict[str, Any], action: Action) -> None:
    assert parse_action(json.dumps(message).encode()) == action


@pytest.mark.parametrize(
    ("text", "code", "ref"),
    [
        ("", "INVALID_JSON", None),
        ("{", "INVALID_JSON", None),
        ('{"action": "ping"} x', "INVALID_JSON", None),
        ("[]", "INVALID_MESSAGE", None),
        ("{}", "UNKNOWN_ACTION", None),
        ('{"action": "PING", "ref": 1}', "UNKNOWN_ACTION", 1),
        ('{"action": null, "ref": "r"}', "UNKNOWN_ACTION", "r"),
        ('{"action": "subscribe", "ref": 1}', "INVALID_MESSAGE", 1),
        ('{"action": "subscribe", "collection": null, "ref": 1}', "INVALID_MESSAGE", 1),
        ('{"action": "auth", "ref": 1}', "INVALID_MESSAGE", 1),
        ('{"action": "ping", "ref": []}', "INVALID_MESSAGE", None),
        ('{"action": "subscribe", "collection": "a", "after": 5, "ref": 1}', "INVALID_MESSAGE", 1),
        ('{"action": "subscribe", "collection": "a", "since": -1, "ref": 1}', "INVALID_MESSAGE", 1),
        ('{"action": "subscribe", "collection": "a", "since": true, "ref": 1}', "INVALID_MESSAGE", 1),
        ('{"action": "subscribe", "collection": "a", "since": 1e3, "ref": 1}', "INVALID_MESSAGE", 1),
        ('{"action": "subscribe", "collection": "a", "filter": [], "ref": 1}', "INVALID_MESSAGE", 1),
        ('{"action": "subscribe", "collection": "a", "select": "b", "ref": 1}', "INVALID_MESSAGE", 1),
        ('{"action": "subscribe", "collection": "a", "snapshot": 1, "ref": 1}', "INVALID_MESSAGE", 1),
        ('{"action": "unsubscribe", "query": 7, "ref": 1}', "INVALID_MESSAGE", 1),
        ('{"action": "ping", "collection": "a"}', "INVALID_MESSAGE", None),
        ('{"action": "ping", "ref": "' + "x" * 129 + '"}', "INVALID_MESSAGE", None),
    ],
)
def test_invalid_action_gets_a_reason_and_its_ref(text: str, code: str, ref: object) -> None:
    with pytest.raises(BadMessage) as bad:
        parse_action(text.encode())
    assert (bad.value.error.code, bad.value.ref) == (code, ref)


@given(
    st.one_of(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["action", "ref", "token"]), inner),
            max_leaves=8,
        ).map(json.dumps),
    )
)
def test_no_text_raises_other_errors_and_every_ref_can_be_echoed(text: str) -> None:
    try:
        ref = parse_action(text.encode(errors="surrogatepass")).ref
        response = reply("pong", ref)
    except BadMessage as bad:
        ref = bad.ref
        response = error_reply(bad.error, ref)
    assert json.loads(response).get("ref") == ref


def test_replies_have_a_ref_only_if_one_was_sent() -> None:
    assert json.loads(reply("subscribed", collection="a")) == {"type": "subscribed", "collection": "a"}
    assert json.loads(reply("pong", 0)) == {"type": "pong", "ref": 0}
    error = ApiError(403, "NOT_IN_TOKEN", "no")
    assert json.loads(error_reply(error, "r")) == {
        "type": "error",
        "code": "NOT_IN_TOKEN",
        "message": "no",
        "ref": "r",
    }


def test_close_codes_are_the_documented_ones() -> None:
    codes = {code.value for code in CloseCode} - {1000}
    assert codes <= {1001, 1003, 1007, 1009, 1011, 1012, 1013, 4400, 4401, 4403, 4408, 4410}
    assert {1003, 1012, 4400, 4401, 4403, 4408, 4410} <= codes
