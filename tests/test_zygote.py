"""A fork of the zygote is to a test what a new process is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ENVIRONMENT, Server, StartServer, wait_until
from tests.zygote import MEASURED, PYTHON, run

pytestmark = pytest.mark.skipif(MEASURED, reason="coverage measures new processes only")

STATUS = ("PPid", "Uid", "Gid", "Umask", "SigPnd", "SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "CapEff")

PROGRAM = """
import os
import subprocess
from tests import zygote
process = zygote.Popen([*zygote.PYTHON, "--version"], stdout=subprocess.DEVNULL)
assert process.wait(20) == 0
print(zygote._zygotes[0]._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def looks(server: Server) -> dict[str, Any]:
    """What the kernel says of a process, but for what differs between any two."""
    proc = Path(f"/proc/{server.pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    files = [os.readlink(file).partition(":")[0] for file in (proc / "fd").iterdir()]
    return {
        **{name: status[name] for name in STATUS},
        "files": sorted(name.replace(str(server.data), "data") for name in files),
        "limits": (proc / "limits").read_text(),
        "cwd": os.readlink(proc / "cwd"),
        "group": (os.getpgid(server.pid), os.getsid(server.pid)),
    }


def test_it_looks_like_a_new_process(start_server: StartServer) -> None:
    forked, new = start_server(), start_server(forked=False)
    assert b"tests.zygote" in Path(f"/proc/{forked.pid}/cmdline").read_bytes()
    assert looks(forked) == looks(new)
    assert forked.key != new.key
    assert forked.insert("a", {})["_id"] != new.insert("a", {})["_id"]


@pytest.mark.parametrize(
    ("arguments", "code"), [("check", 0), ("check --data nowhere", 1), ("keys lst", 2), ("--version", 0)]
)
def test_it_says_and_exits_what_a_new_process_does(data: Path, arguments: str, code: int) -> None:
    command = [*PYTHON, *arguments.split()]
    env = ENVIRONMENT | {"PAPERDB_DATA": data.name}
    forked = run(command, text=True, env=env, cwd=data.parent, timeout=20)
    new = subprocess.run(
        command, text=True, env=env, cwd=data.parent, timeout=20, capture_output=True, check=False
    )
    assert vars(forked) == vars(new)
    assert forked.returncode == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_it_ends_by_a_signal(start_server: StartServer, number: int, code: int) -> None:
    server = start_server()
    server.process.send_signal(number)
    assert server.process.wait(20) == code


def test_another_environment_or_program_gets_a_new_process(start_server: StartServer) -> None:
    server = start_server(env={"LC_ALL": "C"})
    assert b"tests.zygote" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert run([sys.executable, "-c", "print(__name__)"], text=True, timeout=20).stdout == "__main__\n"


def test_it_ends_with_the_process_that_started_it() -> None:
    command = [sys.executable, "-c", PROGRAM]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    wait_until(lambda: not Path(f"/proc/{int(killed.stdout)}").exists())
