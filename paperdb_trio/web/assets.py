"""The files that the server serves to clients, in memory.

Law: read once, at start. The bytes of a version are the same on every server, with every Python and zlib: an
ETag, or the checksum in a lock file, stays good until the SDK itself changes. The packages for npm and pip also
have addresses with a version in them, at which there is never another version.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Final

from paperdb_trio.web.commonjs import to_commonjs
from paperdb_trio.web.wheel import source_archive, sources, wheel

CONTENT_TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".d.ts": "application/typescript; charset=utf-8",
    ".tgz": "application/gzip",
    ".whl": "application/zip",
    ".zip": "application/zip",
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
COMPRESSED: Final = frozenset(CONTENT_TYPES[name] for name in (".js", ".d.ts", ".html", ".css"))
"""What is text. Packages stay as they are: a lock file has their checksum."""
NOT_SERVED: Final = frozenset({"package.json"})
"""In the tarball only, as are the CommonJS modules."""
FOR_FRAMEWORKS: Final = frozenset({"react.js", "vue.js", "tanstack.js"})
"""Modules of the SDK that the dashboard does not import."""
TARBALL: Final = "/sdk/paperdb.tgz"
"""The server's own version of the JavaScript SDK, whichever that is."""
SOURCE_ARCHIVE: Final = "/sdk/paperdb.zip"
"""The same of the Python SDK."""
ANY_PACKAGE: Final = re.compile(r"/sdk/paperdb-[^/]+(\.tgz|\.whl)")
"""The address of a package of some version, ours or another."""
MTIME: Final = 499_162_500
"""1985-10-26T08:15:00Z: what npm itself gives to every file that it packs."""
LONGEST_BLOCK: Final = 65_535


@dataclass(frozen=True, slots=True)
class Asset:
    """`etag` is the header's value, quotes included.

    `versioned`: the name, in the same folder, under which this version has an address of its own.
    """

    content_type: str
    body: bytes
    etag: str
    versioned: str | None = None

    @cache  # noqa: B019 - assets live as long as the process
    def gzipped(self) -> bytes:
        """A third of the size. Made when it is first asked for: all of them take 15 ms."""
        return gzip.compress(self.body, mtime=0)


def load() -> dict[str, Asset]:
    """Every asset by its path (`/sdk/paperdb.js`, …). Raises OSError if the installation is incomplete."""
    files = {
        file.name: file.read_bytes()
        for file in sorted(resources.files(__package__).joinpath("sdk").iterdir(), key=lambda file: file.name)
        if file.name.endswith((".js", ".d.ts", ".json"))
    }
    assets = {f"/sdk/{name}": _asset(name, body) for name, body in files.items() if name not in NOT_SERVED}
    version = json.loads(files["package.json"])["version"]
    name = f"paperdb-{version}.tgz"
    packed = _asset(name, tarball({**files, **for_commonjs(files)}))
    assets[TARBALL] = replace(packed, versioned=name)
    assets[f"/sdk/{name}"] = packed
    wheel_name, body = wheel(sources())
    assets[SOURCE_ARCHIVE] = _asset("paperdb.zip", source_archive(wheel_name, body))
    assets[f"/sdk/{wheel_name}"] = _asset(wheel_name, body)
    return assets | dashboard({"__TARBALL__": name, "__WHEEL__": wheel_name}, files)


def dashboard(names: Mapping[str, str], sdk: Iterable[str]) -> dict[str, Asset]:
    """The dashboard's files. Its page has `names` in place of their marks, and lists all modules, so that a
    browser fetches them at once instead of one import after the other."""
    folder = resources.files(__package__).joinpath("dashboard")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    page = files.pop("index.html").decode()
    paths = [f"dashboard/{name}" for name in files]
    paths += [f"sdk/{name}" for name in sdk if name not in FOR_FRAMEWORKS]
    modules = (f'<link rel="modulepreload" href="{path}">' for path in sorted(paths) if path.endswith(".js"))
    for mark, text in {**names, "__MODULES__": "\n".join(modules)}.items():
        page = page.replace(mark, text)
    assets = {f"/dashboard/{name}": _asset(name, body) for name, body in files.items()}
    return {"/": _asset("index.html", page.encode()), **assets}


def for_commonjs(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same modules for `require`, and the types under the names that TypeScript looks for beside them."""
    made = {
        f"{name.removesuffix('.js')}.cjs": to_commonjs(body.decode()).encode()
        for name, body in files.items()
        if name.endswith(".js")
    }
    types = {
        f"{name.removesuffix('.ts')}.cts": body.replace(b'from "./paperdb.js"', b'from "./paperdb.cjs"')
        for name, body in files.items()
        if name.endswith(".d.ts")
    }
    return {**made, **types}


def _asset(name: str, body: bytes) -> Asset:
    content_type = next(value for suffix, value in CONTENT_TYPES.items() if name.endswith(suffix))
    return Asset(content_type, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def tarball(files: Mapping[str, bytes]) -> bytes:
    """A package that `npm install` takes: everything under `package/`, nothing that differs from run to run."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, body in sorted(files.items()):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(body)
            entry.mtime = MTIME
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(body))
    return stored(packed.getvalue())


def stored(data: bytes) -> bytes:
    """A gzip file (RFC 1952) of stored blocks (RFC 1951, 3.2.4), because compressed ones depend on the zlib."""
    parts = [b"\x1f\x8b\x08\0\0\0\0\0\0\xff"]
    for begin in range(0, len(data), LONGEST_BLOCK):
        block = data[begin : begin + LONGEST_BLOCK]
        is_last = begin + LONGEST_BLOCK >= len(data)
        parts += (struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block)
    return b"".join((*parts, struct.pack("<II", zlib.crc32(data), len(data))))
