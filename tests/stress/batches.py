"""Batches over two collections. Each is repeated with its key until it has a response: it is done once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import httpx

from tests.conftest import NO_TLS, Server
from tests.stress.harness import OFFLINE, PROMISE, is_unknown

REFUSED = 0.1
"""The share of batches whose last condition does not hold: they must leave nothing."""


class BatchWriter:
    """Changes its own documents in `accounts`, and books each batch in `ledger`, one batch at a time.

    No condition and no id refuses a batch that is done twice: only the key does.
    """

    def __init__(self, server: Server, number: int, seed: int, accounts: str, ledger: str) -> None:
        self.server, self.number, self.accounts, self.ledger = server, number, accounts, ledger
        self.random = random.Random(f"{seed}/batch {number}")
        self.sizes: dict[int, int] = {}  # of each acknowledged batch, by its txn
        self.booked: dict[str, bool] = {}  # name of a batch -> whether it was acknowledged or refused
        self.counts: dict[str, int] = {}  # id of an account -> value of "n"
        self.entries: list[str] = []  # ids in the ledger
        self.repeated = 0
        self.replayed = 0

    async def run(self, stop: asyncio.Event) -> None:
        headers = {"Authorization": f"Bearer {self.server.key}"}
        async with httpx.AsyncClient(
            base_url=self.server.url, headers=headers, timeout=10, verify=NO_TLS
        ) as client:
            while not stop.is_set():
                name = f"b{self.number}-{len(self.booked)}"
                fails = bool(self.entries) and self.random.random() < REFUSED
                operations, counts, gone = self.plan(name, fails)
                response = await self.send(client, name, operations)
                if response.status_code != (412 if fails else 200):
                    raise PROMISE(f"batch {name}: {response.status_code} {response.text}")
                self.booked[name] = not fails
                if not fails:
                    body = response.json()
                    self.sizes[body["txn"]] = len(operations)
                    self.counts |= counts
                    self.entries = [id for id in self.entries if id != gone] + [body["results"][0]["_id"]]

    async def send(self, client: httpx.AsyncClient, name: str, operations: list[Any]) -> httpx.Response:
        while True:
            try:
                response = await client.post(
                    "/batch", json={"operations": operations}, headers={"Idempotency-Key": name}
                )
            except httpx.ConnectError:  # never sent
                pass
            except OFFLINE:
                self.repeated += 1
            else:
                if is_unknown(response):
                    self.repeated += 1
                elif response.status_code != 503:  # draining, or not yet: nothing was written
                    self.replayed += "idempotent-replayed" in response.headers
                    return response
            await asyncio.sleep(0.02)

    def plan(self, name: str, fails: bool) -> tuple[list[dict[str, Any]], dict[str, int], str | None]:
        """The operations; what they make of the accounts, and which entry they delete."""
        dice = self.random
        entry = {"batch": name, "n": len(self.booked) % 10, "room": f"r{dice.randrange(5)}"}
        operations: list[dict[str, Any]] = [{"op": "insert", "collection": self.ledger, "document": entry}]
        counts = {}
        account: dict[str, Any] = {"collection": self.accounts}
        for id in dice.sample(sorted(self.counts), min(len(self.counts), 2)):
            counts[id] = self.counts[id] + 1
            fields = {"n": {"increment": 1}, "room": f"r{dice.randrange(5)}"}
            operations.append(
                {**account, "op": "update", "id": id, "fields": fields, "where": {"n": {"gte": 0}}}
            )
        if len(self.counts) < 20:
            id = f"a{self.number}-{len(self.booked)}"
            counts[id] = 0
            document = {"_id": id, "n": 0, "room": "r1"}
            operations.append({**account, "op": "insert", "document": document})
        gone = self.entries[0] if len(self.entries) > 20 else None
        if gone is not None:
            operations.append(
                {"op": "delete", "collection": self.ledger, "id": gone, "where": {"n": {"lt": 10}}}
            )
        if fails:
            last = {"op": "update", "collection": self.ledger, "id": self.entries[-1], "fields": {"n": 1}}
            operations.append({**last, "where": {"n": {"gt": 100}}})
        return operations, counts, gone

    def check(self, documents: dict[str, dict[str, Any]], log: list[dict[str, Any]]) -> None:
        for id, n in self.counts.items():
            if documents.get(id, {}).get("n") != n:
                raise PROMISE(f"batches: {id} is {documents.get(id)}, acknowledged was n = {n}")
        booked = Counter(
            change["data"]["batch"]
            for change in log
            if change["type"] == "insert" and change["data"].get("batch", "").startswith(f"b{self.number}-")
        )
        if booked != Counter(name for name, done in self.booked.items() if done):
            raise PROMISE(f"batches of {self.number}: done are {booked}, acknowledged {self.booked}")
        places = {change["seq"]: place for place, change in enumerate(log)}
        for txn, size in self.sizes.items():
            place = places[txn]
            whole = [change.get("txn") for change in log[place : place + size + 1]]  # and the next change
            if whole[:size] != [txn] * size or whole[size:] == [txn]:
                raise PROMISE(f"batch {txn} of {size} changes has {whole}")
