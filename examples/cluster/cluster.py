"""Six machines on this one: three with PostgreSQL, Patroni and etcd, two with PaperDB, one with HAProxy.

    python examples/cluster/cluster.py               # each machine has a loopback address
    python examples/cluster/cluster.py --namespaces  # each has a network namespace; needs root

It starts all, waits until the cluster is healthy, prints the addresses, starts again what ends, and ends
everything on ^C. It needs Debian's packages postgresql, etcd-server and haproxy, and Patroni in `.venv-patroni`
(`just cluster` installs it). All data is in a new directory under /tmp, which ^C removes.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from examples.cluster.network import Loopback, Namespaces  # noqa: E402

DATABASES: Final = ("db1", "db2", "db3")
NODES: Final = ("app1", "app2")
BALANCER: Final = "lb"
NUMBERS: Final = {"db1": 1, "db2": 2, "db3": 3, "app1": 11, "app2": 12, BALANCER: 21}
ON: Final = {
    **dict.fromkeys(DATABASES, ("etcd", "patroni")),
    **dict.fromkeys(NODES, ("paperdb",)),
    BALANCER: ("haproxy",),
}
"""The programs of each machine. Patroni starts PostgreSQL."""
START_SECONDS: Final = 120
STOP_SECONDS: Final = 30


class Cluster:
    """Start it with `start()`, and `close()` it: no process and no file is left.

    A program is named `etcd@db1`. Start programs on the main thread: they get SIGTERM when it ends.
    """

    def __init__(self, network: Loopback, home: Path | None = None) -> None:
        self.network = network
        self.home = home or Path(tempfile.mkdtemp(prefix="paperdb-cluster-", dir="/tmp"))
        self.key = f"pdb_sk_{secrets.token_urlsafe(32)}"
        self.programs = [f"{program}@{machine}" for machine, programs in ON.items() for program in programs]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._as_user = ["setpriv", "--pdeathsig", "TERM"]
        self._user: pwd.struct_passwd | None = None
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._user = pwd.getpwnam("nobody")
            self._as_user += [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]
        self._commands = {
            "etcd": [need("etcd", "etcd-server")],
            "patroni": [patroni(self._as_user), str(HERE / "patroni.yml")],
            "haproxy": [need("haproxy"), "-db", "-f", str(HERE / "haproxy.cfg")],
            "paperdb": [str(Path(sys.executable).parent / "paperdb"), "serve"],
        }
        self._environments = self._all_environments(network.addresses)
        self.home.chmod(0o711)
        for machine, environment in self._environments.items():
            (home := self.home / machine).mkdir()
            home.chmod(0o700)
            if self._user is not None:
                os.chown(home, self._user.pw_uid, self._user.pw_gid)
            lines = [f"{name}={value}\n" for name, value in environment.items()]
            (home / "environment").write_text("".join(lines))
            shutil.copy(HERE / "post-bootstrap.sh", home)

    def _all_environments(self, at: dict[str, str]) -> dict[str, dict[str, str]]:
        passwords = {name: secrets.token_urlsafe(16) for name in ("postgres", "replicator", "paperdb")}
        common = {
            "ETCD_INITIAL_CLUSTER": ",".join(f"{name}=http://{at[name]}:2380" for name in DATABASES),
            "PATRONI_ETCD3_HOSTS": ",".join(f"'{at[name]}:2379'" for name in DATABASES),
            "PATRONI_POSTGRESQL_BIN_DIR": str(postgresql()),
            "PATRONI_SUPERUSER_PASSWORD": passwords["postgres"],
            "PATRONI_REWIND_PASSWORD": passwords["postgres"],
            "PATRONI_REPLICATION_PASSWORD": passwords["replicator"],
            "PAPERDB_PASSWORD": passwords["paperdb"],
        }
        made = {}
        for name in DATABASES:
            home, address = self.home / name, at[name]
            made[name] = {
                **common,
                "ETCD_NAME": name,
                "ETCD_DATA_DIR": str(home / "etcd"),
                "ETCD_LISTEN_PEER_URLS": f"http://{address}:2380",
                "ETCD_INITIAL_ADVERTISE_PEER_URLS": f"http://{address}:2380",
                "ETCD_LISTEN_CLIENT_URLS": f"http://{address}:2379",
                "ETCD_ADVERTISE_CLIENT_URLS": f"http://{address}:2379",
                "PATRONI_NAME": name,
                "PATRONI_RESTAPI_LISTEN": f"{address}:8008",
                "PATRONI_RESTAPI_CONNECT_ADDRESS": f"{address}:8008",
                "PATRONI_POSTGRESQL_LISTEN": f"{address}:5432",
                "PATRONI_POSTGRESQL_CONNECT_ADDRESS": f"{address}:5432",
                "PATRONI_POSTGRESQL_DATA_DIR": str(home / "postgresql"),
                "PATRONI_POSTGRESQL_PGPASS": str(home / "pgpass"),
            }
        hosts = ",".join(f"{at[name]}:5432" for name in DATABASES)
        for name in NODES:
            made[name] = {
                "PAPERDB_STORE": f"postgresql://paperdb:{passwords['paperdb']}@{hosts}/paperdb",
                "PAPERDB_HOST": at[name],
                "PAPERDB_PORT": "8000",
                "PAPERDB_TRUSTED_PROXIES": at[BALANCER],
                "PAPERDB_API_KEY": self.key,
            }
        made[BALANCER] = {"LISTEN": f"{at[BALANCER]}:8000"} | {
            name.upper(): f"{at[name]}:8000" for name in NODES
        }
        return made

    # --- programs ----------------------------------------------------------------------------------

    def begin(self, name: str) -> None:
        """Start a program; its output goes to a file in its machine's directory."""
        program, _, machine = name.partition("@")
        home = self.home / machine
        as_user = self._as_user if program != "paperdb" else self._as_user[:3]
        with (home / f"{program}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.network.on(machine, [*as_user, *self._commands[program]]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **self._environments[machine]},
            )

    def log(self, name: str) -> str:
        program, _, machine = name.partition("@")
        return (self.home / machine / f"{program}.log").read_text(errors="replace")

    def postmaster(self, machine: str) -> int | None:
        """The process of a machine's PostgreSQL."""
        data = self.home / machine / "postgresql"
        with suppress(OSError, ValueError):
            pid = int((data / "postmaster.pid").read_text().split("\n")[0])
            if str(data) in Path(f"/proc/{pid}/cmdline").read_text():
                return pid
        return None

    # --- the whole ---------------------------------------------------------------------------------

    def start(self) -> None:
        for name in self.programs:
            if not name.startswith("paperdb"):
                self.begin(name)
        self.until(lambda: self.healthy() is not None, "three PostgreSQL servers")
        for name in self.programs:
            if name.startswith("paperdb"):
                self.begin(name)
        for machine in (*NODES, BALANCER):
            self.until(lambda machine=machine: self.responds(machine), machine)  # type: ignore[misc]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + START_SECONDS
        while not condition():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{self.log(name)[-2000:]}")
            if time.monotonic() > end:
                raise RuntimeError(f"{what}: not within {START_SECONDS} s; logs are in {self.home}")
            time.sleep(0.2)

    def url(self, machine: str) -> str:
        return f"http://{self.network.addresses[machine]}:8000"

    def responds(self, machine: str) -> bool:
        return get(f"{self.url(machine)}/readyz") is not None

    def healthy(self) -> str | None:
        """The primary, if all three know it, both standbys follow it, and a commit waits for one of them."""
        primaries = set()
        for name in DATABASES:
            found = get(f"http://{self.network.addresses[name]}:8008/cluster") or {"members": []}
            states = {member["name"]: (member["role"], member["state"]) for member in found["members"]}
            if sorted(states.values()) != [("leader", "running"), *[("quorum_standby", "streaming")] * 2]:
                return None
            primaries |= {member for member, (role, _) in states.items() if role == "leader"}
        return primaries.pop() if len(primaries) == 1 else None

    def close(self, keep: bool = False) -> None:
        """`keep`: leave its directory."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        end = time.monotonic() + STOP_SECONDS
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
            if process.poll() is None:
                process.kill()
                process.wait()
        for machine in DATABASES:  # of a Patroni that was killed
            if (pid := self.postmaster(machine)) is not None:
                os.kill(pid, signal.SIGKILL)
                while Path(f"/proc/{pid}").exists() and self.postmaster(machine) is not None:
                    time.sleep(0.05)
        self.network.close()
        if not keep:
            shutil.rmtree(self.home, ignore_errors=True)


def get(url: str) -> Any:
    """The JSON of a response; None if there is none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError, ValueError), opener.open(url, timeout=2) as response:
        return json.load(response)
    return None


