"""Live lists at moments that a real server meets by chance."""

from __future__ import annotations

import pytest

from paperdb_trio import ConnectionState, create_client
from paperdb_trio.client import backoff
from paperdb_trio.client.status import StatusBoard
from paperdb_trio.client.types import Status
from tests.client.harness import Peer, any_token, eventually, faked


async def test_a_list_is_live_only_when_it_shows_what_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is live when the last change has come, and the list when it has taken that in."""
    monkeypatch.setattr(backoff, "MAX_DELAY", 0.1)

    async def subscribed(peer: Peer, head: int) -> None:
        await peer.say(type="ready", seq=head)
        await peer.subscribed(5, query="q")

    async def script(peer: Peer) -> None:
        await subscribed(peer, 5)
        await peer.say(type="snapshot", query="q", seq=5, documents=[], last=True)
        await peer.ws.aclose(1012)

    async def then(peer: Peer) -> None:
        await subscribed(peer, 20)
        for seq in range(6, 21):
            await peer.say(type="insert", collection="a", query="q", seq=seq, data={"_id": str(seq)})
        await peer.closed()

    seen: list[int] = []
    publish = StatusBoard.publish

    def noted(board: StatusBoard, status: Status) -> None:
        if board is live._board and status.state is ConnectionState.LIVE:
            seen.append(len(live.documents))
        publish(board, status)

    monkeypatch.setattr(StatusBoard, "publish", noted)
    async with faked(script, then) as fake, create_client(base_url=fake.url, get_token=any_token) as db:
        live = db.collection("a").live()
        async with live:
            await eventually(lambda: len(seen) == 2)
        assert seen == [0, 15]
