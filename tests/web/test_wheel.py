"""The Python SDK as pip gets it from the server: what it holds, that it stays the same, that it works alone."""

from __future__ import annotations

import ast
import csv
import io
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from base64 import urlsafe_b64encode
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest

import paperdb_trio.client
from paperdb_trio.web import wheel
from paperdb_trio.web.assets import SOURCE_ARCHIVE
from tests.conftest import ENVIRONMENT, Server, lacking
from tests.test_sources import declared, imported

NAME, BODY = wheel.wheel(wheel.sources())
FOLDER = Path(paperdb_trio.client.__file__).parent
PROGRAM = """
import sys, trio, paperdb

async def main(url, key):
    async with paperdb.create_client(base_url=url, api_key=key) as db:
        async with db.realtime.subscribe("wheel") as events:
            await db.wheel.insert({"text": "hello"})
            event = await anext(aiter(events))
            print(event.data["text"], *(name for name in sys.modules if "paperdb" in name))

trio.run(main, *sys.argv[1:])
"""


def contents(body: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.executable
def test_the_server_has_the_wheel_at_an_address_of_its_own_and_within_an_archive(server: Server) -> None:
    assert server.request("GET", f"/sdk/{NAME}").content == BODY
    assert server.request("GET", SOURCE_ARCHIVE).content == wheel.source_archive(NAME, BODY)
    assert f"sdk/{NAME}<" in server.request("GET", "/").text
    other = server.request("GET", "/sdk/paperdb-0.0.1-py3-none-any.whl")
    assert other.status_code == 404
    assert f"/sdk/{NAME}" in other.json()["error"]


def test_it_holds_the_modules_as_they_are_and_shares_no_file_with_the_server_s_package() -> None:
    files = contents(BODY)
    info = f"{NAME.removesuffix('-py3-none-any.whl')}.dist-info"
    assert {name for name in files if not name.startswith(f"{info}/")} == {
        "paperdb/py.typed",
        *(f"paperdb/{file.name}" for file in FOLDER.glob("*.py")),
    }
    for file in FOLDER.glob("*.py"):
        assert files[f"paperdb/{file.name}"] == file.read_bytes()
    record = list(csv.reader(files[f"{info}/RECORD"].decode().splitlines()))
    assert {name for name, _, _ in record} == files.keys()
    for name, digest, size in record[:-1]:
        assert int(size) == len(files[name])
        assert digest == f"sha256={urlsafe_b64encode(sha256(files[name]).digest()).decode().rstrip('=')}"


def test_its_modules_import_what_it_requires_and_nothing_else() -> None:
    names = {name for file in FOLDER.glob("*.py") for name in imported(ast.parse(file.read_text()))}
    names.discard("typing_extensions")  # for type checkers only, which bring it
    required = {line.partition(">")[0]: line for line in wheel.REQUIRES}
    assert names - set(sys.stdlib_module_names) == {name.replace("-", "_") for name in required}
    assert set(required.values()) == {name + declared()[name] for name in required}


def test_its_name_changes_with_its_modules_and_with_nothing_else(tmp_path: Path) -> None:
    copy = tmp_path / "client"
    shutil.copytree(FOLDER, copy, copy_function=shutil.copyfile)  # with other times
    assert wheel.wheel(copy) == (NAME, BODY)
    with (copy / "status.py").open("a") as file:
        file.write("\n")
    name, _ = wheel.wheel(copy)
    assert name != NAME
    version = re.escape(paperdb_trio.client.__version__)
    assert re.fullmatch(rf"paperdb-{version}\+sha[0-9a-f]{{16}}-py3-none-any\.whl", name)


def test_pip_installs_it_from_either_address_into_an_empty_environment(server: Server, tmp_path: Path) -> None:
    """With its requirements, from where pip gets them, and without the server's package."""
    if find_spec("pip") is None:
        lacking("needs pip")
    venv.create(tmp_path / "venv", symlinks=True)
    python = str(tmp_path / "venv/bin/python")

    def pip(*arguments: str) -> str:
        return run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *arguments)

    for address, *options in ((SOURCE_ARCHIVE,), (f"/sdk/{NAME}", "--force-reinstall", "--no-deps")):
        pip("install", "--quiet", "--no-compile", *options, server.url + address)
        greeting, *modules = run(python, "-c", PROGRAM, server.url, server.key).split()
        assert greeting == "hello"
        assert {name.partition(".")[0] for name in modules} == {"paperdb"}


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