def need(program: str, package: str = "") -> str:
    """The path of a program, also one for administrators."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        raise SystemExit(f"needs '{program}': apt-get install {package or program}")
    return found


def patroni(as_user: list[str]) -> str:
    found = ROOT / ".venv-patroni" / "bin" / "patroni"
    if not found.exists():
        raise SystemExit(f"needs Patroni in {found.parents[1]}: `just cluster` installs it")
    if subprocess.run([*as_user, "sh", "-c", '"$0" --version', found], capture_output=True).returncode:
        raise SystemExit(
            f"the user 'nobody' cannot run {found}: it, or its Python, is where only root may read"
        )
    return str(found)


def postgresql() -> Path:
    """The programs of the newest version, which Debian does not have in the PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not versions:
        raise SystemExit("needs PostgreSQL: apt-get install postgresql")
    return versions[-1].parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespaces", action="store_true", help="a network namespace for each machine")
    parser.add_argument("--keep", action="store_true", help="leave data and logs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cluster = Cluster((Namespaces if options.namespaces else Loopback)(NUMBERS))
    try:
        cluster.start()
        show(cluster)
        while True:
            time.sleep(1)
            for name, process in cluster.processes.items():
                if process.poll() is not None:
                    print(f"{name} ended with {process.returncode}: it starts again", flush=True)
                    cluster.begin(name)
    except KeyboardInterrupt:
        print("ending all", flush=True)
    finally:
        cluster.close(keep=options.keep)


def show(cluster: Cluster) -> None:
    print(f"PaperDB through HAProxy  {cluster.url(BALANCER)}")
    for name in NODES:
        print(f"{name:24} {cluster.url(name)}")
    for name in DATABASES:
        role = "primary" if name == cluster.healthy() else "standby"
        print(f"{name:24} {cluster.network.addresses[name]}:5432, {role}")
    print(f"secret key               {cluster.key}")
    print(f"data and logs            {cluster.home}")
    print("^C ends all", flush=True)


if __name__ == "__main__":
    main()
