"""Two hosts on one machine: network namespaces with a cable between them, else two loopback addresses.

What runs in one reaches the other by its address alone. Namespaces need root and iproute2; `Host.kind` says which of
the two it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """address: by which the other reaches it; before: what a command must begin with to run there."""

    address: str
    before: tuple[str, ...]
    kind: str


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Both, for as long as it is open."""
    names = [f"bevcask-{os.getpid()}-{side}" for side in "ab"]
    if not _namespaces(names):
        by_loopback = ("env", "GLOO_SOCKET_IFNAME=lo")
        yield Host("127.0.0.2", by_loopback, "loopback address"), Host("127.0.0.3", by_loopback, "loopback address")
        return
    try:
        cables = [f"bc{os.getpid() % 100000}{side}" for side in "ab"]
        _ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        hosts = []
        for number, (name, cable) in enumerate(zip(names, cables, strict=True), 1):
            address = f"10.231.17.{number}"
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            for link in (cable, "lo"):
                _ip("-n", name, "link", "set", link, "up")
            inside = ("ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={cable}", f"NCCL_SOCKET_IFNAME={cable}")
            hosts.append(Host(address, inside, "network namespace"))
        yield hosts[0], hosts[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _namespaces(names: list[str]) -> bool:
    """Makes them; False where this machine does not let us."""
    if shutil.which("ip") is None:
        return False
    for name in names:
        if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
            for made in names:
                subprocess.run(["ip", "netns", "del", made], capture_output=True, check=False)
            return False
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
