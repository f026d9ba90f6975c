"""Minting realtime tokens."""

from __future__ import annotations

from typing import Final

import msgspec

from paperdb_trio.auth import tokens
from paperdb_trio.errors import bad_request
from paperdb_trio.json_input import parse_json
from paperdb_trio.net.messages import Response, json_response
from paperdb_trio.rest.call import Call
from paperdb_trio.rest.responses import Token

MAX_TOKEN_REQUEST_BYTES: Final = 64 * 1024
"""Bytes. Anyone may have a public key, and public keys mint tokens: their requests must be small."""


async def mint_token(call: Call) -> Response:
    """Mint a realtime token."""
    call.services.limits.token(call.identity.key.id)
    request = parse_json(await call.body(MAX_TOKEN_REQUEST_BYTES))
    if not isinstance(request, dict):
        raise bad_request('The body must be a JSON object like {"collections": ["messages"]}')
    minted = tokens.mint(call.services.accounts, call.identity, request)
    return json_response(200, msgspec.convert(minted, Token))
