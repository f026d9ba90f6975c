"""How log lines look, and how often a fault that lasts may repeat one.

Law: a line is one line (a traceback follows its line in text, and is a field in JSON). What a client can choose
never starts another line. `extra={"fields": {…}}` adds fields: `name=value` in text, members in JSON.

A `SparingLog` writes `burst` lines of a kind at once. The next one comes a minute later at the earliest, and
says how many were left out. A kind is a message before its arguments are filled in.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

import msgspec

BETWEEN_LINES: Final = 60.0
"""Seconds between two bursts of lines of one kind."""
LIBRARIES: Final = ("trio-websocket", "hypercorn", "quart", "httpx", "httpcore", "urllib3", "hpack", "h2")
"""They log warnings only: hpack would log every header, keys and tokens among them."""

_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_PLAIN: Final = re.compile(r"[!#-<>-~]+")
"""A value that needs no quotes: printable ASCII without spaces, `"` and `=`."""


def set_up(level: str, format: str) -> None:
    """Log to stderr from now on; `format` is `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper())
    # What no line shows need not be found out (Python's logging HOWTO, "Optimization"): a third of a line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)


@lru_cache(maxsize=2)
def _seconds(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _time(record: logging.LogRecord) -> str:
    """ISO 8601, in UTC, with milliseconds."""
    seconds = int(record.created)
    return f"{_seconds(seconds)}.{int((record.created - seconds) * 1000):03d}Z"


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO paperdb: message name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname, f"{record.name}:", _escaped(record.getMessage())]
        parts += [f"{name}={_text(value)}" for name, value in _fields(record).items()]
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _escaped(text: str) -> str:
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _text(value: Any) -> str:
    if type(value) is int or type(value) is float:
        return str(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return text if _PLAIN.fullmatch(text) else _escaped(json.dumps(text))


class JsonFormatter(logging.Formatter):
    """An object a line: `time`, `level`, `logger`, `message`, the fields, and `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        with suppress(UnicodeError):
            return msgspec.json.encode(line).decode("ascii")
        return json.dumps(line, separators=(",", ":"))


class SparingLog:
    """Its memory is bounded by the number of messages in our code. Any thread may use it."""

    def __init__(
        self, log: logging.Logger, clock: Callable[[], float] = time.monotonic, *, burst: int = 1
    ) -> None:
        self._log = log
        self._clock = clock
        self._burst = burst
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int, int]] = {}
        """The end of the minute, the lines written in it, and those left out."""

    def log(self, level: int, message: str, *args: object, fields: Mapping[str, Any] | None = None) -> None:
        with self._lock:
            now = self._clock()
            ends_at, written, left_out = self._kinds.get(message, (now, 0, 0))
            if now < ends_at and written >= self._burst:
                self._kinds[message] = ends_at, written, left_out + 1
                return
            if now >= ends_at:
                ends_at, written = now + BETWEEN_LINES, 0
            self._kinds[message] = ends_at, written + 1, 0
        extra = None if fields is None else {"fields": fields}
        if left_out:
            more = f"{message}; and %d more times since the last such line"
            self._log.log(level, more, *args, left_out, extra=extra)
        else:
            self._log.log(level, message, *args, extra=extra)

    def warning(self, message: str, *args: object) -> None:
        self.log(logging.WARNING, message, *args)

    def error(self, message: str, *args: object) -> None:
        self.log(logging.ERROR, message, *args)
