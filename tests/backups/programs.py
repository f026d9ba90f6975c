"""Programs that come as packages of the extra `test`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conftest import need


def program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else need(name)
