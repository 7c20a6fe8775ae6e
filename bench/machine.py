"""Describes the machine for the readers of a figure: kernel, CPU, versions, sizes, load."""

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyperf  # type: ignore[import-untyped,unused-ignore]

from .peers import Peer

# These would hold names of a person or a company.
PRIVATE = ("hostname", "python_executable", "command")
LIMITS = {
    "pipe_max_size": "fs/pipe-max-size",
    "pipe_user_pages_soft": "fs/pipe-user-pages-soft",
    "socket_wmem_default": "net/core/wmem_default",
    "socket_wmem_max": "net/core/wmem_max",
    "socket_rmem_default": "net/core/rmem_default",
    "tcp_rmem": "net/ipv4/tcp_rmem",
    "tcp_wmem": "net/ipv4/tcp_wmem",
}


def describe(peers: Iterable[Peer]) -> dict[str, Any]:
    """Metadata for pyperf: its own about this machine, and the sizes that matter to pipes and sockets."""
    metadata = dict(pyperf.Run([1.0]).get_metadata())
    found = {name: value for name, value in metadata.items() if name not in PRIVATE}
    for gone in ("date", "duration", "mem_max_rss", "load_avg_1min", "runnable_threads", "uptime", "unit"):
        found.pop(gone, None)
    found |= {
        "kernel": platform.release(),
        "user": "root" if os.geteuid() == 0 else "an ordinary user",
        "cpu_usable": len(os.sched_getaffinity(0)),
        "cpu_virtual": "yes" if "hypervisor" in _read("/proc/cpuinfo") else "no",
        "memory_total": _read("/proc/meminfo").partition("\n")[0].partition(":")[2].strip(),
        "load_avg_before": load_average(),
        "version_compiler": _compiler(),
    }
    found |= {name: _read(f"/proc/sys/{path}") for name, path in LIMITS.items()}
    with socket.socket(socket.AF_UNIX) as sock:
        found["unix_socket_sndbuf"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    found |= {f"version_{peer.name}": peer.version() for peer in peers}
    return {name: value for name, value in found.items() if value != ""}


def load_average() -> str:
    """The load of the last 1, 5 and 15 minutes."""
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def _read(path: str) -> str:
    try:
        return " ".join(Path(path).read_text().split(" ")).strip().replace("\t", " ") if path else ""
    except OSError:
        return ""


def _compiler() -> str:
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    return version.partition("\n")[0]
