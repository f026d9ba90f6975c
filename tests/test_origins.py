"""Allowed web origins, and settings that are refused because no browser sends such an origin."""

from __future__ import annotations

import pytest

from paperdb_trio.config import Settings
from paperdb_trio.errors import StartupError
from tests.conftest import StartServer
from tests.realtime.raw import Raw, handshake


def test_wildcard_allows_all_hosts_below_one(start_server: StartServer) -> None:
    server = start_server(
        "--allowed-origins", "https://*.example.com,capacitor://localhost,file://,app://-,null"
    )
    for origin, allowed in {
        "https://a.example.com": True,
        "https://a-b.c.example.com": True,
        "capacitor://localhost": True,
        "null": True,
        "file://": True,
        "app://-": True,
        "https://example.com": False,
        "https://.example.com": False,
        "https://a.example.com.evil": False,
        "https://evil.com/.example.com": False,
        "https://evilexample.com": False,
        "http://a.example.com": False,
        "https://a.example.com:8443": False,
        "HTTPS://A.EXAMPLE.COM": False,
    }.items():
        response = server.request("GET", "/c/docs", headers={"Origin": origin})
        found = response.headers.get("access-control-allow-origin")
        assert found == (origin if allowed else None), origin
        target = f"/?token={server.token('c')}"
        with Raw(server) as raw:
            raw.send(handshake(server, target, f"Origin: {origin}"))
            assert raw.head()[0] == (101 if allowed else 403), origin


@pytest.mark.parametrize(
    ("origin", "meant"),
    [
        ("https://a.example/", "https://a.example"),
        ("https://a.example/app?x#y", "https://a.example"),
        ("https://A.example", "https://a.example"),
        ("HTTPS://a.example", "https://a.example"),
        ("a.example", "https://a.example"),
        ("localhost:3000", "https://localhost:3000"),
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:80", "http://a.example"),
        ("https://*", None),
        ("https://a.*.example", None),
        ("https://*example.com", None),
        ("*.example.com", "https://*.example.com"),
        ("https://bücher.example", None),
        ("https://user@a.example", None),
        ("https://", None),
    ],
)
def test_origin_that_no_browser_sends_is_refused_at_start(origin: str, meant: str | None) -> None:
    for text in (origin, f"https://b.example, {origin}"):
        with pytest.raises(StartupError) as refused:
            Settings(allowed_origins=text)
        assert refused.value.exit_code == 2
        assert repr(origin) in str(refused.value)
        hint = None if meant is None else f"did you mean '{meant}'?"
        assert str(refused.value).endswith(hint or "no default port")
