"""The web origins (RFC 6454) that `--allowed-origins` allows.

Law: no I/O. An origin that no browser can send is refused at start, with a suggestion.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from paperdb_trio.errors import StartupError

_LABEL: Final = r"[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?"
_ORIGIN: Final = re.compile(
    rf"(?:[a-z][a-z0-9+.-]*://(?:\*\.)?(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::[1-9][0-9]{{0,4}})?"
    r"|(?!https?:)[a-z][a-z0-9+.-]*://-?)"  # file:// of Android, app://- of Electron
)
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


class Origins:
    """`*`, exact origins, `https://*.example.com` for all hosts below one, and `null` (pages without a host).

    Raises a `StartupError` for any other item.
    """

    def __init__(self, text: str) -> None:
        items = [item.strip() for item in text.split(",") if item.strip()]
        self.any = "*" in items
        self._exact = {item for item in items if "*" not in item}
        self._patterns = [_pattern(item) for item in items if "*" in item and item != "*"]
        for item in items:
            if item not in ("*", "null"):
                _check(item)

    def allows(self, origin: str) -> bool:
        return self.any or origin in self._exact or any(pattern.fullmatch(origin) for pattern in self._patterns)


@lru_cache(maxsize=16)
def parse_origins(text: str) -> Origins:
    return Origins(text)


def _pattern(item: str) -> re.Pattern[str]:
    return re.compile(re.escape(item).replace(r"\*", rf"{_LABEL}(?:\.{_LABEL})*"))


def _check(item: str) -> None:
    scheme, _, rest = item.partition("://")
    host, _, port = rest.rpartition(":")
    if _ORIGIN.fullmatch(item) and not (host and port == _DEFAULT_PORTS.get(scheme)):
        return
    scheme, rest = (scheme, rest) if rest else ("https", item)
    rest = re.split(r"[/?#]", rest, maxsplit=1)[0].removesuffix(f":{_DEFAULT_PORTS.get(scheme.lower())}")
    meant = f"{scheme}://{rest}".lower()
    hint = f"; did you mean '{meant}'?" if _ORIGIN.fullmatch(meant) else ""
    raise StartupError(
        f"Setting 'allowed_origins' has '{item}', which no browser sends; expected an origin like "
        f"https://app.example.com or https://*.example.com: lower case, no path, no default port{hint}",
        2,
    )
