"""`paperdb listen` as a process: what it prints, how it resumes, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.auth.commands import run_here
from tests.client.harness import short_token
from tests.conftest import COMMAND, ENVIRONMENT, Server, StartServer, wait_until
from tests.zygote import Popen, run

pytestmark = pytest.mark.sqlite

needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


class Listener:
    """A `paperdb listen` process; `events` and `words` grow as it prints."""

    def __init__(self, server: Server, *arguments: str, **env: str) -> None:
        self._server = server
        self.process = Popen(
            [*COMMAND, "listen", *arguments, "--url", server.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, "PAPERDB_API_KEY": server.key, "PYTHONFAULTHANDLER": "1", **env},
        )
        self.events: list[dict[str, Any]] = []
        self.words = ""
        self._threads = [threading.Thread(target=read) for read in (self._read_events, self._read_words)]
        for thread in self._threads:
            thread.start()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def _read_words(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.words += line

    @property
    def numbers(self) -> list[int]:
        return [event["data"]["n"] for event in self.events]

    def is_listening(self) -> bool:
        return "listening to" in self.words

    def end(self) -> int:
        """SIGINT; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """The exit code. If it does not end, fails and shows what it and the server were doing."""
        code = None
        try:
            code = self.process.wait(30)  # some start first: the executable takes 0.4 s of CPU for it
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # its stack goes to stderr
            self.process.wait(5)
        finally:
            self.process.kill()
            self.process.wait()
            for thread in self._threads:
                thread.join()
            for pipe in (self.process.stdout, self.process.stderr):
                assert pipe is not None
                pipe.close()
        assert code is not None, f"still running; it said: {self.words}\nthe server said: {self._server.stderr}"
        return code


@pytest.fixture
def listeners() -> Iterator[list[Listener]]:
    started: list[Listener] = []
    yield started
    for listener in started:
        if listener.process.poll() is None:
            listener.process.kill()
            listener.wait()


@pytest.mark.smoke
@pytest.mark.executable
def test_it_prints_events_reconnects_and_resumes(start_server: StartServer, listeners: list[Listener]) -> None:
    server = start_server()
    listener = Listener(server, "a", "b")
    listeners.append(listener)
    wait_until(listener.is_listening, 10)
    first = server.insert("a", {"n": 0, "text": "ä\n"})
    wait_until(lambda: len(listener.events) == 1)
    assert listener.events == [{"seq": 1, "type": "insert", "collection": "a", "data": first}]
    server.kill()
    wait_until(lambda: "disconnected" in listener.words)
    server.start()
    for n in range(1, 6):
        server.insert("ab"[n % 2], {"n": n})
        server.insert("other", {"n": 99})
    wait_until(lambda: len(listener.events) == 6, 20)
    assert listener.end() == 0
    assert listener.numbers == [0, 1, 2, 3, 4, 5]
    assert "Traceback" not in listener.words
    assert "again in" in listener.words
    assert server.key not in listener.words

    resumed = Listener(server, "a", "b", "--since", str(listener.events[2]["seq"]))
    listeners.append(resumed)
    wait_until(lambda: len(resumed.events) == 3, 10)
    assert resumed.end() == 0
    assert resumed.numbers == [3, 4, 5]


@pytest.mark.smoke
@pytest.mark.executable
def test_a_refused_token_is_one_line(server: Server, listeners: list[Listener]) -> None:
    for arguments, words in (
        (("a", "--token", "rubbish"), "Invalid token"),
        (("a", "--key", "pdb_sk_rubbish"), "Missing or invalid Authorization header"),
        (("no good",), "Invalid collection name"),
    ):
        listener = Listener(server, *arguments)
        listeners.append(listener)
        assert listener.wait() == 1
        assert listener.words.startswith("paperdb: The server refused: ")
        assert words in listener.words
        assert listener.words.count("\n") == 1
        assert listener.events == []


