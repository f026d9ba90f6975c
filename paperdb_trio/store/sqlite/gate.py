"""Lets the write-ahead log restart although reads never pause.

Law: reads wait here, on their threads, while the gate is closed. The writer closes it briefly. SQLite can move
the log's content into the file during reads, but restarts the log only when no read is using it. With reads
that overlap this never happens: the log grew to 1 GB in four minutes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class ReadGate:
    """`on_empty` is called, on any thread, when the last reader leaves a closed gate."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._closed_until = 0.0
        self.on_empty: Callable[[], None] = lambda: None

    def enter(self) -> None:
        """Call this before a read transaction, and `leave` after it."""
        with self._changed:
            while (seconds := self._closed_until - time.monotonic()) > 0:
                self._changed.wait(seconds)
            self._readers += 1

    def leave(self) -> None:
        with self._changed:
            self._readers -= 1
            emptied = self._closed_until > 0 and not self._readers
        if emptied:
            self.on_empty()

    def close(self, seconds: float) -> bool:
        """Hold back new readers until `open`, or for that long. Returns whether no reader is inside."""
        with self._changed:
            self._closed_until = time.monotonic() + seconds
            return not self._readers

    def open(self) -> None:
        with self._changed:
            self._closed_until = 0.0
            self._changed.notify_all()
