"""What encryption costs."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.audience import Audience, Service, paperdb_service
from bench.baseline import BareLoop, bare_loop
from bench.rows import Row, Scale, ratio
from bench.server import NotSupported, directory

BUDGET = "≤ 1.5"
BURST_BUDGET = "≤ 1.8"


def tls(scale: Scale) -> Iterator[Row]:
    """Deliveries over wss beside ws, to 1,000 subscribers, one and 200 events at once; a TLS connect."""
    try:
        yield from _rows(scale)
    except NotSupported as error:
        yield Row("not supported by this server", [], "", note=str(error))


def _rows(scale: Scale) -> Iterator[Row]:
    connections, events = scale(1000, 1000, 5), scale(200, 200, 10)
    with directory() as place, ExitStack() as stack:
        certificate = self_signed(place)
        both = [stack.enter_context(paperdb_service(tls=tls)) for tls in (None, certificate)]
        yield from _connects([paperdb.service for paperdb in both], scale)
        frame = both[0].frame()
        audiences = [Audience(paperdb.service, connections) for paperdb in both]
        for audience in audiences:
            stack.callback(audience.close)
        alone = [paperdb.alone for paperdb in both]
        loops = [stack.enter_context(bare_loop(connections, tls)) for tls in (None, certificate)]
        for count, rounds in ((1, scale(60, 15, 2)), (events, scale(20, 5, 2))):
            yield from _deliveries(audiences, alone, loops, frame, count, rounds)


def _deliveries(
    audiences: list[Audience],
    alone: Sequence[Callable[[int], float]],
    loops: list[BareLoop],
    frame: bytes,
    events: int,
    rounds: int,
) -> Iterator[Row]:
    whole: list[list[float]] = [[], []]
    net: list[list[float]] = [[], []]
    bare: list[list[float]] = [[], []]
    scale = 1e6 / (audiences[0].connections * events)
    for turn in range(rounds + 1):
        for n in range(2):
            insert = alone[n](events)
            cost = audiences[n].round(events)
            loop = loops[n].round(frame * events)
            if turn > 0:
                bare[n].append(loop / events * 1e6)
                whole[n].append(cost * scale)
                net[n].append((cost - insert) * scale)
    budget = BUDGET if events == 1 else BURST_BUDGET
    what = "one event" if events == 1 else f"{events} events"
    plain = f"bare loop of os.write, {what}"
    yield Row(plain, bare[0], "µs/delivery")
    yield Row(f"bare loop, {what}, encrypted", bare[1], "µs/delivery", plain, ratio(bare[1], bare[0]))
    plain = f"{what} to {audiences[0].connections:,} over ws, insert included"
    yield Row(plain, whole[0], "µs/delivery")
    yield Row(
        f"{what} over wss, insert included", whole[1], "µs/delivery", plain, ratio(whole[1], whole[0]), budget
    )
    plain = f"{what} over ws, without the insert"
    yield Row(plain, net[0], "µs/delivery")
    yield Row(
        f"{what} over wss, without the insert", net[1], "µs/delivery", plain, ratio(net[1], net[0]), budget
    )


def _connects(services: list[Service], scale: Scale) -> Iterator[Row]:
    step, rounds = scale(100, 100, 3), scale(6, 3, 2)
    samples: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for n, service in enumerate(services):
            before = service.process.settled_cpu()
            socks: list[socket.socket] = [service.subscribe(0) for _ in range(step)]
            cost = (service.process.settled_cpu() - before) / step * 1e6
            if turn > 0:
                samples[n].append(cost)
            for sock in socks:
                sock.close()
    yield Row("connect over ws", samples[0], "µs/connect")
    yield Row(
        "connect over wss, full TLS 1.3 handshake, P-256",
        samples[1],
        "µs/connect",
        "connect over ws",
        ratio(samples[1], samples[0]),
    )


def self_signed(place: Path) -> tuple[Path, Path]:
    """Make a certificate and its key, as PEM files in `place`."""
    certificate, key = place / "cert.pem", place / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    )
    subprocess.run(
        [*command.split(), "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True
    )
    return certificate, key
