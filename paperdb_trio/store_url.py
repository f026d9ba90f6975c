"""The URL of a PostgreSQL database, as `--store` and `paperdb copy` take it.

Law: no I/O. No message shows a part of a malformed URL, because it may be a part of the password. libpq's
messages would: it takes what follows an '@' or '/' in a password for a host or a port.
"""

from __future__ import annotations

import re
from typing import Final

from paperdb_trio.errors import StartupError

_ESCAPED: Final = "%(?!00)[0-9A-Fa-f]{2}"
_NAME: Final = rf"(?:[^][@/?:,%\s]|{_ESCAPED})*"
_HOST: Final = rf"(?:{_NAME}|\[(?:[^][@/?%\s]|{_ESCAPED})+\])(?::[0-9]*)?"
_OPTION: Final = rf"\w+=(?:[^&%\s]|{_ESCAPED})*"
_URL: Final = re.compile(
    rf"(?P<scheme>postgres(?:ql)?://)(?:(?:[^@/%\s]|{_ESCAPED})*@)?"
    rf"(?P<place>{_HOST}(?:,{_HOST})*(?:/(?:[^@/?%\s]|{_ESCAPED})*)?)(?:\?(?:{_OPTION}(?:&{_OPTION})*)?)?"
)


def is_store_url(place: str) -> bool:
    """Whether this is meant as a URL, and not as a directory."""
    return "://" in place


def check_store_url(url: str) -> None:
    """Raises a `StartupError`."""
    if not _URL.fullmatch(url):
        raise StartupError(
            "The store's URL is malformed; expected postgresql://user:password@host:port/name?option=value, "
            "with %40 for @, %2F for / and %25 for % in the user, the password and the name",
            2,
        )


def shown_store_url(url: str) -> str:
    """Without what may be secret: its hosts and its name."""
    found = _URL.fullmatch(url)
    return f"{found['scheme']}{found['place']}" if found else "…"
