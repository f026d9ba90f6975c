"""Minting tokens, and ending them before their time."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from paperdb_trio.auth import tokens
from paperdb_trio.errors import bad_request
from paperdb_trio.json_input import parse_json
from paperdb_trio.model import timestamp
from paperdb_trio.net.messages import Response, json_response
from paperdb_trio.rest.call import Call
from paperdb_trio.rest.responses import Revoked, Token
from paperdb_trio.store.administration import Noted
from paperdb_trio.store.revocations import Revocation

MAX_TOKEN_REQUEST_BYTES: Final = 64 * 1024
"""Bytes. Anyone may have a public key, and public keys mint tokens: their requests must be small."""


async def mint_token(call: Call) -> Response:
    """Mint a token."""
    call.services.limits.token(call.identity.key.id)
    request = parse_json(await call.body(MAX_TOKEN_REQUEST_BYTES))
    if not isinstance(request, dict):
        raise bad_request('The body must be a JSON object like {"collections": ["messages"]}')
    minted = tokens.mint(call.services.accounts, call.identity, request)
    return json_response(200, msgspec.convert(minted, Token))


async def revoke_token(call: Call) -> Response:
    """Revoke a token, or all tokens of a subject."""
    request = parse_json(await call.body(MAX_TOKEN_REQUEST_BYTES))
    if not isinstance(request, dict) or len(request) != 1 or not {"jti", "subject"} >= request.keys():
        raise bad_request('The body must be {"jti": "…"} or {"subject": "…"}')
    ((kind, name),) = request.items()
    tokens.check_subject(name, kind)
    now = time.time()
    until = now + tokens.MAX_SECONDS + tokens.SLACK_SECONDS
    services = call.services
    revocation = Revocation(call.database_id, kind, name, int(now * 1000), int(until * 1000))
    action = "token.revoke" if kind == "jti" else "subject.revoke"
    noted = Noted(call.identity.key.by, action, call.identity.database.name, name, {}, revocation)
    response = await call.write(noted, _revoked)
    await services.look_at_accounts()  # at once here; other processes look four times a second
    return response


def _revoked(done: Revocation) -> Response:
    return json_response(200, Revoked(timestamp(done.at / 1000)))
