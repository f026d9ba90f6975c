"""Shared by the REST tests: reading a refusal, and curl for requests that httpx would tidy up."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import httpx

from tests.conftest import NO_TLS, Server, need


def refusal(response: httpx.Response) -> tuple[int, str]:
    """`(status, code)` of an error, which must have the shape that every error has."""
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert isinstance(body["error"], str)
    assert body["error"]
    assert body["code"] == body["code"].upper()
    assert "Traceback" not in response.text
    return response.status_code, body["code"]


def client_of(server: Server) -> httpx.Client:
    """A client without a key."""
    return httpx.Client(
        base_url=server.url,
        http1=not server.http2,
        http2=server.http2,
        verify=server.context or NO_TLS,
        timeout=20,
        trust_env=False,
    )


def curl(server: Server, target: str, *options: str, key: str | None = None) -> tuple[int, Any]:
    """`(status, JSON)` of a request whose target is sent byte for byte."""
    done = subprocess.run(
        [
            *(need("curl"), "-sS", "--path-as-is", "--globoff", "--max-time", "20", "-w", "\n%{http_code}"),
            *(("--http2", "--cacert", str(server.certificate)) if server.http2 else ()),
            *("-H", f"X-API-Key: {key or server.key}", *options, server.url + target),
        ],
        capture_output=True,
        timeout=30,
        check=True,
    )
    body, _, status = done.stdout.decode().rpartition("\n")
    return int(status), json.loads(body)


def etag(response: httpx.Response) -> int:
    """The seq in a response's ETag, which must be quoted."""
    tag = response.headers["etag"]
    assert tag == f'"{int(tag[1:-1])}"'
    return int(tag[1:-1])


def figure(server: Server, name: str) -> float:
    """A figure of `/metrics`, of all processes and labels together."""
    lines = server.request("GET", "/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))
