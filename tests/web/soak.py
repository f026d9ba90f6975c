"""The JavaScript SDK through every trouble at once, for as long as wanted; it checks itself.

    python -m tests.web.soak --seed 1 --seconds 60

Writers pour into four collections while the server is killed and restarted and its signing secret rotated, and
a proxy between it and the clients cuts in mid-frame, holds everything up and refuses. Clients in Node, with its
own WebSocket and with `ws`, subscribe to random collections, come and go. One has an API key and renews its
tokens every five seconds; one asks a back end, which hands out tokens of a few seconds and is out of order now
and then, so that they expire in use.

In the end each handler must have been given, in order and each once, a run without a hole of the changes of its
collection as the log has them; a handler that stayed from the beginning to the end, all of them. Every
acknowledged write must be in the log. Prints the seed and the figures; exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import Server, wait_until
from tests.web.test_tokens import BackEnd
from tests.web.tools import Answer, Client, Proxy, http_server, new_package

NAMES = ("a", "b", "c", "d")
QUICK = ("refuse", "kill", "cut", "rotate")
"""As many as fit into a few seconds. While the proxy refuses, writes continue past it: those can be missed."""
TROUBLES = (*QUICK, "cut", "kill", "restart", "hold up", "silence")
"""Each comes once before any comes again, however few the seconds."""
IMPATIENT = """
    const random = Math.random;
    Math.random = () => random() * 0.1;
