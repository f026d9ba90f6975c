"""Processes of `python -m paperdb_trio` without the 0.4 s that each spends on imports.

`Popen` and `run` are those of `subprocess`, but what they start is, where possible, a fork of the zygote: a
process that has imported the server and does nothing else. To a test such a fork is what a new process would
be: a child of the test's own process, with its own files, environment, random numbers, signals and exit. A new
process is started where a fork would differ: for another program, for options of `Popen` such as `preexec_fn`,
for an environment that differs in more than `FREE`, and for coverage.

Law: what measures memory, imports or a start uses `subprocess` (`Server(…, forked=False)`).
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

import paperdb_trio

ROOT: Final = Path(__file__).parents[1]
PYTHON: Final = [sys.executable, "-m", "paperdb_trio"]
PRELOADED: Final = (
    *("paperdb_trio.cli", "paperdb_trio.server.supervisor", "paperdb_trio.client"),
    *("sqlite_utils", "encodings.idna"),  # the first start of a server
    *("cryptography.x509", "quart_trio", "hypercorn.trio.tcp_server"),  # TLS, HTTP/2
)

OPTIONS: Final = {
    "stdin",
    "stdout",
    "stderr",
    "text",
    "env",
    "cwd",
    "start_new_session",
    "user",
    "group",
    "extra_groups",
}
"""The options of `Popen` that a fork can have."""

FREE: Final = ("PAPERDB_", "PYTEST_", "PYTHONFAULTHANDLER")
"""Variables of which a fork can have its own: neither the interpreter nor a library has read them before."""

PR_SET_CHILD_SUBREAPER: Final = 36
MEASURED: Final = any(name.startswith("COVERAGE_PROCESS_") for name in os.environ)
"""Whether coverage is: it begins with a process and writes its data at the end."""

MAX_REQUEST: Final = 1 << 17


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`. A fork, too, is a child of this process: waiting and signals are the base class's."""

    def __init__(self, args: list[str], **options: Any) -> None:
        self._plain = args[:3] == PYTHON and options.keys() <= OPTIONS
        self._options = options
        super().__init__(args, **options)

    def _execute_child(self, *details: Any) -> None:
        args, cwd, env, pipes = details[0], details[5], details[6], details[10:16]
        theirs = pipes[0], pipes[3], pipes[5]
        zygote = _zygote() if self._plain and not MEASURED else None
        if zygote is None or not zygote.is_like(os.environ if env is None else env):
            super()._execute_child(*details)  # type: ignore[misc]
            return
        request = {
            "arguments": args[3:],
            "env": dict(os.environ if env is None else env),
            "cwd": os.path.abspath(cwd or "."),
            "leads": self._options.get("start_new_session", False),
            "ids": [self._options[name] for name in ("extra_groups", "group", "user") if name in self._options],
        }
        try:
            self.pid = zygote.fork(
                request, [number if pipe == -1 else pipe for number, pipe in enumerate(theirs)]
            )
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def run(args: list[str], *, timeout: float, **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run(…, capture_output=True, check=False)`."""
    with Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)


class _Zygote:
    def __init__(self) -> None:
        self._environment = _fixed(os.environ)
        self._lock = threading.Lock()
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", "tests.zygote", str(number)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[number], cwd=ROOT)
        atexit.register(self._end)

    def is_like(self, environment: Any) -> bool:
        return _fixed(environment) == self._environment

    def fork(self, request: dict[str, Any], files: list[int]) -> int:
        """The process id of a new child of this process."""
        with self._lock:
            # The zygote's child ends at once, and leaves its own child to the nearest such process: this one.
            self._adopt(1)
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], files)
                answer = self._socket.recv(64)
            finally:
                self._adopt(0)
        if not answer:
            raise RuntimeError("the zygote has ended")
        return int(answer)

    def _adopt(self, wanted: int) -> None:
        if self._prctl(PR_SET_CHILD_SUBREAPER, wanted, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")

    def _end(self) -> None:
        self._socket.close()  # so does the end of this process, however it ends
        self._process.wait()


_zygotes: list[_Zygote] = []
_starting = threading.Lock()


def _zygote() -> _Zygote:
    """This process's zygote."""
    with _starting:
        if not _zygotes:
            _zygotes.append(_Zygote())
    return _zygotes[0]


def _fixed(environment: Any) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(FREE)}


def _serve(requests: socket.socket) -> bool:
    """Fork for each request. Returns True in a fork, which is then to run, and False at the end."""
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    generators = [thing for thing in gc.get_objects() if isinstance(thing, random.Random)]
    gc.freeze()  # forks share these objects, unless their collector writes to them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end this process
    while True:
        request, files, _, _ = socket.recv_fds(requests, MAX_REQUEST, 3)
        if not request:
            return False
        order = json.loads(request)
        if order["ids"]:  # perhaps Python's own files can be read by root only
            import_all()
        told, tell = os.pipe()
        if (between := os.fork()) == 0:
            if (child := os.fork()) != 0:
                os.write(tell, b"%d" % child)
                os._exit(0)
            requests.close()
            os.close(told)
            os.close(tell)
            _become(order, files)
            for generator in generators:
                generator.seed()
            return True
        os.waitpid(between, 0)
        requests.send(os.read(told, 64))
        for number in (told, tell, *files):
            os.close(number)


def import_all() -> None:
    for name in (*PRELOADED, "importlib.metadata"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(paperdb_trio.__path__, "paperdb_trio."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _become(request: dict[str, Any], files: list[int]) -> None:
    """What a new process would begin with."""
    if request["leads"]:
        os.setsid()
    if request["ids"]:
        groups, group, user = request["ids"]
        os.setgroups(groups)
        os.setgid(group)
        os.setuid(user)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["arguments"]
    if "PYTHONFAULTHANDLER" in os.environ:
        faulthandler.enable()


if __name__ == "__main__" and _serve(socket.socket(fileno=int(sys.argv[1]))):
    # Here, below no frame of the zygote's loop, its exit is that of the interpreter.
    runpy.run_module("paperdb_trio", run_name="__main__", alter_sys=True)
