"""The files that the server serves to clients, in memory.

Law: read once, at start; the same bytes at every start, so that an ETag or a checksum
in somebody's lock file stays good until the SDK itself changes. The packages for npm and pip also have
addresses with a version and a checksum in them, which never have other content.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
}
NOT_SERVED: Final = frozenset({"package.json"})
"""In the tarball only, as is what is made for CommonJS."""
TARBALL: Final = "/sdk/paperdb.tgz"
"""Always the present one."""
SOURCE_ARCHIVE: Final = "/sdk/paperdb.zip"
"""Always the present one, of the Python SDK."""
ANY_PACKAGE: Final = re.compile(r"/sdk/paperdb-[^/]+(\.tgz|\.whl)")
"""The address of a package of some version, ours or another."""
REVALIDATED: Final = "no-cache"
IMMUTABLE: Final = "public, max-age=31536000, immutable"
MTIME: Final = 499_162_500
"""1985-10-26T08:15:00Z: what npm itself gives to every file that it packs."""


@dataclass(frozen=True, slots=True)
class Asset:
    """`etag` and `caching` (Cache-Control) are the headers' values, quotes included.

    `permanent`: the name, beside this one, under which this content will be for good.
    """

    content_type: str
    body: bytes
    etag: str
    caching: str = REVALIDATED
    permanent: str | None = None


def load() -> dict[str, Asset]:
    """Every asset by its path (`/sdk/paperdb.js`, …). Raises OSError if the installation is incomplete."""
    files = {
        file.name: file.read_bytes()
        for file in sorted(resources.files(__package__).joinpath("sdk").iterdir(), key=lambda file: file.name)
        if file.name.endswith((".js", ".d.ts", ".json"))
    }
    assets = {f"/sdk/{name}": _asset(name, body) for name, body in files.items() if name not in NOT_SERVED}
    packed = tarball({**files, **for_commonjs(files)})
    version = json.loads(files["package.json"])["version"]
    name = f"paperdb-{version}-{hashlib.sha256(packed).hexdigest()[:16]}.tgz"
    assets[TARBALL] = replace(_asset(name, packed), permanent=name)
    assets[f"/sdk/{name}"] = replace(_asset(name, packed), caching=IMMUTABLE)
    wheel_name, body = wheel(sources())
    assets[SOURCE_ARCHIVE] = _asset("paperdb.zip", source_archive(wheel_name, body))
    assets[f"/sdk/{wheel_name}"] = _asset(wheel_name, body)
    page = resources.files(__package__).joinpath("pages", "index.html")
    text = page.read_text("utf-8").replace("__TARBALL__", name).replace("__WHEEL__", wheel_name)
    assets["/"] = _asset(page.name, text.encode())
    return assets


def for_commonjs(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same modules for `require`, and the types under the name that TypeScript looks for beside them."""
    made = {
        f"{name.removesuffix('.js')}.cjs": to_commonjs(body.decode()).encode()
        for name, body in files.items()
        if name.endswith(".js")
    }
    types = {f"{name.removesuffix('.ts')}.cts": body for name, body in files.items() if name.endswith(".d.ts")}
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
    return gzip.compress(packed.getvalue(), mtime=0)