"""
"""An outage of this program is short; so are the waits of the SDK, which are a random part of a span."""
END_SECONDS = 60


class MoodyBackEnd(BackEnd):
    """Hands out tokens of 2 to 4 seconds, and often, or while `silent`, nothing."""

    def __init__(self, server: Server, chance: random.Random) -> None:
        super().__init__(server, 3)
        self.chance = chance
        self.calm = False
        self.silent = False

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        if self.silent or (not self.calm and self.chance.random() < 0.3):
            return 503, "text/plain", b"later"
        self.seconds = self.chance.choice((2, 3, 4))
        return super().__call__(method, path, headers)


class Soak:
    def __init__(self, server: Server, seed: int, seconds: float, troubles: tuple[str, ...]) -> None:
        self.server = server
        self.seed = seed
        self.troubles = troubles
        self.seconds = seconds
        self.chance = random.Random(seed)
        self.stopping = threading.Event()
        self.back_end = MoodyBackEnd(server, random.Random(f"{seed}/back end"))
        self.acknowledged: set[int] = set()
        self.kills = self.rotations = self.cuts = self.expired = 0
        self.stay: list[tuple[Client, str, str]] = []
        self.come_and_go: list[tuple[Client, str, str]] = []

    def run(self, package: Path, proxy: Proxy) -> list[str]:
        """What was wrong."""
        back_end = self.back_end
        with ExitStack() as stack:
            token_url = stack.enter_context(http_server(back_end))
            own_key = {"apiKey": self.server.key, "tokenExpiresIn": 30, "tokenMarginSeconds": 24}
            clients = [
                stack.enter_context(Client(package, {"baseUrl": proxy.url, **options}, ws=ws, first=IMPATIENT))
                for ws in (False, True)
                for options in (own_key, {"tokenUrl": token_url})
            ]
            for number, client in enumerate(clients):
                for name in self.chance.sample(NAMES, 2):
                    client.subscribe(name, f"stays-{number}-{name}")
                    self.stay.append((client, f"stays-{number}-{name}", name))
            proxy.cut_after = self.budget
            with self.threads(*(partial(self.write, n) for n in range(3)), partial(self.churn, clients)):
                self.trouble(proxy)
            proxy.cut_after = lambda: None
            proxy.refusing = proxy.frozen = False
            back_end.calm = True
            proxy.cut()
            last = {name: self.insert_last(name) for name in NAMES}
            self.await_ends(last)
            self.expired = sum(
                "4401" in str(status.get("reason", "")) for client in clients for status in client.statuses
            )
            return self.faults(last)

    def budget(self) -> int | None:
        """After how many bytes from the server a new connection is cut."""
        self.cuts += 1
        small, large = self.chance.randrange(150, 5_000), self.chance.randrange(5_000, 200_000)
        return self.chance.choice((None, None, small, large))

    @contextmanager
    def threads(self, *targets: Callable[[], None]) -> Iterator[None]:
        threads = [threading.Thread(target=target) for target in targets]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            for thread in threads:
                thread.join()

    def write(self, number: int) -> None:
        chance = random.Random(f"{self.seed}/{number}")
        headers = {"Authorization": f"Bearer {self.server.key}"}
        with httpx.Client(base_url=self.server.url, headers=headers, timeout=20) as client:
            mine: list[tuple[str, str]] = []
            while not self.stopping.wait(chance.random() * 0.02):
                name = chance.choice(NAMES)
                text = "ü" * chance.randrange(300)
                try:
                    if mine and chance.random() < 0.3:
                        of, id = mine[chance.randrange(len(mine))]
                        answer = client.patch(f"/{of}/docs/{id}", json={"n": {"increment": 1}})
                    elif chance.random() < 0.1:
                        client.post(f"/{name}/bulk", json=[{"text": text}] * 20)
                        continue
                    else:
                        answer = client.post(f"/{name}/docs", json={"text": text})
                except httpx.TransportError:
                    continue
                if answer.status_code in (200, 201):
                    self.acknowledged.add(int(answer.headers["etag"].strip('"')))
                    mine.append((name, answer.json()["_id"]) if answer.status_code == 201 else mine[-1])

    def churn(self, clients: list[Client]) -> None:
        """Subscribe, and unsubscribe again a little later, or never."""
        chance = random.Random(f"{self.seed}/churn")
        number = 0
        gone: list[tuple[Client, str]] = []
        while not self.stopping.wait(chance.random() * 0.3):
            client, name, to = chance.choice(clients), chance.choice(NAMES), f"churn-{number}"
            number += 1
            client.run(f"subscribe('{name}', '{to}')")
            self.come_and_go.append((client, to, name))
            gone.append((client, to))
            if len(gone) > 6:
                client, to = gone.pop(chance.randrange(len(gone)))
                client.run(f"state.offs['{to}']()")

    def trouble(self, proxy: Proxy) -> None:
        chance = self.chance
        deck = chance.sample(self.troubles, len(self.troubles))
        end = time.monotonic() + self.seconds
        while deck or time.monotonic() < end:
            time.sleep(chance.uniform(0.1, 0.6))
            deck = deck or chance.sample(self.troubles, len(self.troubles))
            kind = deck.pop()
            if kind == "kill":
                self.server.kill()
                time.sleep(chance.random() * 0.3)
                self.server.start()
                self.kills += 1
            elif kind == "restart":
                self.server.stop()
                self.server.start()
            elif kind == "silence":  # what is connected stays so until its token ends
                proxy.cut_after = lambda: None
                proxy.cut()
                time.sleep(1)
                self.back_end.silent = True
                time.sleep(chance.uniform(2, 5))
                self.back_end.silent = False
                proxy.cut_after = self.budget
            elif kind == "rotate":
                self.server.cli("keys", "rotate-signing")
                self.rotations += 1
            elif kind == "cut":
                proxy.cut()
            elif kind == "hold up":
                proxy.frozen = True
                time.sleep(chance.random() * 0.5)
                proxy.frozen = False
            else:
                proxy.refusing = True
                proxy.cut()
                time.sleep(chance.uniform(0.1, 0.5))
                proxy.refusing = False

    def insert_last(self, name: str) -> int:
        made = self.server.request("POST", f"/{name}/docs", json={"last": True})
        assert made.status_code == 201, made.text
        return int(made.headers["etag"].strip('"'))

    def await_ends(self, last: dict[str, int]) -> None:
        def ended(client: Client, to: str, name: str) -> bool:
            return last[name] in client.seqs(to)[-1:]

        try:
            wait_until(lambda: all(ended(*stays) for stays in self.stay), END_SECONDS)
        except AssertionError:
            pass  # `faults` tells who has not

    def log(self, name: str) -> list[dict[str, Any]]:
        changes: list[dict[str, Any]] = []
        more, since = True, 0
        while more:
            page = self.server.request("GET", f"/{name}/changes?since={since}&limit=1000").json()
            changes += page["changes"]
            since, more = page["seq"], page["hasMore"]
        return changes

    def faults(self, last: dict[str, int]) -> list[str]:
        found = []
        logs = {name: self.log(name) for name in NAMES}
        seqs = {name: [change["seq"] for change in changes] for name, changes in logs.items()}
        if missing := self.acknowledged - {seq for own in seqs.values() for seq in own}:
            found.append(f"acknowledged, and not in the log: {sorted(missing)[:5]}")
        for client, to, name in self.stay + self.come_and_go:
            given = client.events.get(to, [])
            first = seqs[name].index(given[0]["seq"]) if given and given[0]["seq"] in seqs[name] else 0
            expected = logs[name] if to.startswith("stays") else logs[name][first : first + len(given)]
            if given != expected:
                pairs = zip([*given, None], [*expected, None], strict=False)
                got, due = next((got, due) for got, due in pairs if got != due)
                found.append(f"{to} ({name}) was given {got} instead of {due}; {client.statuses[-1]}")
        states = {status["state"] for client, _, _ in self.stay for status in client.statuses}
        if "gap" in states:
            found.append("somebody was told of a gap")
        return found

    def figures(self) -> str:
        handlers = self.stay + self.come_and_go
        deliveries = sum(len(client.events.get(to, [])) for client, to, _ in handlers)
        return (
            f"seed {self.seed}: {len(self.acknowledged)} acknowledged writes, {len(handlers)} handlers, "
            f"{deliveries} deliveries, {self.kills} kills, {self.rotations} rotations, {self.cuts} connections "
            f"with a limit of bytes, {self.expired} tokens that expired in use"
        )


def soak(
    server: Server, package: Path, seed: int, seconds: float, troubles: tuple[str, ...] = TROUBLES
) -> list[str]:
    """Run, print the figures, return what was wrong."""
    run = Soak(server, seed, seconds, troubles)
    with Proxy(server.port) as proxy:
        faults = run.run(package, proxy)
    print(run.figures(), f"{len(faults)} faults", sep=", ")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description="The JavaScript SDK through every trouble at once.")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "data")
        package = Path(folder) / "package"
        package.mkdir()
        try:
            new_package(package, server.url)
            faults = soak(server, package, options.seed, options.seconds)
        finally:
            server.kill()
    print("\n".join(faults))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
