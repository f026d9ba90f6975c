"""python -m bench [SCENARIO…] [--quick] [--json FILE]"""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import statistics
import sys
from pathlib import Path

from bench.machine import CLIENT_CORE, SERVER_CORE, cpu_model, noise, pin, raise_file_limit
from bench.scenarios import SCENARIOS, Row

NOISY = 0.03


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the server.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of: {', '.join(SCENARIOS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a figure")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON, too")
    options = parser.parse_args()
    for name in options.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario '{name}'; there are {', '.join(SCENARIOS)}")
    raise_file_limit()
    taken = noise()
    pin(CLIENT_CORE)
    print(
        f"{cpu_model()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}; "
        f"server on core {SERVER_CORE}, clients on core {CLIENT_CORE}"
    )
    if CLIENT_CORE == SERVER_CORE:
        print("NOTE: one core only: clients disturb the server; rates are too low, CPU times are right.")
    if taken > NOISY:
        print(f"NOTE: this machine is noisy: others took {taken:.0%} of the server's core. Trust ratios only.")
    print(f"\n{'':50}{'median':>12} {'middle half':>21}  {'unit':12} {'ratio':>6}  budget")
    results: list[dict[str, object]] = []
    for name in options.scenarios or SCENARIOS:
        print(f"-- {name}: {(SCENARIOS[name].__doc__ or '').strip()}")
        for row in SCENARIOS[name](options.quick):
            print(line(row), flush=True)
            results.append({"scenario": name, **vars(row), "median": row.median})
    if options.json:
        machine = {"cpu": cpu_model(), "noise": taken, "python": platform.python_version()}
        Path(options.json).write_text(json.dumps({"machine": machine, "rows": results}, indent=1))
    return 0


def line(row: Row) -> str:
    spread = ""
    if len(row.samples) >= 4:
        low, _, high = statistics.quantiles(row.samples, n=4)
        spread = f"{_number(low)} – {_number(high)}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    text = f"{row.name:50}{_number(row.median):>12} {spread:>21}  {row.unit:12} {ratio:>6}  {row.budget}"
    return f"{text.rstrip()}{'  (' + row.note + ')' if row.note else ''}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.2f}"


if __name__ == "__main__":
    sys.exit(main())
