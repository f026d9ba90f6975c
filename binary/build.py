"""Make dist/paperdb: one executable with the server, every command, and all that it serves.

PyInstaller gathers Python, the modules and the libraries into a folder (its onedir mode); this packs the folder
behind `launcher.c`, which unpacks it on the first start and becomes it. docs/performance.md, "The executable",
says why not PyInstaller's own onefile mode. The modules of `compiled.py` are machine code.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import PyInstaller.__main__
from compiled import MODULES, compiled

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "binary"
NOT_NEEDED = (
    # Modules that test tools and optional features would bring in.
    *("hypothesis", "pytest", "_pytest", "yaml", "IPython", "setuptools", "pkg_resources", "distutils"),
    *(
        "tkinter",
        "pydoc",
        "doctest",
        "lib2to3",
        "ensurepip",
        "xmlrpc",
        "curses",
        "readline",
        "rich",
        "pygments",
    ),
    *("dotenv", "watchdog", "uvloop", "aioquic", "socksio", "brotli", "zstandard", "twisted", "django"),
)


def package() -> tuple[Path, set[str]]:
    """A folder with the package, its modules compiled; and what these import, which PyInstaller cannot see."""
    folder = WORK / "package"
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "paperdb_trio", folder / "paperdb_trio", ignore=ignored)
    shutil.copytree(compiled(), folder, dirs_exist_ok=True)
    found = {"paperdb_trio__mypyc"}
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / "paperdb_trio" / f"{module}.py").read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module))
    return folder, found


def freeze() -> Path:
    """The folder with the program `paperdb` and `_internal/`."""
    folder, hidden = package()
    options = ["--onedir", "--strip", "--noconfirm", "--log-level=ERROR", "--name=paperdb"]
    options += [f"--paths={folder}", "--collect-submodules=paperdb_trio", "--collect-data=paperdb_trio"]
    options += [f"--add-data={ROOT / 'paperdb_trio/client/*.py'}:paperdb_trio/client"]  # served as a wheel
    options += [f"--distpath={WORK}", f"--workpath={WORK / 'work'}", f"--specpath={WORK}"]
    options += ["--collect-all=psycopg_binary"]  # psycopg finds it by its name
    options += [f"--hidden-import={name}" for name in sorted(hidden)]
    options += [f"--exclude-module={name}" for name in NOT_NEEDED]
    PyInstaller.__main__.run([*options, str(folder / "paperdb_trio" / "__main__.py")])
    return WORK / "paperdb"


def pack(folder: Path) -> bytes:
    """The files of a folder as the launcher reads them, and the trailer's digest of them."""
    packed = bytearray()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = os.fsencode(file.relative_to(folder)), file.read_bytes()
        data = zlib.compress(content, 9)
        mode = 0o700 if os.access(file, os.X_OK) else 0o600
        packed += struct.pack("=IIQQ", mode, len(name), len(content), len(data)) + name + data
    return bytes(packed)


def build(target: Path) -> None:
    folder = freeze()
    launcher = WORK / "launcher"
    source = Path(__file__).with_name("launcher.c")
    subprocess.run(
        ["gcc", "-Os", "-Wall", "-Wextra", "-Werror", "-s", "-o", launcher, source, "-l:libz.a"], check=True
    )
    packed = pack(folder)
    files = sum(path.is_file() for path in folder.rglob("*"))
    digest = hashlib.sha256(packed).hexdigest()[:19].encode() + b"\0"
    head = launcher.read_bytes()
    head += b"\0" * (-len(head) % 8)
    target.parent.mkdir(exist_ok=True)
    new = target.with_suffix(".new")
    new.write_bytes(head + packed + struct.pack("=QI20s", len(head), files, digest))
    new.chmod(0o755)
    new.replace(target)
    shutil.rmtree(WORK / "work")
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    build(ROOT / "dist" / "paperdb")
