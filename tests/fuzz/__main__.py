"""Mutated inputs against our parsers, in memory, and against a real server.

python -m tests.fuzz --inputs 1000000 --seed 1 --tls
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz import door, memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000, help="inputs in memory")
    parser.add_argument("--sent", type=int, default=None, help="inputs over sockets; a hundredth of the others")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--tls", action="store_true", help="the sockets speak TLS")
    o = parser.parse_args()
    print(f"seed {o.seed}", flush=True)
    try:
        show("in memory", memory.fuzz(o.inputs, o.seed))
        sent = o.inputs // 100 if o.sent is None else o.sent
        if sent:
            with tempfile.TemporaryDirectory(prefix="paperdb-fuzz-") as directory:
                show("over sockets", door.fuzz(Path(directory), sent, o.seed, tls=o.tls, batch=1000))
    except AssertionError as error:
        print(f"BROKEN: {error}")
        return 1
    return 0


def show(what: str, counts: Counter[str]) -> None:
    print(what)
    for name, count in sorted(counts.items()):
        print(f"  {name:44} {count:>12,}")


if __name__ == "__main__":
    sys.exit(main())
