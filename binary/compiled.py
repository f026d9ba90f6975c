"""The modules that mypyc compiles: `python binary/compiled.py wheel` makes dist/paperdb_trio-VERSION-….whl, and
`checkout FOLDER` a copy of this checkout for the tests, both with these modules compiled.

`pip install .` never comes here: it installs pure Python. docs/decisions/0017-compiled.md says why mypyc, and
what was measured. What is compiled is kept in ~/.cache/paperdb/compiled, by a digest of all that it depends on.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mypyc.build import mypycify
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.parent
PACKAGE = "paperdb_trio"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paperdb" / "compiled"

# What runs for each request. Not here:
# - what would gain little, or nothing: where a write or an event passes, the time is SQLite's, the kernel's and
#   Trio's (docs/decisions/0017-compiled.md has the figures);
# - what is pickled for another process, or decoded by msgspec: operations, drafts, changes, rules, tokens;
# - what is given values that are not of the declared type, and says so: checks of filters, fields and messages
#   (match, store/projection, realtime/protocol). Compiled, a call raises TypeError before the check;
# - what mypyc cannot compile: `except*` (doors/listener, doors/hypercorn), asynchronous generators.
# An interpreted class cannot inherit from a compiled one: compile both, or neither (tests/test_compiled.py).
MODULES = (
    *("exchanges", "limits", "request_counts", "store/cache", "loop/turn", "loop/wheel"),
    *("net/cors", "net/frames", "net/head", "net/http1", "net/messages", "net/parameters"),
    *("net/stream", "net/tls"),
    *("realtime/connection", "realtime/eventstream", "realtime/gateway", "realtime/handshake"),
    *("realtime/websocket", "rest/call", "rest/dispatch", "rest/documents"),
)

# -O1: -O2 takes longer and is not faster. A C file for each module, so that all cores compile.
OPTIONS: dict[str, Any] = {"opt_level": "1", "debug_level": "0", "multi_file": True}


def digest() -> str:
    """Of whatever decides about the compiled bytes, or about the types that they rely on."""
    parts = [sys.version, platform.machine(), version("mypy"), repr((MODULES, OPTIONS))]
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        if file.parts[len(ROOT.parts) + 1] in ("cli", "client", "web"):
            continue  # no compiled module imports these, but for one type
        parts += [str(file.relative_to(ROOT)), file.read_bytes()]
    all = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        all.update(b"%d " % len(data) + data)
    return all.hexdigest()[:16]


def compiled() -> Path:
    """A folder with the extension modules, in the package's folders."""
    kept = CACHE / digest()
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as place:
            new = Path(place) / "new"
            _compile(Path(place) / "sources", new)
            for old in sorted(CACHE.glob("?" * 16), key=os.path.getmtime)[:-7]:
                shutil.rmtree(old)
            try:
                new.rename(kept)
            except OSError:
                if not kept.exists():  # else another process has made the same meanwhile
                    raise
    os.utime(kept)
    return kept


def _compile(sources: Path, target: Path) -> None:
    _copy(sources)
    os.chdir(sources)
    files = [f"{PACKAGE}/{module}.py" for module in MODULES]
    extensions = mypycify(
        ["--config-file=pyproject.toml", *files], group_name=PACKAGE, target_dir="c", **OPTIONS
    )
    setup(
        script_args=["-q", "build_ext", "--build-lib", str(target)],
        ext_modules=extensions,
        cmdclass={"build_ext": OnAllCores},
    )
    os.chdir(ROOT)


class OnAllCores(build_ext):
    """setuptools compiles the extensions at the same time, but not the files of one."""

    def build_extensions(self) -> None:
        one, cores = self.compiler.compile, len(os.sched_getaffinity(0))

        def compile(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(cores) as pool:
                objects = pool.map(lambda source: one([source], **options), sources)
                return [object for some in objects for object in some]

        self.compiler.compile = compile
        super().build_extensions()


def wheel(folder: Path) -> Path:
    """Make the wheel in a folder: the package, and beside each compiled module its source."""
    kept = compiled()

    class Take(build_ext):
        def build_extension(self, extension: Extension) -> None:
            place = Path(self.get_ext_fullpath(extension.name))
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(kept / self.get_ext_filename(extension.name), place)

    names = [str(file.relative_to(kept)).partition(".")[0].replace("/", ".") for file in kept.rglob("*.so")]
    with tempfile.TemporaryDirectory() as place:
        sources = Path(place) / "sources"
        _copy(sources)
        os.chdir(sources)
        setup(
            script_args=["-q", "bdist_wheel", "--dist-dir", place],
            ext_modules=[Extension(name, []) for name in names],
            cmdclass={"build_ext": Take},
        )
        os.chdir(ROOT)
        (made,) = Path(place).glob("*.whl")
        folder.mkdir(exist_ok=True)
        return Path(shutil.move(made, folder / made.name))


def checkout(folder: Path) -> None:
    """Make the folder anew: the files that git knows, or would add, and the extension modules."""
    kept = compiled()
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(kept, folder, dirs_exist_ok=True)


def _copy(target: Path) -> None:
    target.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / PACKAGE, target / PACKAGE, ignore=ignored)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["wheel"]:
            print(wheel(ROOT / "dist"))
        case ["checkout", folder]:
            checkout(Path(folder).resolve())
        case _:
            sys.exit("usage: python binary/compiled.py wheel | checkout FOLDER")
