"""TLS for clients and servers that read in one thread and write in another, as `websockets.sync` does.

OpenSSL allows one call at a time per connection, and Python before 3.13 does not enforce it. A write during the
reader's first call (which reads the session ticket) was lost once in 300 connections; the server then rightly
reported that no request had arrived.
"""

from __future__ import annotations

import math
import select
import ssl
import threading
import time
from pathlib import Path
from typing import Any


class LockedSocket(ssl.SSLSocket):
    """A TLS socket whose `recv` and `sendall` take turns; `recv` waits outside its turn."""

    def __new__(cls, *arguments: Any, **options: Any) -> LockedSocket:
        made = super().__new__(cls, *arguments, **options)
        made._turn = threading.Lock()
        return made

    _turn: threading.Lock

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        timeout = self.gettimeout()
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            with self._turn:
                self.settimeout(0)
                try:
                    return super().recv(buflen, flags)
                except ssl.SSLWantReadError:
                    pass
                finally:
                    self.settimeout(timeout)
            if time.monotonic() >= end:
                raise TimeoutError("The read operation timed out")
            select.select([self], [], [], 0.1)  # short, because another thread may close it

    def sendall(self, data: Any, flags: int = 0) -> None:
        with self._turn:
            super().sendall(data, flags)


def locked(context: ssl.SSLContext) -> ssl.SSLContext:
    context.sslsocket_class = LockedSocket
    return context


def trusting(certificate: Path) -> ssl.SSLContext:
    """A client context that trusts this certificate."""
    return locked(ssl.create_default_context(cafile=str(certificate)))
