"""API keys: their form and their hash."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Final

from paperdb_trio.errors import StartupError

ADMIN_PREFIX: Final = "pdb_ak_"
SECRET_PREFIX: Final = "pdb_sk_"
_PREFIXES: Final = {"secret": SECRET_PREFIX, "public": "pdb_pk_", "admin": ADMIN_PREFIX}

_SHAPE: Final = re.compile(r"pdb_sk_[A-Za-z0-9_-]{43,128}\Z")


def new_key(kind: str) -> str:
    """A key of 256 random bits; `kind` is secret, public or admin."""
    return _PREFIXES[kind] + secrets.token_urlsafe(32)


def hash_key(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def check_given_key(key: str) -> str:
    """A secret key that an operator chose (`PAPERDB_API_KEY`). Raises `StartupError` for a weak one."""
    if not _SHAPE.match(key):
        raise StartupError(
            "PAPERDB_API_KEY must be 'pdb_sk_' and at least 43 characters of A-Z a-z 0-9 _ - "
            "(create one: echo pdb_sk_$(head -c 32 /dev/urandom | basenc --base64url -w0 | tr -d =))",
            2,
        )
    return key
