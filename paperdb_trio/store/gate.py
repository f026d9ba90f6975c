"""Lets the write-ahead log start anew although somebody is always reading.

Law: reads wait here, on their threads, while the gate is closed. The writer closes it, each time for a moment.
SQLite can move the log's content into the file while others read, but begins the log anew only when nobody
reads from it. With readers that overlap that never happens: 1 GB in four minutes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class ReadGate:
    """`on_empty` is called, on any thread, when the last reader has left a gate that was closed on it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._closed_until = 0.0
        self.on_empty: Callable[[], None] = lambda: None

    def enter(self) -> None:
        """Before a read transaction; `leave` after it."""
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
        """Let nobody in until `open`, or for so long; whether nobody is inside."""
        with self._changed:
            self._closed_until = time.monotonic() + seconds
            return not self._readers

    def open(self) -> None:
        with self._changed:
            self._closed_until = 0.0
            self._changed.notify_all()
