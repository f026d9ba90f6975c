"""A short run of the fuzzer; `just fuzz` is the long one. A failure names the seed and the input."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import door, memory


def test_parsers_raise_only_their_own_errors_and_agree_with_others() -> None:
    counts = memory.fuzz(20_000, seed=1)
    assert {name.partition(":")[0] for name in counts} == memory.CHECKS.keys()
    assert counts["head: taken"] > 200
    assert counts["head: refused"] > 200


@pytest.mark.parametrize("tls", [pytest.param(False, marks=pytest.mark.executable), True], ids=["plain", "TLS"])
def test_server_survives_any_input_and_frees_its_memory(tmp_path: Path, tls: bool) -> None:
    counts = door.fuzz(tmp_path, 400, seed=1, tls=tls)
    assert counts["WebSocket"]
    assert counts["HTTP/2"]
    assert counts["HTTP 400"]
