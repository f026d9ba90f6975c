"""PaperDB's deliveries beside those of other servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from bench.audience import FRAME_HEADER_BYTES, Audience, paperdb_service
from bench.baseline import bare_loop
from bench.peers import PEERS
from bench.rows import Row, Scale, ratio

OURS = "PaperDB, WebSocket, its durable insert included"
NET = "PaperDB, without the cost of the insert"


def peers(scale: Scale) -> Iterator[Row]:
    """Server CPU per delivery, publishing included: PaperDB, the bare loop and installed peers, in turn."""
    connections, events = scale(1000, 1000, 5), scale(200, 200, 10)
    with ExitStack() as stack:
        loop = stack.enter_context(bare_loop(connections))
        paperdb = stack.enter_context(paperdb_service())
        frame = paperdb.frame()
        message = frame[FRAME_HEADER_BYTES:]
        audiences = {OURS: Audience(paperdb.service, connections)}
        for name, (program, start) in PEERS.items():
            if missing := program.missing():
                yield Row(name, [], "", note=missing)
            else:
                audiences[name] = Audience(stack.enter_context(start(message)), connections)
        for audience in audiences.values():
            stack.callback(audience.close)
        bare: list[float] = []
        for count, rounds in ((1, scale(60, 15, 2)), (events, scale(15, 4, 2))):
            samples: dict[str, list[float]] = {name: [] for name in (OURS, NET, *audiences)}
            for turn in range(rounds + 1):
                single = loop.round(frame) * 1e6
                insert = paperdb.alone(count)
                costs = {name: audience.round(count) for name, audience in audiences.items()}
                costs[NET] = costs[OURS] - insert
                if turn > 0:
                    bare.append(single)
                    for name, cost in costs.items():
                        samples[name].append(cost / (connections * count) * 1e6)
            what = "one event" if count == 1 else f"{count} at once"
            if count == 1:
                yield Row("one event: bare loop of os.write", bare, "µs/delivery")
            for name, sample in samples.items():
                against = ratio(sample, samples[OURS])
                yield Row(f"{what}: {name}", sample, "µs/delivery", f"{what}: {OURS}", against)
