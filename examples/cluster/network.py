"""Where the machines of the cluster are: on loopback, or each in a network namespace with a cable to cut."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from typing import Final

BRIDGE: Final = "pdb-bridge"
HOST: Final = "host"
"""This machine, on the bridge with the others."""
NOBODY: Final = "02:00:00:00:00:fe"
"""A hardware address that no machine has: what is sent there vanishes without a word."""


class Loopback:
    """Each machine has an address of its own, 127.77.0.…, and the ports that it would have anywhere."""

    def __init__(self, numbers: dict[str, int]) -> None:
        self.addresses = {name: f"127.77.0.{number}" for name, number in numbers.items()}

    def on(self, machine: str, command: list[str]) -> list[str]:
        """The command that runs a command there."""
        return command

    def close(self) -> None:
        pass


class Namespaces(Loopback):
    """Each machine is a network namespace `pdb-…` on one bridge. Needs root and iproute2."""

    def __init__(self, numbers: dict[str, int]) -> None:
        if os.geteuid() != 0:
            raise SystemExit("network namespaces need root")
        self.addresses = {name: f"10.77.0.{number}" for name, number in {**numbers, HOST: 254}.items()}
        self._hardware = {
            name: f"02:00:00:00:00:{number:02x}" for name, number in {**numbers, HOST: 253}.items()
        }
        self._machines = list(numbers)
        self._cut: set[tuple[str, str]] = set()
        self.close()  # what a killed run left
        _ip("link", "add", BRIDGE, "address", self._hardware[HOST], "type", "bridge")
        _ip("address", "add", f"{self.addresses[HOST]}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for name in self._machines:
            space, cable = f"pdb-{name}", f"pdb-{name}"
            _ip("netns", "add", space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", cable, "master", BRIDGE, "up")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "set", "eth0", "address", self._hardware[name], "up")
            _ip("-n", space, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")

    def on(self, machine: str, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", f"pdb-{machine}", *command]

    def cut(self, machine: str, others: Iterable[str] | None = None) -> None:
        """Nothing gets from it to others, or back, and no end is told. Without `others`: all, and this host."""
        for other in others or [HOST, *self._machines]:
            if other != machine:
                for here, there in ((machine, other), (other, machine)):
                    self._cut.add((here, there))
                    _ip(*self._neighbour(here, "replace", there), "lladdr", NOBODY, "nud", "permanent")

    def mend(self) -> None:
        """All cables again."""
        for here, there in self._cut:
            _ip(*self._neighbour(here, "del", there))
        self._cut.clear()

    def _neighbour(self, here: str, verb: str, there: str) -> list[str]:
        space, device = ([], BRIDGE) if here == HOST else (["-n", f"pdb-{here}"], "eth0")
        return [*space, "neigh", verb, self.addresses[there], "dev", device]

    def close(self) -> None:
        for name in self._machines:
            _ip("netns", "del", f"pdb-{name}", check=False)
            _ip("link", "del", f"pdb-{name}", check=False)
        _ip("link", "del", BRIDGE, check=False)


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
