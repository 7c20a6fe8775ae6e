"""Checks this machine: versions, limits, the engine, and which process holds RunCVM's global port."""

import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from .. import __version__, engines, errors
from ..host.process_tree import has_open, name_of, processes
from ..host.sock_diag import PROC_NET, listening_inodes
from .findings import FAILED, OK, WARNING, Finding, looked

GLOBAL_PORT = 22222  # RunCVM's one proxy for all
SYSCTLS = "/proc/sys/fs"
PIPE_LIMITS = ("pipe-max-size", "pipe-user-pages-soft", "pipe-user-pages-hard")  # pipe(7)
LEAST_DESCRIPTORS = 4096  # 1,023 connections, which is all that a VM can have, with four descriptors each


def check_here() -> Iterator[Finding]:
    """The versions and limits that a report of a fault needs, and what commonly goes wrong on a machine."""
    yield Finding("fastvsock", OK, f"fastvsock {__version__}, {_place()}")
    yield looked("python", python_finding, f"Python {sys.version}", sys.executable or "the interpreter in it")
    yield looked("engine", _own_engine)
    yield looked("system", _system)
    yield looked("pipes", _pipes)
    yield looked("descriptors", _descriptors)
    yield looked("port 22222", _global_port)


def _place() -> str:
    """Where this program is: a static executable has no files of the package, and its interpreter no path."""
    try:
        return f"in {Path(__file__).parents[1]}"
    except NameError:
        return "one static executable"


def python_finding(version: str, path: str, check: str = "python") -> Finding:
    """Whether the Python at `path` is new enough. `version` is what `python3 -V` prints; PyPy prints more numbers."""
    number = re.search(r"Python (\d+)\.(\d+)[\w.+]*", version)
    if number is None:
        text = f"{path} does not print its version: {version!r}"
        return Finding(check, FAILED, text, "make sure that it is Python 3.11 or newer")
    if tuple(map(int, number.groups())) < (3, 11):
        return Finding(check, FAILED, f"{path} is {number.group()}", "install Python 3.11 or newer")
    return Finding(check, OK, f"{path} is {number.group()}")


def engine_finding(missing: str, check: str = "engine") -> Finding:
    """Whether the engine is the fast one. `missing` is why it is not installed; empty where it is."""
    if not missing:
        return Finding(check, OK, "splice: it is installed, and loads")
    text = f"copy, which takes more CPU time: the splice engine is not installed ({missing})"
    return Finding(check, WARNING, text, "install the wheel for this platform, or build with a C compiler")


def _own_engine() -> Finding:
    wanted = os.environ.get("FASTVSOCK_ENGINE")
    if wanted:
        try:
            return Finding("engine", OK, f"{engines.choose()}, since FASTVSOCK_ENGINE={wanted}")
        except errors.EngineError as error:
            return Finding("engine", FAILED, str(error), "unset FASTVSOCK_ENGINE, or set it to auto")
    try:
        from ..engines import _splice  # noqa: F401
    except ImportError as error:
        return engine_finding(str(error))
    return engine_finding("")


def _system() -> Finding:
    kernel = os.uname()
    return Finding("system", OK, f"{kernel.sysname} {kernel.release} on {kernel.machine}, {_libc()}")


def _libc() -> str:
    """The C library that this Python runs on."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "an unknown libc"
    except (OSError, ValueError):  # a name of glibc alone
        pass
    try:
        return "musl" if "/ld-musl-" in Path("/proc/self/maps").read_text() else "an unknown libc"
    except OSError:  # no /proc
        return "an unknown libc"


def _pipes() -> Finding:
    return Finding("pipes", OK, ", ".join(f"fs.{name} {_sysctl(name)}" for name in PIPE_LIMITS))


def _sysctl(name: str) -> str:
    try:
        return Path(SYSCTLS, name).read_text().strip()
    except OSError:  # sandboxes have not all of them
        return "unknown"


def _descriptors() -> Finding:
    soft, hard = (
        "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    text = f"open files: ulimit -n {soft}, -Hn {hard}"
    if hard.isdigit() and int(hard) < LEAST_DESCRIPTORS:
        advice = f"raise the hard limit to {LEAST_DESCRIPTORS}, which 1,023 connections of a proxy need"
        return Finding("descriptors", WARNING, text, advice)
    return Finding("descriptors", OK, text)


def _global_port() -> Finding:
    try:
        inodes = listening_inodes(GLOBAL_PORT)
    except FileNotFoundError:
        text = f"cannot find out which process listens on 127.0.0.1:{GLOBAL_PORT}: {PROC_NET} does not exist"
        return Finding("port 22222", WARNING, text, "run fastvsock doctor where /proc is mounted")
    if not inodes:
        return Finding("port 22222", OK, f"nothing listens on 127.0.0.1:{GLOBAL_PORT} in this network namespace")
    holders = [pid for pid in sorted(processes()) if any(has_open(pid, inode) for inode in inodes)]
    names = ", ".join(f"{name_of(pid)} (pid {pid})" for pid in holders)
    text = f"127.0.0.1:{GLOBAL_PORT} is held by {names or 'a process that this user may not inspect'}"
    advice = "all exec and cp sessions that go through it share it: end it, once they have transports of their own"
    return Finding("port 22222", WARNING, text, advice)
