"""The documentation is true: it covers everything that exists, names nothing else, and its blocks run.

Rules: a page's blocks run in order, in one folder, against one server; only the host is changed.
`python -m tests.test_docs` rewrites the table of settings in docs/operations.md.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import paperdb_trio
from bench.scenarios import SCENARIOS
from paperdb_trio.cli import main
from paperdb_trio.config import Settings
from paperdb_trio.realtime.protocol import ACTIONS, CloseCode
from paperdb_trio.rest.admin_call import PREFIX
from paperdb_trio.rest.routes import OPEN_ROUTES, ROUTES
from paperdb_trio.web import wheel
from paperdb_trio.web.assets import SOURCE_ARCHIVE
from tests.conftest import ENVIRONMENT, Server, StartServer, need
from tests.docs import PAGES, ROOT, RUNS, Block, anchors, blocks, links, printed_as, prose, text
from tests.web.test_page import subscribe_snippet, token_snippet
from tests.web.tools import current_node, new_package

PACKAGE = ROOT / "paperdb_trio"
HOST = "127.0.0.1:8000"
RUN_AS_A_WHOLE = (
    "rest",
    "realtime",
    "tokens",
    "python-sdk",
    "javascript-sdk",
    "operations",
    "admin",
    "webhooks",
)
RUN_ELSEWHERE = {
    "README.md": "below, tests/web/test_page.py, .ci/newcomer",
    "docs/tutorial.md": "tests/web/test_tutorial.py",
    "docs/contributing.md": "it is the beginning of the README's test line",
}
EVENT_SOURCE = "let since"
"""The start of the snippet that tests/web/test_browser.py runs."""

# --- everything is documented --------------------------------------------------------------------


def row(setting: dataclasses.Field[object]) -> str:
    return f"| `--{setting.name.replace('_', '-')}` | `{setting.default}` | {setting.metadata['help']} |"


@pytest.mark.parametrize("setting", dataclasses.fields(Settings), ids=lambda setting: setting.name)
def test_every_setting_is_documented_with_its_default_and_meaning(setting: dataclasses.Field[object]) -> None:
    assert row(setting) in text("docs/operations.md"), "run: python -m tests.test_docs"


def test_pages_name_only_existing_settings_and_options() -> None:
    known = {f"--{setting.name.replace('_', '-')}" for setting in dataclasses.fields(Settings)}
    known |= {"--config", *(option for _, command in commands() for option in options(command))}
    named = set(re.findall(r"`(--[a-z-]+)", text("docs/operations.md") + text("docs/security.md")))
    assert named <= known
    assert len(named) > 40


ALL_ROUTES = sorted(
    {(route.method, route.pattern, route.query) for route in ROUTES}
    | {("GET", path, ()) for path in OPEN_ROUTES}
)


@pytest.mark.parametrize(("method", "path", "query"), ALL_ROUTES, ids=lambda part: str(part))
def test_every_route_and_its_parameters_are_documented(method: str, path: str, query: tuple[str, ...]) -> None:
    page = text("docs/admin.md" if path.startswith(f"/{PREFIX}/") else "docs/rest.md")
    (line,) = re.findall(rf"^\| `{method} {re.escape(path)}` \|.*$", page, re.MULTILINE)
    meaning = line.replace(
        "as above", " ".join(re.findall(r"^\| `GET /:collection/docs` .*", text("docs/rest.md"), re.M))
    )
    for name in query:
        assert f"`{name}" in meaning, name


def test_every_close_code_is_documented() -> None:
    codes = {int(code) for code in CloseCode}
    codes |= {int(code) for code in re.findall(r"ProtocolError\((\d{4})", source("net/frames.py"))}
    rows = {int(code) for code in re.findall(r"^\| (\d{4}) \|", text("docs/realtime.md"), re.MULTILINE)}
    assert codes <= rows
    assert rows - codes <= {1001}  # a proxy's, or a browser's


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_is_documented(action: str) -> None:
    assert f'| `{{"action": "{action}"' in text("docs/realtime.md")


METRIC = re.compile(r"^\| `((?:paperdb|process)_\w+)` \| ((?:`\w+`(?:, )?)*) ?\|", re.MULTILINE)


def test_every_metric_is_documented_with_its_labels(start_server: StartServer) -> None:
    server = start_server("--metrics-key", "prometheus")
    server.insert("c", {})
    server.request("GET", "/c/docs", key="none")
    server.request("GET", "/c/docs")
    shown = server.request("GET", "/metrics", key="prometheus").text
    labels = {name: set[str]() for name in re.findall(r"^# TYPE (\w+)", shown, re.MULTILINE)}
    for name, braces in re.findall(r"^(\w+)\{(.*)\} ", shown, re.MULTILINE):
        family = name if name in labels else name.rpartition("_")[0]
        labels[family] |= {*re.findall(r'(\w+)="', braces)} - {"le", "worker"}
    documented = METRIC.findall(text("docs/operations.md"))
    assert {name: {*re.findall(r"\w+", own)} for name, own in documented} == labels


_CODE = re.compile(r"[A-Z]{2,}(_[A-Z]+)+|[A-Z]{6,}|RULE")
_STATUSES = {"bad_request": 400}


def error_codes(*folders: str) -> dict[str, set[int]]:
    """The error codes that Python modules raise, each with the statuses that are written beside it."""
    found: dict[str, set[int]] = defaultdict(set)
    for path in (file for folder in folders for file in PACKAGE.glob(folder)):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            if not (name.endswith("Error") or name in _STATUSES):
                continue
            values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            statuses = {value for value in values if type(value) is int and value >= 400}
            for value in values:
                if isinstance(value, str) and _CODE.fullmatch(value):
                    found[value] |= statuses or {_STATUSES[name]} if name in _STATUSES else statuses
    return found


def server_codes() -> dict[str, set[int]]:
    everything = error_codes("*.py", "[!c]*/**/*.py", "cli/*.py")
    return {"INVALID_REQUEST": {400}, **everything}


REPLIES_ONLY = {"INVALID_MESSAGE", "UNKNOWN_ACTION", "NOT_SUBSCRIBED", "SUBSCRIBED_TO_ALL"}


def documented_codes() -> dict[str, int]:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d{3}) \|", text("docs/rest.md"), re.MULTILINE)
    return {code: int(status) for code, status in rows}


def test_every_error_code_of_the_server_is_documented_with_its_status() -> None:
    found, documented = server_codes(), documented_codes()
    assert len(found) > 40
    for code, statuses in found.items():
        if code not in REPLIES_ONLY:
            assert documented.get(code) in (statuses or {documented.get(code, 0)}), code
    assert documented.keys() == found.keys() - REPLIES_ONLY


def test_every_error_code_of_a_websockets_replies_is_documented() -> None:
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", text("docs/realtime.md"), re.MULTILINE))
    assert rows > REPLIES_ONLY
    assert rows <= server_codes().keys()


@pytest.mark.parametrize("sdk", ["python", "javascript"])
def test_every_error_code_of_an_sdk_is_documented(sdk: str) -> None:
    if sdk == "python":
        found = set(error_codes("client/*.py")) | set(
            re.findall(r'"(ACCESS_LOST|CLOSED)"', source("client/*.py"))
        )
    else:
        scripts = source("web/sdk/*.js")
        found = set(re.findall(r'(?:code: |code = |invalid\(|\d{4}: )"([A-Z_]+)"', scripts))
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", text(f"docs/{sdk}-sdk.md"), re.MULTILINE))
    assert len(found) > 6
    assert found <= rows | documented_codes().keys()
    assert rows <= found


def source(pattern: str) -> str:
    return "\n".join(file.read_text("utf-8") for file in sorted(PACKAGE.glob(pattern)))


def test_every_exit_code_is_documented() -> None:
    codes = {int(code) for code in re.findall(r"^EXIT_\w+: Final = (\d+)", source("**/*.py"), re.MULTILINE)}
    launcher = (ROOT / "binary/launcher.c").read_text("utf-8")
    codes |= {int(code) for code in re.findall(r"(?:exit|return) ?\(?([1-9]\d+)\)?;", launcher)}
    table = text("docs/operations.md").partition("### Exit codes")[2].partition("###")[0]
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert {3, 4, 5, 6, 7, 8, 9, 10, 70} <= codes
    assert codes <= rows


def commands(group: click.Group = main, above: str = "paperdb") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{above} {name}")
        else:
            yield f"{above} {name}", command


def options(command: click.Command) -> list[str]:
    return [name for parameter in command.params for name in parameter.opts if name.startswith("--")]


@pytest.mark.parametrize(
    ("name", "command"), list(commands()), ids=lambda part: part if isinstance(part, str) else ""
)
def test_every_command_and_its_options_are_documented(name: str, command: click.Command) -> None:
    page = text("docs/operations.md")
    assert re.search(rf"{name}\b", page)
    for option in options(command):
        assert re.search(rf"{option}\b", page), option


def test_every_environment_variable_is_documented() -> None:
    for name in re.findall(r'"(PAPERDB_[A-Z_]+)"', source("config.py") + source("cli/*.py")):
        setting = name.removeprefix("PAPERDB_").lower()
        if setting not in {field.name for field in dataclasses.fields(Settings)}:
            assert f"`{name}`" in text("docs/operations.md"), name


@pytest.mark.parametrize("name", paperdb_trio.__all__)
def test_every_name_of_the_python_sdk_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\b", text("docs/python-sdk.md"))


@pytest.mark.parametrize("page", ["README.md", "docs/python-sdk.md"])
def test_pip_is_given_the_address_that_tests_install_from(page: str) -> None:
    """`tests/web/test_wheel.py` does."""
    assert re.findall(r"pip install (http[^\s`]+)", text(page)) == [f"http://{HOST}{SOURCE_ARCHIVE}"]


def test_every_method_of_the_python_sdk_is_documented() -> None:
    collection = importlib.import_module("paperdb_trio.client.collection").Collection
    for name in (name for name in vars(collection) if not name.startswith("_")):
        assert f"| `{name}(" in text("docs/python-sdk.md"), name


@pytest.mark.parametrize("interface", ["ClientOptions", "Collection", "FindOptions", "SubscribeOptions"])
def test_every_option_and_method_of_the_javascript_sdk_is_documented(interface: str) -> None:
    (body,) = re.findall(
        rf"^export interface {interface}\b[^{{\n]*?.*?\{{\n(.*?)^\}}", source("web/sdk/*.d.ts"), re.S | re.M
    )
    names = re.findall(r"^  (?:readonly )?(\w+)[?(:]", body, re.MULTILINE)
    assert len(names) > 2
    for name in names:
        assert re.search(rf"\b{name}\b", text("docs/javascript-sdk.md")), name


# --- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_an_existing_file_and_heading(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_reachable_from_the_readme() -> None:
    reached, left = set[Path](), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page.suffix == ".md" and page not in reached:
            reached.add(page)
            left += [(page.parent / target.partition("#")[0]).resolve() for target in links(page)]
    assert set(PAGES) <= reached


def test_files_named_in_code_exist() -> None:
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for name in re.findall(
            r"(?<![\w/.])((?:tests|bench|binary|examples|paperdb_trio)/[\w./-]*)\b", prose(page)
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_named_recipes_and_scenarios_exist() -> None:
    recipes = set(re.findall(r"^(\w[\w-]*)(?: \*\w+)?:", text("justfile"), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`just ([\w-]+)", page.read_text("utf-8"))) <= recipes, page.name
        assert set(re.findall(r"`(?:just )?bench ([a-z]+)", page.read_text("utf-8"))) <= SCENARIOS.keys(), (
            page.name
        )


def test_versions_that_a_release_sets_are_equal() -> None:
    assert tomllib.loads(text("pyproject.toml"))["project"]["version"] == paperdb_trio.__version__


# --- the README ----------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert 6 * 1024 <= len((ROOT / "README.md").read_bytes()) <= 8192


def test_javascript_equals_the_product_pages_except_for_hosts() -> None:
    """`tests/web/test_page.py` runs it."""
    subscribe, token = (block.source for block in blocks("README.md", "js"))
    # realtimeUrl defaults to baseUrl, because one host serves both here.
    assert no_hosts(subscribe) == no_hosts(re.sub(r"\n  realtimeUrl: .*", "", "".join(subscribe_snippet())))
    # A shorter host fits on one line.
    assert no_hosts(token) == no_hosts(re.sub(r"\(\n  (`.*`)\n\)", r"(\1)", token_snippet()))


def no_hosts(snippet: str) -> str:
    return re.sub(r"(https?|wss?)://[\w.:]+", "HOST", snippet).strip()


def test_readmes_program_runs_unchanged(server: Server) -> None:
    (listening,) = blocks("README.md", "python")
    with start(listening.source, server) as process:
        assert process.stdout is not None
        try:
            assert re.match(r"\d+ insert {'_id': '[\w-]{21}', 'text': 'hello'", process.stdout.readline())
            server.insert("messages", {"text": "from elsewhere"})
            assert "from elsewhere" in process.stdout.readline()
        finally:
            process.kill()


def start(program: str, server: Server) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", program.replace(HOST, f"127.0.0.1:{server.port}")],
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PAPERDB_API_KEY": server.key},
    )


def test_readmes_curl_gets_a_token(server: Server) -> None:
    (curl,) = (block.source for block in blocks("README.md", "sh") if block.source.startswith("curl"))
    need("curl")
    shell = curl.replace(HOST, f"127.0.0.1:{server.port}").replace("your_api_key", server.key)
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=20, check=True)
    assert '"token":"ey' in done.stdout


def test_readmes_terminal_line_listens(server: Server) -> None:
    (line,) = re.findall(r"`\.venv/bin/paperdb (listen messages) --key pdb_sk_…`", text("README.md"))
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


def test_contributors_set_up_the_readmes_tests() -> None:
    (set_up,) = blocks("docs/contributing.md", "sh")
    assert any(block.source.startswith(f"{set_up.source.strip()} && ") for block in blocks("README.md", "sh"))


# --- blocks that run -----------------------------------------------------------------------------


def test_every_page_with_runnable_blocks_is_run() -> None:
    known = {f"docs/{page}.md" for page in RUN_AS_A_WHOLE} | RUN_ELSEWHERE.keys()
    assert {page for page in map(relative, PAGES) if blocks(page, *RUNS)} <= known
    others = {block.language for page in map(relative, PAGES) for block in blocks(page)} - {*RUNS}
    assert others <= {"json", "text", "console", "html", "ts", "nginx", "caddy", "ini"}


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", RUN_AS_A_WHOLE)
def test_blocks_of_a_page_run_unchanged(page: str, start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(data=tmp_path / "paperdb-data")
    found = [block for block in blocks(f"docs/{page}.md", *RUNS) if not block.source.startswith(EVENT_SOURCE)]
    assert found
    if any(block.language == "js" for block in found):
        new_package(tmp_path, server.url)
    sdk = tmp_path / "paperdb.whl"  # Python imports from it as from a folder
    sdk.write_bytes(wheel.wheel(wheel.sources())[1])
    for block in found:
        where = f"docs/{page}.md:{block.line}"
        done = subprocess.run(
            command(block, tmp_path, server),
            cwd=tmp_path,
            env={**paths(), "PAPERDB_API_KEY": server.key, "PYTHONPATH": str(sdk)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{where}: {done.stderr}"
        if block.output is not None:
            assert printed_as(block.output, done.stdout), f"{where} printed {done.stdout}"


def command(block: Block, folder: Path, server: Server) -> list[str]:
    code = block.source.replace(HOST, f"127.0.0.1:{server.port}")
    if block.language == "sh":
        return ["bash", "-euo", "pipefail", "-c", code]
    if block.language == "python":
        return [sys.executable, "-c", code]
    script = folder / "block.mjs"
    script.write_text(code, "utf-8")
    return [need("node") if "WebSocket: ws" in code else current_node(), str(script)]


def paths() -> dict[str, str]:
    """`paperdb` is the command under test."""
    return {
        **ENVIRONMENT,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{ENVIRONMENT['PATH']}",
        "NO_COLOR": "1",
    }


def test_shell_can_parse_blocks_that_no_test_can_run() -> None:
    for page in map(relative, PAGES):
        for block in blocks(page, "console"):
            subprocess.run(["bash", "-n", "-c", block.source], check=True)


def test_service_restarts_after_temporary_failures_only() -> None:
    """Not after wrong usage, a damaged or newer file, or a wrong certificate, which need an operator."""
    (unit,) = (block.source for block in blocks("docs/operations.md", "ini"))
    assert "\nRestart=on-failure\n" in unit
    assert re.findall(r"RestartPreventExitStatus=(.*)", unit) == ["2 3 4 8"]
    assert re.findall(r"RestartSec=(\d+)", unit) == ["3"]  # 5 starts in 10 s, and systemd gives up


def test_containers_settings_exist() -> None:
    named = re.findall(r"\b(PAPERDB_\w+)=", text("Dockerfile"))
    assert named
    assert {name.removeprefix("PAPERDB_").lower() for name in named} <= {
        setting.name for setting in dataclasses.fields(Settings)
    }


def rewrite_settings() -> None:
    """Rewrite the table of settings."""
    page = ROOT / "docs/operations.md"
    rows = "\n".join(map(row, dataclasses.fields(Settings)))
    table = re.compile(r"(\| option \| default \| meaning \|\n\|---\|---\|---\|\n).*?\n\n", re.DOTALL)
    page.write_text(table.sub(lambda match: f"{match[1]}{rows}\n\n", page.read_text("utf-8"), count=1), "utf-8")


if __name__ == "__main__":
    rewrite_settings()
