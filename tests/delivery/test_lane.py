"""The lane: one position for all in it, also in the middle of a chunk; whoever cannot take all leaves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from paperdb_trio.delivery import lane as lane_module
from paperdb_trio.delivery.lane import Chunk, Lane

CHUNK = Chunk(10, 12, b"data")


@dataclass
class Log:
    published: int = 10


@dataclass
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

    def put_out(self, chunk: Chunk, position: int, sent: int) -> None:
        self.out.append((chunk, position, sent))

    def broken(self) -> None:
        self.out.append("broken")


def lane_of(*members: Member) -> Lane:
    lane = Lane(Log())
    for member in members:
        lane.join(member, member.write)
    return lane


def hand_out(lane: Lane, chunk: Chunk = CHUNK, between: Callable[[], None] = lambda: None) -> None:
    lane.begin(chunk)
    while lane.write_some():
        between()


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_everybody_gets_it_once(count: int) -> None:
    members = [Member() for _ in range(count)]
    lane = lane_of(*members)
    hand_out(lane)
    assert all(member.got == [b"data"] and not member.out for member in members)
    assert len(lane) == count
    assert {lane.where(slot) for slot in range(count)} <= {12}


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
def test_whoever_cannot_take_it_leaves_and_the_others_get_it_once(take: Any, told: Any) -> None:
    """At each place in the lane, and several of them."""
    for bad in ({0}, {31}, {32}, {63}, {0, 1, 2}, {5, 40}, set(range(64))):
        members = [Member(take if n in bad else 4) for n in range(64)]
        lane = lane_of(*members)
        hand_out(lane)
        assert [n for n, member in enumerate(members) if member.out] == sorted(bad)
        assert all(members[n].out == [told] for n in bad)
        assert all(member.got == [b"data"] for n, member in enumerate(members) if n not in bad)
        assert len(lane) == 64 - len(bad)
        for member in members:
            member.got.clear()
        hand_out(lane, Chunk(12, 13, b"data"))
        assert all(bool(member.got) is (n not in bad) for n, member in enumerate(members))


def test_who_leaves_in_the_middle_knows_whether_he_has_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "STEP", 1)
    members = [Member() for _ in range(4)]
    lane = lane_of(*members)
    positions: list[int] = []

    def leave() -> None:
        if not positions:
            positions.extend([lane.leave(0), lane.leave(3), lane.where(1), lane.where(2)])

    hand_out(lane, between=leave)
    assert positions == [12, 10, 10, 10]
    assert [bool(member.got) for member in members] == [True, True, True, False]
    assert lane.leave(1) == lane.leave(2) == 12
    assert len(lane) == 0


def test_a_slot_is_used_again_and_by_nobody_else_meanwhile() -> None:
    first, second, third = Member(), Member(), Member()
    lane = lane_of(first, second)
    lane.leave(0)
    assert lane.join(third, third.write) == 0
    hand_out(lane)
    assert (first.got, second.got, third.got) == ([], [b"data"], [b"data"])


def test_it_is_where_the_log_is_when_it_got_nothing_of_it() -> None:
    log = Log()
    lane = Lane(log)
    member = Member()
    slot = lane.join(member, member.write)
    log.published = 20
    assert lane.where(slot) == 20
