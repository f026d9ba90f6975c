"""`paperdb serve --demo`: a conversation in the collection `messages`, so that newcomers see events.

Law: writes through the writer, like any client. It touches only its own documents (they have `"demo": true`),
at most `MAX_DOCUMENTS`.
"""

from __future__ import annotations

import itertools
import logging
import random
from typing import Final

import msgspec
import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import ApiError
from paperdb_trio.store.operations import Delete, Draft, Insert, Patch
from paperdb_trio.store.protocol import Store

log = logging.getLogger("paperdb.demo")

DATABASE: Final = "default"
COLLECTION: Final = "messages"
MAX_DOCUMENTS: Final = 50
SECONDS: Final = (0.3, 1.5)
"""Shortest and longest pause between two writes."""
AUTHORS: Final = ("Ada", "Blaise", "Chien-Shiung", "Dorothy", "Emmy", "Fritz")
TEXTS: Final = (
    "Good morning!",
    "Did the deployment go through?",
    "It did, on the first try.",
    "The dashboard shows it live.",
    "Who ordered the second coffee machine?",
    "I have reconnected, and missed nothing.",
    "Let us call it a day.",
)


async def run(store: Store, settings: Settings) -> None:
    """Write until cancelled, or until the store closes."""
    directory = await store.directory(0, 0)
    databases = {} if directory is None else {name: id for id, name, _ in directory.databases}
    if DATABASE not in databases:
        log.warning("the demo needs a database '%s', which does not exist", DATABASE)
        return
    database_id = databases[DATABASE]
    submit, max_bytes = store.submit, settings.max_document_bytes
    earlier = await store.find(
        database_id,
        COLLECTION,
        filter='{"demo":true}',
        sort="createdAt",
        limit=1000,
        offset=0,
        select="_id",
        count=False,
    )
    ids: list[str] = [msgspec.json.decode(document)["_id"] for document in earlier.documents]
    conversation = zip(itertools.cycle(AUTHORS), itertools.cycle(TEXTS), strict=False)
    while not store.closed.is_set():
        what = "insert"
        if len(ids) >= MAX_DOCUMENTS:
            what = "delete"
        elif len(ids) > 3:
            what = random.choices(("insert", "patch", "delete"), (6, 3, 1))[0]
        try:
            if what == "insert":
                author, text = next(conversation)
                draft = Draft.parse({"author": author, "text": text, "likes": 0, "demo": True})
                await submit(Insert(database_id, COLLECTION, draft, max_bytes))
                ids.append(draft.id)
            elif what == "patch":
                likes = {"likes": {"increment": 1}}
                await submit(Patch(database_id, COLLECTION, random.choice(ids), likes, None, max_bytes))
            else:
                await submit(Delete(database_id, COLLECTION, ids.pop(0), None))
        except ApiError as error:  # a client deleted the document, set a schema, …
            log.info("%s: %s", what, error.message)
        await trio.sleep(random.uniform(*SECONDS))
