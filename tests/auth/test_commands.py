"""The commands for databases and keys, with and without a running server."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from paperdb_trio.store.administration import AddKey
from paperdb_trio.store.records import NewKey
from paperdb_trio.store.sqlite import admin
from tests.auth.commands import fails_here, run_here
from tests.conftest import COMMAND, ENVIRONMENT, Server, wait_until
from tests.store.tools import content, new_file
from tests.zygote import Popen


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a database, without a server."""
    new_file(tmp_path)
    return tmp_path


@pytest.mark.smoke
@pytest.mark.executable
def test_databases_are_listed_with_their_plans_and_counts(server: Server) -> None:
    server.cli("databases", "create", "test_cli", "--plan", "free")
    server.insert("c", {}, key=server.new_key("test_cli")["key"])
    server.cli("databases", "set-plan", "test_cli", "pro")
    listed = {row["name"]: row for row in json.loads(server.cli("databases", "list", "--json"))}
    row = listed["test_cli"]
    assert (row["plan"], row["collections"], row["documents"]) == ("pro", 1, 1)
    assert listed["default"]["plan"] == "team"
    assert re.search(r"^test_cli +pro +\S+ +1 +1 ", server.cli("databases", "list"), re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["databases", "create", "default", "--plan", "pro"], 1, "'default'"),
        (["databases", "create", "a b", "--plan", "pro"], 2, "'a b'"),
        (["databases", "create", "", "--plan", "pro"], 2, "''"),
        (["databases", "create", "x" * 65, "--plan", "pro"], 2, "Invalid"),
        (["databases", "set-plan", "nowhere", "pro"], 1, "'nowhere'"),
        (["keys", "create", "--database", "nowhere"], 1, "'nowhere'"),
        (["keys", "revoke", "nobody"], 1, "'nobody'"),
    ],
)
def test_duplicate_and_unknown_names_are_refused(
    data: Path, arguments: list[str], code: int, word: str
) -> None:
    before = content(data / "paperdb.sqlite")
    fails_here(run_here(*arguments, "--data", data), code, word)
    assert content(data / "paperdb.sqlite") == before


@pytest.mark.parametrize("public", [False, True])
def test_key_is_shown_once_and_listed_without_its_text(data: Path, public: bool) -> None:
    options = ["--public"] if public else []
    created = json.loads(
        run_here("keys", "create", "--label", "mine", "--json", *options, "--data", data).stdout
    )
    assert set(created) == {"id", "key", "database", "kind"}
    assert created["kind"] == ("public" if public else "secret")
    assert created["key"].startswith("pdb_pk_" if public else "pdb_sk_")
    for options in ([], ["--json"]):
        listed = run_here("keys", "list", *options, "--data", data).stdout
        assert created["id"] in listed
        assert "mine" in listed
        assert created["key"] not in listed
    plain = run_here("keys", "create", *(["--public"] if public else []), "--data", data).stdout
    assert re.search(r"pdb_(sk|pk)_[\w-]{43}", plain)


def test_revocation_is_final_and_can_be_repeated(data: Path) -> None:
    key = json.loads(run_here("keys", "create", "--json", "--data", data).stdout)

    def revoked_at() -> str | None:
        listed = json.loads(run_here("keys", "list", "--json", "--data", data).stdout)
        (row,) = (row for row in listed if row["id"] == key["id"])
        revoked: str | None = row["revokedAt"]
        return revoked

    assert revoked_at() is None
    assert run_here("keys", "revoke", "--data", data, "--", key["id"]).exit_code == 0
    first = revoked_at()
    assert first is not None
    assert run_here("keys", "revoke", "--data", data, "--", key["id"]).exit_code == 0
    assert revoked_at() == first


@pytest.mark.parametrize("id", ["-an_id", "-h", "-oKAyh-9", "--help-", "---data"])
def test_key_whose_id_begins_with_a_hyphen_can_be_revoked(data: Path, id: str) -> None:
    """One id in 64 does, and users paste it without `--`. With `-h` in it, the command showed its help, exited
    with 0, and the key stayed valid."""
    admin.apply(data / "paperdb.sqlite", AddKey("test", "default", NewKey(id, "public", "", b"another hash")))
    done = run_here("keys", "revoke", id, "--data", data)
    assert (done.exit_code, done.stdout) == (0, f"Revoked {id}.\n")
    listed = {row["id"]: row for row in json.loads(run_here("keys", "list", "--json", "--data", data).stdout)}
    assert listed[id]["revokedAt"] is not None


def test_commands_and_writes_do_not_block_each_other(server: Server, collection: str) -> None:
    """The file has one writer at a time; neither side fails when both need it."""
    commands = [
        Popen(
            [*COMMAND, "keys", "create", "--data", str(server.data)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        for _ in range(3)
    ]
    written = 0
    while any(command.poll() is None for command in commands):
        server.insert(collection, {})
        written += 1
    for command in commands:
        assert command.communicate(timeout=10)[1] == b""
        assert command.returncode == 0
    wait_until(lambda: server.request("GET", f"/{collection}/count").json() == {"count": written})
