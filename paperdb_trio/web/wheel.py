"""The Python SDK as a package that pip installs: the folder `client/` under the name `paperdb`, byte for byte.

Law: the same sources give the same bytes on every machine, so that a hash in a lock file stays good until the
SDK itself changes. Nothing is compressed, because versions of zlib compress differently. The version has a
checksum of the sources in it, so that a file name never has other content.

pip takes a wheel's name and version from the address that it is given, before any redirect. An address without
a version can only be that of a source archive. Ours holds the wheel, and a build backend that copies it.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

NAME: Final = "paperdb"
REQUIRES: Final = ("httpx>=0.27,<1", "msgspec>=0.19,<1", "trio>=0.35,<0.36", "trio-websocket>=0.12.2,<0.13")
"""With the bounds of pyproject.toml: those are tested."""

_METADATA: Final = """\
Metadata-Version: 2.1
Name: {name}
Version: {version}
Summary: The Python SDK of PaperDB, a realtime document database.
License: MIT
Requires-Python: >=3.11
{requires}
"""
_WHEEL: Final = """\
Wheel-Version: 1.0
Generator: paperdb
Root-Is-Purelib: true
Tag: py3-none-any
"""
_PYPROJECT: Final = """\
[build-system]
requires = []
build-backend = "copy_wheel"
backend-path = ["."]
"""
_BACKEND: Final = """\
import shutil

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return shutil.copy("{file}", wheel_directory) and "{file}"
"""


def sources() -> Traversable:
    return resources.files("paperdb_trio").joinpath("client")


def wheel(folder: Traversable) -> tuple[str, bytes]:
    """The wheel of the modules in `folder`, after its file name. Raises OSError if they are not there."""
    modules = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.endswith(".py")}
    init = folder.joinpath("__init__.py").read_text("utf-8")
    (version,) = re.findall(r'^__version__ = "([\d.]+)"$', init, re.MULTILINE)
    files = {f"{NAME}/{name}": body for name, body in {**modules, "py.typed": b""}.items()}
    version += f"+sha{_checksum(files)}"  # "sha": digits alone would be read as a number
    info = f"{NAME}-{version}.dist-info"
    requires = "\n".join(f"Requires-Dist: {line}" for line in REQUIRES)
    files[f"{info}/METADATA"] = _METADATA.format(name=NAME, version=version, requires=requires).encode()
    files[f"{info}/WHEEL"] = _WHEEL.encode()
    record = [f"{name},sha256={_digest(body)},{len(body)}\n" for name, body in sorted(files.items())]
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    return f"{NAME}-{version}-py3-none-any.whl", _archive(files)


def source_archive(file: str, body: bytes) -> bytes:
    """What pip installs from an address without a version: the wheel `file`, and how to copy it."""
    backend = _BACKEND.format(file=file)
    files = {"pyproject.toml": _PYPROJECT.encode(), "copy_wheel.py": backend.encode(), file: body}
    return _archive({f"{NAME}/{name}": content for name, content in files.items()})


def _checksum(files: Mapping[str, bytes]) -> str:
    """A checksum of everything that decides the wheel's bytes."""
    made = hashlib.sha256(repr((_METADATA, _WHEEL, REQUIRES, sorted(files.items()))).encode())
    return made.hexdigest()[:16]


def _digest(body: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()


def _archive(files: Mapping[str, bytes]) -> bytes:
    """A ZIP file in which nothing differs from run to run."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, body in sorted(files.items()):
            entry = zipfile.ZipInfo(name)  # of 1980
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, body)
    return packed.getvalue()
