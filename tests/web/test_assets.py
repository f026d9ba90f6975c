"""The files that are served, and the tarball that npm installs."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import paperdb_trio
from paperdb_trio.web import assets


def test_the_package_has_the_version_of_the_server(package: Path) -> None:
    installed = json.loads((package / "node_modules/paperdb/package.json").read_text())
    assert installed["version"] == paperdb_trio.__version__
    assert not installed.keys() & {"dependencies", "optionalDependencies", "peerDependencies", "scripts"}


def test_what_is_served_is_what_lies_in_the_folder() -> None:
    folder = Path(assets.__file__).parent / "sdk"
    served = assets.load()
    for file in folder.iterdir():
        if file.name != "package.json":
            assert served[f"/sdk/{file.name}"].body == file.read_bytes()
    assert served["/sdk/paperdb.js"].content_type == "text/javascript; charset=utf-8"
    assert len({asset.etag for asset in served.values()}) == len(served)


def test_the_tarball_is_the_same_every_time_and_has_every_file_that_the_package_names() -> None:
    body = assets.load()[assets.TARBALL].body
    assert assets.load()[assets.TARBALL].body == body
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        assert {entry.mtime for entry in archive} == {assets.MTIME}
        names = set(archive.getnames())
        described = archive.extractfile("package/package.json")
        assert described is not None
        files = json.load(described)["files"]
    assert names == {f"package/{name}" for name in [*files, "package.json"]}


def test_every_module_that_is_imported_is_served() -> None:
    served = assets.load()
    for name in ("paperdb", "realtime"):
        text = served[f"/sdk/{name}.js"].body.decode()
        imported = {part.split('"')[0] for part in text.split('"./')[1:]}
        assert imported
        assert all(f"/sdk/{file}" in served for file in imported)
