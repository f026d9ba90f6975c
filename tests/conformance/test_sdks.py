"""The SDKs against a server that sends what it likes: each connection is reported or made again, and the client
that went through all of it gets its event in the end. Nothing crashes, hangs or is left behind."""

from __future__ import annotations

import json
import subprocess
from importlib import resources
from pathlib import Path

import pytest
import trio

from paperdb_trio import Event, PaperDBError, create_client
from paperdb_trio.client import backoff
from tests.conformance.hostile import EVENT, TURNS, hostile_server
from tests.conftest import ENVIRONMENT, need
from tests.web.npm import WS
from tests.web.tools import EITHER_WEBSOCKET, current_node, node_tool

SECONDS = 60
SDK = str(resources.files("paperdb_trio.web") / "sdk/paperdb.js")
LISTENER = str(Path(__file__).with_name("listener.mjs"))


@EITHER_WEBSOCKET
def test_the_javascript_sdk_survives_what_a_server_sends(ws: bool) -> None:
    node = need("node") if ws else current_node()
    module = str(node_tool(WS) / "wrapper.mjs") if ws else ""
    with hostile_server() as server:
        command = [node, LISTENER, SDK, server.url, module]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=ENVIRONMENT
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == EVENT
    assert server.connections == TURNS


async def test_the_python_sdk_survives_what_a_server_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_DELAY", 0.0)
    with hostile_server() as server, trio.fail_after(SECONDS):
        event = await listen(server.url)
    assert event == Event(**EVENT)
    assert server.connections == TURNS


async def listen(url: str) -> Event:
    """The first event, however often the subscription ends before it."""

    async def get_token(*_: object) -> str:
        return "a.token"

    async with create_client(base_url=url, get_token=get_token) as db:
        while True:
            try:
                async with db.realtime.subscribe("x") as events:
                    return await anext(events)
            except PaperDBError:
                pass
