"""python -m bench [SCENARIO…] [--quick] [--paperdb COMMAND] [--json FILE] [--chart FILE.svg]"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from bench import server
from bench.machine import CLIENT_CORE, SERVER_CORE, cpu_model, noise, pin, raise_file_limit
from bench.rows import FULL, HEAD, QUICK, TINY, Row, line
from bench.scenarios import SCENARIOS
from paperdb_trio.store.sqlite import library as sqlite

NOISY = 0.03


def main() -> int:
    options = arguments()
    raise_file_limit()
    if options.paperdb:
        server.chosen = shlex.split(options.paperdb)
    # The `with` blocks that this leaves end their processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    taken = noise()
    pin(CLIENT_CORE)
    print(
        f"{cpu_model()}, Python {platform.python_version()}, SQLite {sqlite.VERSION}; "
        f"server on core {SERVER_CORE}, clients on core {CLIENT_CORE}"
    )
    if CLIENT_CORE == SERVER_CORE:
        print("NOTE: the clients share the server's only core. Rates are too low; CPU times are right.")
    if taken > NOISY:
        print(f"NOTE: before the first run, others took {taken:.0%} of the server's core. Trust ratios only.")
    print(f"\n{HEAD}")
    results: list[dict[str, Any]] = []
    for name in options.scenarios or SCENARIOS:
        print(f"-- {name}: {summary(name)}", flush=True)
        for row in SCENARIOS[name](options.scale):
            print(line(row), flush=True)
            results.append(as_json(name, row))
    noisy_after = noise()
    if noisy_after > NOISY:
        print(f"NOTE: after the last run, others took {noisy_after:.0%} of the server's core.")
    machine = {"cpu": cpu_model(), "noise": [taken, noisy_after], "python": platform.python_version()}
    if options.json:
        text = json.dumps({"machine": machine, "scale": options.scale.name, "rows": results}, indent=1)
        Path(options.json).write_text(text)
    if options.chart:
        from bench.chart import draw

        Path(options.chart).write_text(draw(results))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the server beside baselines, in one run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="scenarios (all, if none is named):\n"
        + "\n".join(f"  {name:12} {summary(name)}" for name in SCENARIOS),
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="see below")
    size = parser.add_mutually_exclusive_group()
    for scale, help in (
        (QUICK, "fewer rounds: a rough look"),
        (TINY, "a few clients, two rounds: shows that the bench works, and measures nothing"),
    ):
        size.add_argument(f"--{scale.name}", dest="scale", action="store_const", const=scale, help=help)
    parser.set_defaults(scale=FULL)
    parser.add_argument("--paperdb", metavar="COMMAND", help="measure another one, such as dist/paperdb")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--chart", metavar="FILE", help="draw the rows of `growth` as SVG")
    options = parser.parse_args()
    for name in options.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario '{name}'; expected {', '.join(SCENARIOS)}")
    if options.chart and options.scenarios and "growth" not in options.scenarios:
        parser.error("--chart draws the rows of the scenario `growth`: name it, too")
    return options


def summary(name: str) -> str:
    return (SCENARIOS[name].__doc__ or "").strip().splitlines()[0]


def as_json(scenario: str, row: Row) -> dict[str, Any]:
    point = vars(row.point) if row.point else None
    return {"scenario": scenario, **vars(row), "point": point, "median": row.median}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
