"""The worker of the order desk: it accepts each new order once, and takes it from the stock, or refuses it.

    PAPERDB_API_KEY=pdb_sk_… python worker.py --paperdb http://127.0.0.1:8000 --cursor cursor.txt

Law: the cursor on disk says which changes are done. A result has the id of its order, and is written in one
batch with the stock: however often the worker is killed, each order is taken from the stock once.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import trio

from paperdb_trio import Client, PaperDBError, create_client


def load(file: Path) -> int:
    """0, which is before the first change, for a worker that is new."""
    return int(file.read_text()) if file.exists() else 0


def save(file: Path, seq: int) -> None:
    """Whole or not at all."""
    new = file.with_suffix(".new")
    with new.open("w") as stream:
        stream.write(str(seq))
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)


async def handle(db: Client, order: dict[str, Any]) -> str:
    """Accept an order if the stock allows it. Returns what became of it."""
    id, item, amount = order["_id"], str(order.get("item")), order.get("amount")
    result = {"_id": id, "userId": order.get("userId"), "item": item, "amount": amount}
    try:
        if isinstance(amount, int) and amount > 0:
            await db.batch(
                [
                    {"op": "insert", "collection": "results", "document": {**result, "status": "accepted"}},
                    {
                        "op": "update",
                        "collection": "stock",
                        "id": item,
                        "fields": {"left": {"decrement": amount}},
                        "where": {"left": {"gte": amount}},
                    },
                ]
            )
            return "accepted"
    except PaperDBError as error:
        if error.status == 409:  # it has a result already
            return "done before"
        if error.status not in (400, 404, 412):  # 404: no such item; 412: too few
            raise
    try:
        await db.results.insert({**result, "status": "refused"})
    except PaperDBError as error:
        if error.status != 409:
            raise
        return "done before"
    return "refused"


async def work(url: str, key: str, cursor: Path) -> None:
    async with (
        create_client(base_url=url, api_key=key) as db,
        db.realtime.subscribe("orders", since=load(cursor)) as changes,
    ):
        async for change in changes:
            if change.type == "insert":
                print(change.data["_id"], await handle(db, change.data), flush=True)
            save(cursor, change.seq)


def main() -> None:
    parser = argparse.ArgumentParser(description="The worker of the order desk.")
    parser.add_argument("--paperdb", default="http://127.0.0.1:8000", help="URL of the PaperDB server")
    parser.add_argument("--cursor", type=Path, default=Path("cursor.txt"), help="file of the last change done")
    options = parser.parse_args()
    key = os.environ.get("PAPERDB_API_KEY")
    if not key:
        sys.exit("Set PAPERDB_API_KEY to a secret key of the database (pdb_sk_…)")
    try:
        trio.run(work, options.paperdb, key, options.cursor)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
