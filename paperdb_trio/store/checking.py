"""What `paperdb check` reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

MAX_FAULTS: Final = 20
"""Faults of one kind that are listed."""


@dataclass(frozen=True, slots=True)
class Report:
    """`databases`: a line for each. `faults`: each is one line of text for people; empty when all is well."""

    databases: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
