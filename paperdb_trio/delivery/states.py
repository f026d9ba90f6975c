"""What a subscriber can be, and what it can become.

Law: tables only. `subscriber` moves by them; the tests hold it to them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class SubscriberState(StrEnum):
    NEW = "new"
    LIVE = "live"
    CATCHING_UP = "catching up"
    CLOSED = "closed"


MOVES: Final[dict[SubscriberState, frozenset[SubscriberState]]] = {
    SubscriberState.NEW: frozenset({SubscriberState.LIVE, SubscriberState.CATCHING_UP, SubscriberState.CLOSED}),
    SubscriberState.LIVE: frozenset({SubscriberState.CATCHING_UP, SubscriberState.CLOSED}),
    SubscriberState.CATCHING_UP: frozenset({SubscriberState.LIVE, SubscriberState.CLOSED}),
    SubscriberState.CLOSED: frozenset(),
}


class Situation(NamedTuple):
    """With the state: who writes a subscriber's next bytes. The lane, the hub through `offer`, or its task."""

    in_feed: bool
    in_lane: bool
    has_task: bool
    has_queue: bool


SITUATIONS: Final[dict[SubscriberState, frozenset[Situation]]] = {
    # feed, lane, task, queue
    SubscriberState.NEW: frozenset({Situation(False, False, False, False)}),
    SubscriberState.LIVE: frozenset(
        {
            # The lane writes. Nothing is left to flush.
            Situation(True, True, False, False),
            # The hub offers: the sink was busy, or a publish was under way. The next publish ends in the lane.
            Situation(True, False, False, False),
            # Its task writes what was queued, or flushes the sink. What the hub offers meanwhile is queued.
            Situation(True, False, True, False),
            Situation(True, False, True, True),
        }
    ),
    SubscriberState.CATCHING_UP: frozenset(
        {
            # Its task reads the log. What was queued before, and replies, go first.
            Situation(False, False, True, False),
            Situation(False, False, True, True),
        }
    ),
    SubscriberState.CLOSED: frozenset(
        {
            # Its task ends with the write that is under way. What is queued is never written.
            Situation(False, False, True, False),
            Situation(False, False, True, True),
            Situation(False, False, False, False),
            Situation(False, False, False, True),
        }
    ),
}
"""What is legal in each state, between two steps of the event loop."""


class IllegalMove(Exception):
    """A bug of ours: a subscriber cannot go from its state to the one it was told to enter."""