def test_a_given_token_is_used_and_a_wrong_url_is_shown(server: Server, listeners: list[Listener]) -> None:
    listener = Listener(server, "a", "--token", server.token("a"), PAPERDB_API_KEY="")
    listeners.append(listener)
    wait_until(listener.is_listening, 10)
    assert listener.end() == 0
    command = [*COMMAND, "listen", "a", "--key", "k", "--url", "127.0.0.1:8000"]
    wrong = run(command, text=True, env=ENVIRONMENT, timeout=20)
    assert wrong.returncode == 2
    assert "Invalid URL" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("stdout", "lines", "why"),
    [
        ("| head -n 1", 1, "Broken pipe"),
        pytest.param("> /dev/full", 0, "No space left on device", marks=needs_full),
        (">&-", 0, "it is closed"),
    ],
)
def test_a_stdout_that_cannot_be_written_ends_it_with_6(
    server: Server, collection: str, stdout: str, lines: int, why: str
) -> None:
    documents = [{"n": n, "text": "x" * 1000} for n in range(500)]  # more than a pipe holds
    assert server.request("POST", f"/{collection}/bulk", json=documents).json()["inserted"] == 500
    command = f"{' '.join(COMMAND)} listen {collection} --since 0 --url {server.url}"
    done = subprocess.run(
        ["sh", "-c", f"{{ {command}; echo ended with $? >&2; }} {stdout}"],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "PAPERDB_API_KEY": server.key},
        timeout=20,
        check=False,
    )
    assert [json.loads(line)["data"]["n"] for line in done.stdout.splitlines()] == list(range(lines))
    listening, *ended = done.stderr.splitlines()
    assert "listening to" in listening
    assert ended == [f"paperdb: Cannot write to stdout: {why}", "ended with 6"]


def test_an_expired_token_is_one_line(server: Server, collection: str, listeners: list[Listener]) -> None:
    """There is no other token, so it does not try again."""
    listener = Listener(server, collection, "--token", short_token(server, collection, seconds=-5))
    listeners.append(listener)
    assert listener.wait() == 1
    words = "The server refused: The token has expired; get a new one (401 TOKEN_EXPIRED)"
    assert listener.words == f"paperdb: {words}\n"
    listener = Listener(server, collection, "--token", short_token(server, collection, seconds=3))
    listeners.append(listener)
    assert listener.wait() == 1
    assert listener.words.splitlines()[-1] == f"paperdb: {words}"


def test_the_largest_document_is_printed(start_server: StartServer, listeners: list[Listener]) -> None:
    server = start_server("--max-document-bytes", str(3 << 20))
    listener = Listener(server, "a")
    listeners.append(listener)
    wait_until(listener.is_listening, 10)
    document = server.insert("a", {"text": "x" * (3 * 2**20 - 200)})
    wait_until(lambda: len(listener.events) == 1)
    assert listener.events[0]["data"] == document
    assert listener.end() == 0


def test_a_revoked_key_ends_it(server: Server, collection: str, listeners: list[Listener]) -> None:
    key = server.new_key()
    listener = Listener(server, collection, PAPERDB_API_KEY=key["key"])
    listeners.append(listener)
    wait_until(listener.is_listening, 10)
    server.cli("keys", "revoke", key["id"])
    assert listener.wait() == 1
    assert "API key revoked" in listener.words.splitlines()[-1]


def test_a_filter_narrows_one_collection(server: Server, collection: str, listeners: list[Listener]) -> None:
    listener = Listener(server, collection, "--filter", '{"n": {"gte": 5}}', "--select", "n")
    listeners.append(listener)
    wait_until(listener.is_listening, 10)
    server.insert(collection, {"_id": "low", "n": 1})
    server.insert(collection, {"_id": "a", "n": 5, "text": "x"})
    assert server.request("PATCH", f"/{collection}/docs/a", json={"n": 2}).status_code == 200
    wait_until(lambda: len(listener.events) == 2)
    assert listener.end() == 0
    assert [(e["type"], e["cause"], e["data"]) for e in listener.events] == [
        ("insert", "insert", {"_id": "a", "n": 5}),
        ("delete", "update", {"_id": "a", "n": 5}),
    ]
    resumed = Listener(server, collection, "--filter", '{"n": 5}', "--since", str(listener.events[0]["seq"]))
    listeners.append(resumed)
    wait_until(lambda: len(resumed.events) == 1)
    assert resumed.events[0]["type"] == "delete"
    assert resumed.end() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a", "b", "--filter", "{}"), "take one collection"),
        (("a", "--filter", "[1]"), "expected a JSON object, not [1]"),
        (("a", "--filter", "{n: 1}"), "expected a JSON object, not {n: 1}"),
    ],
)
def test_a_malformed_filter_is_refused(arguments: tuple[str, ...], words: str) -> None:
    done = run_here("listen", *arguments, "--key", "k")
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_filter_that_the_server_refuses_is_one_line(
    server: Server, collection: str, listeners: list[Listener]
) -> None:
    listener = Listener(server, collection, "--filter", '{"n": {"near": 1}}')
    listeners.append(listener)
    assert listener.wait() == 1
    assert "UNKNOWN_OPERATOR" in listener.words.splitlines()[-1]
