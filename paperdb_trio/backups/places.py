"""Where backups are kept: a directory, or a bucket of S3-compatible storage.

Law: blocks, and is called from threads. Every failure is a `BackupError`.
"""

from __future__ import annotations

import os
import re
import time
from calendar import timegm
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from paperdb_trio.config import Settings
from paperdb_trio.errors import StartupError
from paperdb_trio.files import make_directory, partial

NAME: Final = re.compile(r"paperdb-(\d{8}T\d{6}Z)\.backup")
_TIME: Final = "%Y%m%dT%H%M%SZ"
STAGED: Final = "paperdb-upload.partial"
"""The file in the data directory that is being uploaded. One that a killed server left is overwritten."""

Write = Callable[[Path], None]
"""Writes a verified snapshot into an empty file."""


class BackupError(Exception):
    """What went wrong, for the operator."""


def name_at(seconds: float) -> str:
    return f"paperdb-{time.strftime(_TIME, time.gmtime(seconds))}.backup"


def time_of(name: str) -> float:
    found = NAME.fullmatch(name)
    assert found
    return float(timegm(time.strptime(found[1], _TIME)))


class Place(Protocol):
    def names(self) -> list[str]:
        """Of all backups, the oldest first."""
        ...

    def add(self, name: str, write: Write) -> int:
        """Returns the size in bytes."""
        ...

    def remove(self, name: str) -> None: ...


class Directory:
    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        with _told():
            make_directory(self._path)
            return sorted(name for name in os.listdir(self._path) if NAME.fullmatch(name))

    def add(self, name: str, write: Write) -> int:
        with _told():
            target = self._path / name
            with partial(target) as temporary:
                write(temporary)
            return target.stat().st_size

    def remove(self, name: str) -> None:
        with _told():
            (self._path / name).unlink(missing_ok=True)


class Bucket:
    """`client`: a `minio.Minio`. `staging`: a directory with room for one backup."""

    def __init__(self, client: Any, bucket: str, prefix: str, staging: Path) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._staged = staging / STAGED

    def names(self) -> list[str]:
        with _told():
            keys = [item.object_name for item in self._client.list_objects(self._bucket, prefix=self._prefix)]
        names = [key.removeprefix(self._prefix) for key in keys]
        return sorted(name for name in names if NAME.fullmatch(name))

    def add(self, name: str, write: Write) -> int:
        with _told():
            try:
                with partial(self._staged) as temporary:
                    write(temporary)
                size = self._staged.stat().st_size
                self._client.fput_object(self._bucket, self._prefix + name, str(self._staged))
            finally:
                self._staged.unlink(missing_ok=True)
            stored = self._client.stat_object(self._bucket, self._prefix + name).size
            if stored != size:
                with suppress(Exception):
                    self._client.remove_object(self._bucket, self._prefix + name)
                raise BackupError(f"{stored} bytes are stored of {size}")
            return size

    def remove(self, name: str) -> None:
        with _told():
            self._client.remove_object(self._bucket, self._prefix + name)


def place_of(settings: Settings, staging: Path) -> Place:
    """Raises `StartupError`."""
    if not settings.backup_to.startswith("s3://"):
        return Directory(Path(settings.backup_to))
    try:
        from minio import Minio
        from minio.credentials.providers import EnvAWSProvider
    except ImportError as error:
        raise StartupError(
            f"Backups to s3:// need the extra 's3': pip install 'paperdb-trio[s3]' ({error})", 2
        ) from None
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if not os.environ.get(variable):
            raise StartupError(f"Backups to s3:// need the environment variable {variable}", 2)
    where, endpoint = urlsplit(settings.backup_to), urlsplit(settings.backup_endpoint)
    try:
        client = Minio(
            endpoint.netloc,
            secure=endpoint.scheme == "https",
            credentials=EnvAWSProvider(),
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        )
    except ValueError as error:
        raise StartupError(f"Setting 'backup_endpoint' is no endpoint of S3: {error}", 2) from None
    prefix = where.path.strip("/")
    return Bucket(client, where.netloc, f"{prefix}/" if prefix else "", staging)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BackupError:
        raise
    except Exception as error:  # minio's, urllib3's, the file system's: all mean that it did not work
        raise BackupError(" ".join(f"{error}".split())[:500] or type(error).__name__) from error
