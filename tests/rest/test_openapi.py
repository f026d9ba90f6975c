"""`/openapi.json`: it is valid, it says what the server does, and generators understand it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from paperdb_trio.config import Settings
from paperdb_trio.rest.admin_call import PREFIX
from paperdb_trio.rest.openapi import openapi_document
from paperdb_trio.rest.routes import OPEN_ROUTES, ROUTES
from paperdb_trio.rest.table import OF_THE_CONNECTION, STATUS, refusals
from tests.conftest import ENVIRONMENT, Server, StartServer, wait_until
from tests.test_docs import documented_codes

HERE = Path(__file__).parent
SERVED_FILES = {("GET", "/"), ("GET", "/dashboard/{file}"), ("GET", "/sdk/{file}")}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document(ROUTES, OPEN_ROUTES, Settings())


@pytest.mark.executable
def test_the_document_is_valid_and_has_every_route(server: Server) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    validate(document)
    operations = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    tables = {(route.method, re.sub(r":(\w+)", r"{\1}", route.pattern)) for route in ROUTES}
    assert operations == tables | {("GET", path) for path in OPEN_ROUTES} | SERVED_FILES


def test_each_error_code_has_the_status_that_the_documentation_says() -> None:
    documented = documented_codes()
    assert {code: documented[code] for code in STATUS} == STATUS
    # The others occur only over WebSockets, or in `paperdb import`.
    others = {"TOKEN_MISSING", "TOO_MANY_SUBSCRIPTIONS", "UPGRADE_REQUIRED"}
    imports = {"UNREADABLE", "LINE_TOO_LONG"}
    assert documented.keys() - STATUS.keys() - {*OF_THE_CONNECTION} == others | imports


def test_some_route_names_each_error_code() -> None:
    named = {code for route in ROUTES for codes in refusals(route).values() for code in codes}
    named |= {code for route in OPEN_ROUTES.values() for code in route.refuses}
    assert named == STATUS.keys()


def test_a_limit_is_the_setting_s() -> None:
    document = openapi_document(ROUTES, OPEN_ROUTES, Settings(max_wait=7, max_bulk_documents=11))
    parameters = document["paths"]["/{collection}/changes"]["get"]["parameters"]
    (wait,) = (parameter["schema"] for parameter in parameters if parameter["name"] == "wait")
    assert wait["maximum"] == 7
    assert document["components"]["schemas"]["NewDocuments"]["anyOf"][0]["maxItems"] == 11


@pytest.mark.sqlite  # the document is of the routes, which know no store
@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", ["documents", "administration"])
def test_what_it_allows_is_accepted_and_what_it_forbids_is_refused(
    start_server: StartServer, part: str
) -> None:
    """Hundreds of requests, made from the document: 16 s of CPU, and 13 s for the admin API."""
    server = start_server("--max-wait", "1")
    prefix, key = rf"^/{re.escape(PREFIX)}/", server.key
    only = ["--exclude-path-regex", prefix]
    if part == "administration":
        key = json.loads(server.cli("keys", "create", "--admin", "--json"))["key"]
        wait_until(lambda: server.request("GET", f"/{PREFIX}/me", key=key).status_code == 200)
        server.insert("c", {"a": 1})
        only = ["--include-path-regex", prefix]
    selected = sum(bool(re.match(prefix, route.pattern)) == (part == "administration") for route in ROUTES)
    others = len(OPEN_ROUTES) + len(SERVED_FILES) - 1  # not the document itself
    selected += others if part == "documents" else 0
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    options = ["--config-file", str(HERE / "schemathesis.toml"), "run", f"{server.url}/openapi.json", *only]
    done = subprocess.run(
        [sys.executable, "-c", program, *options, "-H", f"Authorization: Bearer {key}"],
        cwd=HERE.parent.parent,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    assert f"{selected} selected / {len(ROUTES) + others} total" in done.stdout
    assert "Traceback" not in server.stderr


PROGRAM = """
import sys
from paper_db_client import AuthenticatedClient
from paper_db_client.api.documents import find, get, insert
from paper_db_client.models import NewDocument

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
made = insert.sync("users", client=client, body=NewDocument.from_dict({"name": "Ada", "age": 36}))
page = find.sync("users", client=client, filter_='{"age": {"gte": 18}}', sort="-age", limit=10)
assert [document.field_id for document in page.documents] == [made.field_id]
assert page.documents[0]["name"] == "Ada"
assert not page.has_more
assert get.sync("users", made.field_id, client=client).created_at == made.created_at
refused = find.sync("users", client=client, filter_="{")
assert refused.code == "INVALID_JSON", refused
print("done")
"""


@pytest.mark.sqlite
def test_a_client_that_a_generator_made_inserts_and_finds_a_document(server: Server, tmp_path: Path) -> None:
    (tmp_path / "no_linter.yml").write_text("post_hooks: []")
    generator = [sys.executable, "-c", "from openapi_python_client.cli import app; app()", "generate"]
    described = ["--url", f"{server.url}/openapi.json", "--meta", "none", "--fail-on-warning"]
    described += ["--config", str(tmp_path / "no_linter.yml")]
    run(*generator, *described, "--output-path", str(tmp_path / "paper_db_client"))
    assert run(sys.executable, "-c", PROGRAM, server.url, server.key, cwd=tmp_path) == "done\n"


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
