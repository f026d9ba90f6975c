"""Log lines that an unchanged fault would repeat: one a minute.

Law: the first line of a kind appears at once. The next one comes a minute later at the earliest, and says how
many were left out. A kind is a message before its arguments are filled in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

BETWEEN_LINES: Final = 60.0
"""Seconds between two lines of one kind."""


class SparingLog:
    """Only one thread uses it. Its memory is bounded by the number of messages in our code."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._kinds: dict[str, tuple[float, int]] = {}

    def log(self, level: int, message: str, *args: object) -> None:
        now = self._clock()
        ends_at, left_out = self._kinds.get(message, (now, 0))
        if now < ends_at:
            self._kinds[message] = ends_at, left_out + 1
            return
        self._kinds[message] = now + BETWEEN_LINES, 0
        if left_out:
            self._log.log(level, f"{message}; and %d more times since the last such line", *args, left_out)
        else:
            self._log.log(level, message, *args)

    def warning(self, message: str, *args: object) -> None:
        self.log(logging.WARNING, message, *args)

    def error(self, message: str, *args: object) -> None:
        self.log(logging.ERROR, message, *args)
