"""Cursors of pages, sealed: they hold the seq of a document's insert, which a rule need not show.

Law: no I/O. A sealed text can be neither read nor made without one of the signing secrets.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Final

from paperdb_trio.errors import bad_request

_NONCE: Final = 16
_TAG: Final = 16


@dataclass(frozen=True, slots=True)
class Seal:
    """`secrets`: the current one first. `context`: where a text may be used."""

    secrets: tuple[bytes, ...]
    context: str

    def close(self, text: str) -> str:
        key, nonce = self._key(self.secrets[0]), os.urandom(_NONCE)
        hidden = _mask(key, nonce, text.encode())
        return urlsafe_b64encode(nonce + hidden + _tag(key, nonce + hidden)).rstrip(b"=").decode()

    def open(self, sealed: str) -> str:
        """Raises a 400 `INVALID_CURSOR` for a text that was not sealed here."""
        try:
            raw = urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
        except ValueError:
            raw = b""
        body, tag = raw[:-_TAG], raw[-_TAG:]
        for key in map(self._key, self.secrets):
            if hmac.compare_digest(tag, _tag(key, body)):
                return _mask(key, body[:_NONCE], body[_NONCE:]).decode()
        raise bad_request(
            "Invalid after: expected the 'next' of a page that was found with a token for this collection",
            "INVALID_CURSOR",
        )

    def _key(self, secret: bytes) -> bytes:
        return hmac.digest(secret, f"cursor of {self.context}".encode(), "sha256")


def _mask(key: bytes, nonce: bytes, text: bytes) -> bytes:
    stream = hashlib.shake_256(key + nonce).digest(len(text))
    return bytes(one ^ other for one, other in zip(text, stream, strict=True))


def _tag(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, b"tag" + text, "sha256")[:_TAG]
