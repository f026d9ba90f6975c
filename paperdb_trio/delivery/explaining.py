"""Why a subscriber did or did not get a change, in words and as data.

Law: the change comes from the log, and is held against what the subscriber follows now by the very functions
that decide about events. What it followed earlier is not known, and the words say so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from paperdb_trio.auth.tokens import Grant
from paperdb_trio.delivery.topics import name_of
from paperdb_trio.delivery.views import see
from paperdb_trio.match.change import Judged
from paperdb_trio.match.query import Query, query
from paperdb_trio.model import Change
from paperdb_trio.store.protocol import Interest, Log, Topic

OUTCOMES = {
    "sent": "It was sent: the subscription had everything up to seq {position}.",
    "waiting": "It will be sent: the subscription has everything up to seq {position} so far, and is {state}.",
    "before-start": "It was not sent: the subscription began after it, at seq {start}.",
    "not-covered": "It was not sent: the token does not cover the collection '{collection}'.",
    "not-subscribed": "It was not sent: the connection does not follow the collection '{collection}' now.",
    "rule": "It was not sent: the rule of the token hides the document, before and after the change.",
    "no-match": "It was not sent: the document matches no filter that the connection follows, neither before "
    "nor after the change.",
    "no-change": "It was not sent: nothing changed of what the connection sees of the document.",
    "gone": "Unknown: the change log does not hold seq {seq} any more.",
    "future": "There is no change with seq {seq} yet: the last one is {head}.",
}
UNREAD = " {unsent:,} bytes are on their way: the client may not have read it yet."


class Place(NamedTuple):
    """`head`, `trimmed`: of the log. `start`: the seq after which the connection began. `position`: the seq up
    to which everything was handed to its socket. `unsent`: bytes that its machine has not acknowledged."""

    head: int
    trimmed: int
    start: int
    position: int
    state: str
    unsent: int


async def explain(log: Log, grant: Grant, interest: Interest, place: Place, seq: int) -> dict[str, Any]:
    """Raises what `Log.page` does."""
    change = None
    if place.trimmed < seq <= place.head:
        change = await _read(log, grant.database.id, seq)
    if change is None:
        return _told("future" if seq > place.head else "gone", seq, place, None, [])
    judged = Judged(change)
    about = [topic for topic in interest if name_of(topic) in (None, change.collection)]
    topics = [{**followed(topic), "since": interest[topic], "event": _event(topic, judged)} for topic in about]
    return _told(_outcome(grant, judged, about, topics, place), seq, place, change, topics)


async def _read(log: Log, database_id: int, seq: int) -> Change | None:
    found: list[Change] = []

    def keep(change: Change) -> list[bytes]:
        found.append(change)
        return [b""]

    await log.page(database_id, seq - 1, {None: 0}, keep, rows=1)
    return next((change for change in found if change.seq == seq), None)


def _event(topic: Topic, judged: Judged) -> str | None:
    """The type of the event that the change is to a topic."""
    if not isinstance(topic, Query):
        return judged.change.type
    seen = see(topic, judged)
    return None if seen is None else seen[1]


def _outcome(
    grant: Grant, judged: Judged, about: list[Topic], topics: list[dict[str, Any]], place: Place
) -> str:
    change = judged.change
    wanted = [topic for topic in topics if topic["event"] is not None]
    if wanted:
        if change.seq <= place.start or all(change.seq <= topic["since"] for topic in wanted):
            return "before-start"
        return "sent" if change.seq <= place.position else "waiting"
    if not grant.covers(change.collection):
        return "not-covered"
    if not about:
        return "not-subscribed"
    rule = grant.rule(change.collection)
    if rule.filter is not None and not _in_view(query(change.collection, rule.filter), judged):
        return "rule"
    seen = any(_in_view(topic, judged) for topic in about if isinstance(topic, Query))
    return "no-change" if seen else "no-match"


def _in_view(of: Query, judged: Judged) -> bool:
    """Whether the document matches, before or after the change."""
    return any(side is not None and of.matches(side) for side in (judged.before, judged.after))


def _told(
    outcome: str, seq: int, place: Place, change: Change | None, topics: list[dict[str, Any]]
) -> dict[str, Any]:
    start = max([place.start, *(topic["since"] for topic in topics if topic["event"] is not None)])
    text = OUTCOMES[outcome]
    if outcome == "sent" and place.unsent:
        text += UNREAD
    collection = "" if change is None else change.collection
    facts = {**place._asdict(), "start": start, "seq": seq, "collection": collection}
    return {
        "seq": seq,
        "outcome": outcome,
        "text": text.format(**facts),
        "head": place.head,
        "start": place.start,
        "position": place.position,
        "state": place.state,
        "unsentBytes": place.unsent,
        "change": None
        if change is None
        else {"type": change.type, "collection": change.collection, "id": change.id},
        "topics": topics,
    }


def followed(topic: Topic) -> dict[str, Any]:
    """A topic as plain data. `collection`: None is every one. Only a query has the other members."""
    if not isinstance(topic, Query):
        return {"collection": topic, "query": None, "filter": None, "select": None}
    select = None if topic.select is None else list(topic.select)
    return {"collection": topic.collection, "query": topic.id, "filter": topic.filter, "select": select}
