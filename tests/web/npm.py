"""The npm packages that tests use as tools: `python3 -m tests.web.npm` installs them all.

Law: needs only the standard library, so that CI can run this beside pip.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".pytest_cache/d/paperdb-npm"
CURRENT_NODE = "node@24"
WS = "ws@8"
TYPESCRIPT = "typescript@5.9"
AXE = "axe-core@4"
FRAMEWORKS = ("react@19", "react-dom@19", "vue@3", "svelte@5", "@tanstack/db@0.15", "vite@6")
TOOLS = (
    *FRAMEWORKS,
    *(CURRENT_NODE, WS, TYPESCRIPT, "eslint@10", AXE),
    *("jest@29", "jest-environment-jsdom@29", "@vue/reactivity@3", "mobx@6"),
)
"""All that tests use as tools: CI installs them at once, which takes half of what it takes one by one."""


def npm(folder: Path, *arguments: str, lock: bool = False) -> None:
    """Run npm quietly in `folder`, leaving no lock file unless it is asked for."""
    flags = ("--no-audit", "--no-fund", "--loglevel=error", *(() if lock else ("--no-package-lock",)))
    if shutil.which("npm") is None:
        from tests.conftest import need

        need("npm")
    done = subprocess.run(
        ["npm", *arguments, *flags], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)


def folder_of(package: str) -> Path:
    return CACHE / "node_modules" / package.rpartition("@")[0]


def install(*packages: str) -> None:
    """Install into pytest's cache what it lacks of these npm packages."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if lacking := [package for package in packages if not folder_of(package).exists()]:
            npm(CACHE, "install", "--prefix", str(CACHE), *lacking)


if __name__ == "__main__":
    install(*TOOLS)
    print(f"{len(TOOLS)} packages of npm are installed")
