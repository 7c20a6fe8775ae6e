"""Diagnoses this machine: its Python, the engine, and the process that holds RunCVM's global port."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from .. import engines, errors
from .findings import FAILED, OK, WARNING, Finding, looked

GLOBAL_PORT = 22222  # RunCVM's one proxy for all
PROC_NET = "/proc/net"


def check_here() -> Iterator[Finding]:
    """This Python, its engine, and who holds RunCVM's global port here."""
    yield looked("python", python_finding, f"Python {sys.version}", sys.executable)
    yield looked("engine", _own_engine)
    yield looked("port 22222", _global_port)


def python_finding(said: str, path: str, check: str = "python") -> Finding:
    """`said` is what `python3 -V` prints: PyPy has more numbers in it."""
    version = re.search(r"Python (\d+)\.(\d+)[\w.+]*", said)
    if version is None:
        return Finding(check, FAILED, f"{path} tells no version: {said!r}", "see that it is Python 3.11 or newer")
    if tuple(map(int, version.groups())) < (3, 11):
        return Finding(check, FAILED, f"{path} is {version.group()}", "fastvsock needs 3.11 or newer")
    return Finding(check, OK, f"{path} is {version.group()}")


def engine_finding(chosen: str, reason: str, check: str = "engine") -> Finding:
    """Whether the engine is the fast one."""
    if chosen == "splice":
        return Finding(check, OK, "splice: it is there, and loads")
    return Finding(check, WARNING, f"copy, which takes more CPU time: {reason}", "install the wheel for this platform")


def _own_engine() -> Finding:
    wanted = os.environ.get("FASTVSOCK_ENGINE")
    try:
        chosen = engines.choose()
        if wanted:
            return Finding("engine", OK, f"{chosen}, since FASTVSOCK_ENGINE={wanted}")
        return engine_finding(engines.choose("splice"), "")
    except errors.EngineError as error:
        if wanted:
            return Finding("engine", FAILED, str(error), "unset FASTVSOCK_ENGINE, or set it to auto")
        return engine_finding("copy", str(error))


def _global_port() -> Finding:
    tables = [table for name in ("tcp", "tcp6") if (table := Path(PROC_NET, name)).exists()]
    if not tables:
        text = f"nobody can tell who listens on 127.0.0.1:22222: {PROC_NET} is not there"
        return Finding("port 22222", WARNING, text, "look where /proc is mounted")
    inodes = {inode for table in tables for inode in _listening(table)}
    if not inodes:
        return Finding("port 22222", OK, "nothing listens on 127.0.0.1:22222 in this network namespace")
    who = ", ".join(_holders(inodes)) or "a process that this user may not look into"
    advice = "whatever goes through it shares it: end it, once exec and cp have transports of their own"
    return Finding("port 22222", WARNING, f"127.0.0.1:22222 is held by {who}", advice)


def _listening(table: Path) -> Iterator[str]:
    """The inodes of the sockets that take connections to 127.0.0.1:22222: proc(5), /proc/net/tcp."""
    for line in table.read_text().splitlines()[1:]:
        _, local, _, state, *rest = line.split()
        address, _, port = local.partition(":")
        loopback = address in ("0100007F", "7F000001") or not address.strip("0")
        if state == "0A" and int(port, 16) == GLOBAL_PORT and loopback:
            yield rest[5]


def _holders(inodes: set[str]) -> Iterator[str]:
    links = {f"socket:[{inode}]" for inode in inodes}
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            if any(os.readlink(entry) in links for entry in (process / "fd").iterdir()):
                yield f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:  # gone, or another user's
            continue
