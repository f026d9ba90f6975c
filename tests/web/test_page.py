"""The product's page: its snippets, word for word but for the hosts, against the real server.

`realtime-page.txt` is the page's text. What a test adds comes before a snippet, between two of its
comments, or after it.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, Server, need
from tests.web.tools import HERE, Script

PAGE = (HERE / "realtime-page.txt").read_text("utf-8")
HOSTS = {"https://api.paperdb.app": "http", "wss://realtime.paperdb.app": "ws"}


def snippet(begins: str, ends: str, server: Server | None = None) -> str:
    """The page's text from a line that begins so to the end of one that ends so; hosts those of `server`."""
    found = re.search(rf"^{re.escape(begins)}.*?{re.escape(ends)}$", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    text = found[0]
    if server is not None:
        for host, scheme in HOSTS.items():
            text = text.replace(host, f"{scheme}://127.0.0.1:{server.port}")
    return text


def subscribe_snippet(server: Server | None = None) -> tuple[str, str]:
    """The SDK's snippet, cut where the user would stop listening."""
    before, comment, after = snippet("import", "unsubscribe();", server).partition("// Stop listening")
    return before, comment + after


def token_snippet(server: Server | None = None) -> str:
    return snippet("const token", "`\n);", server)


def test_the_page_has_the_snippets_that_are_tested() -> None:
    assert subscribe_snippet()[0].startswith('import { createClient } from "paperdb";')
    assert subscribe_snippet()[1] == "// Stop listening\nunsubscribe();"
    assert token_snippet().startswith("const token = await db.realtime.generateToken({")
    assert token_snippet().endswith("`wss://realtime.paperdb.app?token=${encodeURIComponent(token)}`\n);")


@pytest.mark.executable
def test_subscribe_via_sdk(package: Path, server: Server) -> None:
    subscribe, stop = subscribe_snippet(server)
    source = f"""{subscribe}
        db.realtime.onStatus(({{ state }}) => console.log(state));
        const {"{ once }"} = await import("node:events");
        await once(process, "SIGUSR2");
        {stop}"""
    with Script(package, source, env={"PAPERDB_API_KEY": server.key}) as script:
        script.wait_for("live")
        made = server.insert("messages", {"text": "hello"})
        script.wait_for(made["_id"])
        path = f"/messages/docs/{made['_id']}"
        server.request("PATCH", path, json={"text": "changed"})
        server.request("DELETE", path)
        script.wait_for("Message deleted:")
        script.process.send_signal(signal.SIGUSR2)
        assert script.end(15).endswith("closed")
    shown = re.sub(r"\s+", " ", script.output)
    for text, event in (
        ("hello", "New message:"),
        ("changed", "Message updated:"),
        ("changed", "Message deleted:"),
    ):
        assert re.search(
            rf"{event} {{ _id: '[\w-]{{21}}', text: '{text}', createdAt: '[^']+', updatedAt:", shown
        )


def test_stopping_at_once_as_the_snippet_does(package: Path, server: Server) -> None:
    with Script(package, "".join(subscribe_snippet(server)), env={"PAPERDB_API_KEY": server.key}) as script:
        assert script.end(15) == ""


def test_generate_a_token_manually_and_connect_directly(package: Path, server: Server) -> None:
    source = f"""
        import {{ createClient }} from "paperdb";
        const db = createClient({{ apiKey: process.env.PAPERDB_API_KEY, baseUrl: "{server.url}" }});
        {token_snippet(server)}
        ws.onopen = () => db.notifications.insert({{ text: "plain" }});
        ws.onmessage = ({{ data }}) => {{ console.log(data); ws.close(); }};"""
    env = {"PAPERDB_API_KEY": server.key}
    with Script(package, source, env=env) as script:
        event = json.loads(script.end(15))
    assert sorted(event) == ["collection", "data", "type"]
    assert (event["type"], event["collection"], event["data"]["text"]) == ("insert", "notifications", "plain")


def test_the_token_api_with_curl(server: Server, tmp_path: Path) -> None:
    need("curl")
    command = snippet("curl -X POST", "}'", server).replace("your_api_key", server.key)
    done = subprocess.run(
        [need("bash"), "-c", command],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    answer = json.loads(done.stdout)
    assert answer["collections"] == ["messages", "notifications"]
    assert answer["token"].count(".") == 2
