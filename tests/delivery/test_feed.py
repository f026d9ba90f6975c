"""The feed: all in its lane have one position, also in the middle of a chunk. A member that cannot take all of
a chunk is put outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from paperdb_trio.delivery import feed as feed_module
from paperdb_trio.delivery.encodings import CURSOR
from paperdb_trio.delivery.feed import Chunk, Feed

CHUNK = Chunk(10, 12, b"data")


@dataclass
class Log:
    published: int = 10


@dataclass(eq=False)
class Member:
    """Takes what `take` says: a number of bytes, or an exception."""

    take: int | Exception = 4
    got: list[bytes] = field(default_factory=list)
    out: list[Any] = field(default_factory=list)

    def write(self, data: bytes) -> int:
        if isinstance(self.take, Exception):
            raise self.take
        self.got.append(data)
        return self.take

    def offer(self, chunk: Chunk, feed: Feed) -> None:
        raise AssertionError("the feed offers nothing itself")

    def look(self) -> None:
        raise AssertionError("the log has lost nothing")

    def settle(self) -> None:
        raise AssertionError("the hub settles")

    def put_out(self, chunk: Chunk, position: int, sent: int) -> None:
        self.out.append((chunk, position, sent))

    def broken(self) -> None:
        self.out.append("broken")


def in_lane(*members: Member, log: Log | None = None) -> Feed:
    """A feed whose members are in the lane, in this order."""
    feed = Feed((CURSOR, frozenset({None})), log or Log())
    for slot, member in enumerate(members):
        feed.add(member)
        assert feed.enter_lane(member, member.write) == slot
    return feed


def hand_out(feed: Feed, chunk: Chunk = CHUNK, between: Callable[[], None] = lambda: None) -> None:
    feed.begin(chunk)
    while feed.write_some():
        between()


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_each_member_gets_a_chunk_once(count: int) -> None:
    members = [Member() for _ in range(count)]
    feed = in_lane(*members)
    hand_out(feed)
    assert all(member.got == [b"data"] and not member.out for member in members)
    assert (len(feed), feed.outside) == (count, ())
    assert {feed.where(slot) for slot in range(count)} <= {12}


@pytest.mark.parametrize(
    ("take", "told"),
    [
        (BlockingIOError(), (CHUNK, 10, 0)),
        (0, (CHUNK, 10, 0)),
        (3, (CHUNK, 10, 3)),
        (-1, (CHUNK, 10, -1)),
        (BrokenPipeError(), "broken"),
        (ConnectionResetError(), "broken"),
    ],
    ids=["full", "blocked", "a part", "to be flushed", "gone", "reset"],
)
def test_a_member_that_cannot_take_a_chunk_is_put_outside_and_the_others_get_it_once(
    take: Any, told: Any
) -> None:
    """At each place in the lane, alone and in groups."""
    for bad in ({0}, {31}, {32}, {63}, {0, 1, 2}, {5, 40}, set(range(64))):
        members = [Member(take if n in bad else 4) for n in range(64)]
        feed = in_lane(*members)
        hand_out(feed)
        assert [n for n, member in enumerate(members) if member.out] == sorted(bad)
        assert all(members[n].out == [told] for n in bad)
        assert all(member.got == [b"data"] for n, member in enumerate(members) if n not in bad)
        assert set(feed.outside) == {members[n] for n in bad}
        assert len(feed) == 64
        for member in members:
            member.got.clear()
        hand_out(feed, Chunk(12, 13, b"data"))
        assert all(bool(member.got) is (n not in bad) for n, member in enumerate(members))


@pytest.mark.interpreted
def test_a_member_that_leaves_in_the_middle_of_a_chunk_knows_whether_it_had_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed_module, "STEP", 1)
    members = [Member() for _ in range(4)]
    feed = in_lane(*members)
    positions: list[int] = []

    def leave() -> None:
        if not positions:
            positions.extend([feed.leave_lane(0), feed.leave_lane(3), feed.where(1), feed.where(2)])

    hand_out(feed, between=leave)
    assert positions == [12, 10, 10, 10]
    assert [bool(member.got) for member in members] == [True, True, True, False]
    assert set(feed.outside) == {members[0], members[3]}
    assert feed.leave_lane(1) == feed.leave_lane(2) == 12
    assert set(feed.outside) == set(members)


def test_a_slot_is_used_again_by_one_member() -> None:
    first, second, third = Member(), Member(), Member()
    feed = in_lane(first, second)
    feed.leave_lane(0)
    feed.remove(first)
    feed.add(third)
    assert feed.enter_lane(third, third.write) == 0
    hand_out(feed)
    assert (first.got, second.got, third.got) == ([], [b"data"], [b"data"])
    assert (len(feed), feed.outside) == (2, ())


def test_the_lane_is_where_the_log_is_when_none_of_it_was_for_the_feed() -> None:
    log = Log()
    feed = in_lane(Member(), log=log)
    log.published = 20
    assert feed.where(0) == 20
