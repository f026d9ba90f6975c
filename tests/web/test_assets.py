"""The files that are served, and the tarball that npm installs."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from graphlib import TopologicalSorter
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from paperdb_trio.web import assets
from paperdb_trio.web.commonjs import to_commonjs
from tests.conftest import Server
from tests.web.npm import npm

SDK = Path(assets.__file__).parent / "sdk"


def sdk_version() -> str:
    """The SDK has a version of its own: an upgrade of the server that leaves it alone keeps its address."""
    return str(json.loads((SDK / "package.json").read_text())["version"])


def test_the_package_has_its_version_and_needs_nothing(package: Path) -> None:
    installed = json.loads((package / "node_modules/paperdb/package.json").read_text())
    assert installed["version"] == sdk_version()
    assert not installed.keys() & {"dependencies", "optionalDependencies", "peerDependencies", "scripts"}


def test_files_are_served_unchanged() -> None:
    folder = Path(assets.__file__).parent / "sdk"
    served = assets.load()
    for file in folder.iterdir():
        if file.name != "package.json":
            assert served[f"/sdk/{file.name}"].body == file.read_bytes()
    assert served["/sdk/paperdb.js"].content_type == "text/javascript; charset=utf-8"
    assert len({asset.etag for asset in served.values()}) == len(served) - 1  # the tarball has two addresses


def unpacked(body: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        assert {entry.mtime for entry in archive} == {assets.MTIME}
        return {
            entry.name.removeprefix("package/"): archive.extractfile(entry).read()  # type: ignore[union-attr]
            for entry in archive
        }


def test_the_tarball_is_the_same_every_time_and_has_every_file_for_both_kinds_of_modules() -> None:
    body = assets.load()[assets.TARBALL].body
    assert assets.load()[assets.TARBALL].body == body
    files = unpacked(body)
    folder = {file.name for file in (Path(assets.__file__).parent / "sdk").iterdir()}
    commonjs = {name.replace(".js", ".cjs") for name in folder if name.endswith(".js")}
    types = {name.replace(".d.ts", ".d.cts") for name in folder if name.endswith(".d.ts")}
    assert files.keys() == folder | commonjs | types
    exported = re.findall(r'"\./([^"]+)"', json.dumps(json.loads(files["package.json"])["exports"]))
    entries = {"react", "vue", "tanstack"}  # their addresses, and those of their files
    assert entries < set(exported) <= files.keys() | entries
    assert files["paperdb.d.cts"] == files["paperdb.d.ts"]


def test_the_tarball_also_has_an_address_with_its_version(server: Server) -> None:
    name = f"paperdb-{sdk_version()}.tgz"
    unversioned = server.request("GET", assets.TARBALL)
    assert unversioned.headers["content-location"] == name
    versioned = httpx.get(f"{server.url}/sdk/{name}")
    assert versioned.content == unversioned.content
    assert "content-location" not in versioned.headers
    assert f"sdk/{name}" in httpx.get(server.url).text
    other = httpx.get(f"{server.url}/sdk/paperdb-0.0.1.tgz")
    assert other.status_code == 404
    assert f"/sdk/{name}" in other.json()["error"]


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip, br", True),
        ("br,GZIP; q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.0, br", False),
        ("x-gzip", False),
    ],
)
def test_texts_are_compressed_for_who_takes_that(server: Server, accepted: str, packed: bool) -> None:
    url, headers = f"{server.url}/sdk/paperdb.js", {"Accept-Encoding": accepted}
    plain = (SDK / "paperdb.js").read_bytes()
    found = httpx.get(url, headers=headers)
    assert found.content == plain
    assert found.headers["vary"] == "Accept-Encoding"
    assert found.headers.get("content-encoding") == ("gzip" if packed else None)
    assert (int(found.headers["content-length"]) < len(plain) / 2) is packed
    assert found.headers["etag"].startswith("W/") is packed
    for tag in (found.headers["etag"], found.headers["etag"].removeprefix("W/")):
        again = httpx.get(url, headers={**headers, "If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == found.headers["etag"]
        assert "content-encoding" not in again.headers
    assert "content-encoding" not in httpx.get(f"{server.url}{assets.TARBALL}", headers=headers).headers


@pytest.mark.executable
def test_a_tarball_is_the_same_with_every_python_and_zlib() -> None:
    """What a lock file's checksum needs. CI runs this in Debian 12 and 13."""
    packed = assets.tarball({"a.js": b"export const a = 1;\n", "b.js": bytes(range(256)) * 1000})
    with gzip.open(io.BytesIO(packed)) as unpacking:
        assert len(unpacking.read()) % tarfile.RECORDSIZE == 0
    assert (
        hashlib.sha256(packed).hexdigest() == "53d4df494e1cc45260088f3b60674a77b73eccfb92f785b0251c8da8924c17c7"
    )


def test_a_lock_file_with_that_address_installs_again(server: Server, tmp_path: Path) -> None:
    name = server.request("GET", assets.TARBALL).headers["content-location"]
    npm(tmp_path, "install", f"{server.url}/sdk/{name}", lock=True)
    locked = json.loads((tmp_path / "package-lock.json").read_text())["packages"]["node_modules/paperdb"]
    assert locked["resolved"] == f"{server.url}/sdk/{name}"
    npm(tmp_path, "ci", lock=True)
    assert (tmp_path / "node_modules/paperdb/paperdb.cjs").exists()


@pytest.mark.parametrize(
    "line", ['import x from "y";', "export default 3;", 'export * from "./x.js";', "x = import(name);"]
)
def test_modules_that_cannot_become_commonjs_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line.removeprefix("x = "))):
        to_commonjs(f"const a = 1;\n{line}\n")


def test_every_module_that_is_imported_is_served_and_no_import_is_circular() -> None:
    modules = {path: asset.body.decode() for path, asset in assets.load().items() if path.endswith(".js")}
    imports = {
        path: {
            urljoin(path, name)
            for name in re.findall(r'^(?:import|\}) .*from "(\.[^"]+)";$', text, re.MULTILINE)
        }
        for path, text in modules.items()
    }
    assert "/sdk/realtime.js" in imports["/sdk/paperdb.js"]
    assert "/sdk/paperdb.js" in imports["/dashboard/session.js"]
    assert set(TopologicalSorter(imports).static_order()) == modules.keys()
