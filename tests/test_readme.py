"""The README says what is true: every setting, every route, and that its lines can be pasted."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paperdb_trio.config import Settings
from paperdb_trio.rest.routes import OPEN_ROUTES, ROUTES
from tests.conftest import ENVIRONMENT, Server
from tests.web.test_page import subscribe_snippet

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("setting", dataclasses.fields(Settings), ids=lambda setting: setting.name)
def test_every_setting_is_documented_with_its_default_and_meaning(setting: dataclasses.Field[object]) -> None:
    row = f"| `--{setting.name.replace('_', '-')}` | `{setting.default}` | {setting.metadata['help']} |"
    assert row in README


@pytest.mark.parametrize("path", sorted({route.pattern for route in ROUTES} | set(OPEN_ROUTES)))
def test_every_route_is_documented(path: str) -> None:
    assert re.search(rf"{re.escape(path)}[`?]", README)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def run(source: str, server: Server) -> subprocess.Popen[str]:
    """A Python program of the README, with the host of `server` and nothing else changed."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", source.replace("http://127.0.0.1:8000", server.url)],
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PAPERDB_API_KEY": server.key},
    )


def test_the_python_programs_run_as_they_are(server: Server) -> None:
    listening, script = blocks("python")
    with run(listening, server) as process:
        assert process.stdout is not None
        try:
            assert re.match(r"\d+ insert {'_id': '[\w-]{21}', 'text': 'hello'", process.stdout.readline())
            server.insert("messages", {"text": "from elsewhere"})
            assert "from elsewhere" in process.stdout.readline()
        finally:
            process.kill()
    with run(script, server) as process:
        output, _ = process.communicate(timeout=20)
    assert "'text': 'hello'" in output
    assert process.returncode == 0


def test_the_javascript_is_the_product_page_s_but_for_the_hosts(server: Server) -> None:
    """`tests/web/test_page.py` runs it."""
    ours = blocks("js")[0]
    theirs = "".join(subscribe_snippet())
    for host in (r"https://api\.paperdb\.app", r"http://127\.0\.0\.1:8000"):
        ours, theirs = re.sub(host, "HOST", ours), re.sub(host, "HOST", theirs)
    # realtimeUrl defaults to baseUrl: one host serves both here.
    assert ours.strip() == re.sub(r"\n  realtimeUrl: .*", "", theirs).strip()


def test_the_service_is_tried_again_after_what_may_pass() -> None:
    """Not after wrong usage, a damaged file or a newer one's, or a wrong certificate: those need somebody."""
    (unit,) = blocks("ini")
    assert "\nRestart=on-failure\n" in unit
    assert re.findall(r"RestartPreventExitStatus=(.*)", unit) == ["2 3 4 8"]
    assert re.findall(r"RestartSec=(\d+)", unit) == ["3"]  # 5 starts in 10 s, and systemd gives up


def test_the_terminal_s_line_listens(server: Server) -> None:
    (line,) = re.findall(r"`\.venv/bin/paperdb (listen messages) --key pdb_sk_…`", README)
    command = [sys.executable, "-m", "paperdb_trio", *line.split(), "--key", server.key, "--url", server.url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert "listening to messages" in process.stderr.readline()
            made = server.insert("messages", {"text": "hello"})
            assert made["_id"] in process.stdout.readline()
        finally:
            process.kill()


SECURITY = (Path(__file__).parent.parent / "SECURITY.md").read_text()


def test_the_page_on_attacks_names_only_settings_that_exist() -> None:
    known = {f"--{setting.name.replace('_', '-')}" for setting in dataclasses.fields(Settings)}
    named = set(re.findall(r"`(--[a-z-]+)`", SECURITY))
    assert named <= known
    assert len(named) > 20
