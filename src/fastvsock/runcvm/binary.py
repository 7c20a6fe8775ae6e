"""The static binary: the whole program in one file, which a bundle can have in place of the package and a Python.

The build leaves its name and version in it (wheels/static/main.c), so that it is known where it cannot be run.
"""

import os
import re
import stat
from dataclasses import dataclass

from ..errors import BundleError
from .bundle import run
from .bundle_files import MAX_FILE
from .elf import build_of, is_static_program

PROGRAM = "bin/fastvsock"
NAMED, TARGET = "bin/runcvm-vsock-connect", "fastvsock"  # a link to it: by this name it starts as that program
MARK = re.compile(rb"fastvsock (\d[\w.+!]*), one static executable\0")
ITSELF = "/proc/self/exe"


@dataclass(frozen=True)
class Binary:
    """A static binary of fastvsock: its content, where it came from, its version and the machine it is for."""

    data: bytes
    source: str
    version: str
    machine: str


def itself() -> Binary:
    """The running program, a static binary. Raises `BundleError` where there is no /proc to read it from."""
    try:
        with open(ITSELF, "rb") as file:
            return parsed(file.read(), "this fastvsock")
    except OSError as error:
        raise BundleError(
            f"{ITSELF}: this fastvsock cannot read itself: {error.strerror}: mount /proc, or pass --binary FILE"
        ) from None


def from_file(path: str) -> Binary:
    """The binary at `path`, tried if it runs here. Raises `BundleError` for anything else."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
                raise BundleError(f"{path}: expected a regular file of at most {MAX_FILE >> 20} MiB")
            data = file.read()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None
    return tried(parsed(data, path))


def parsed(data: bytes, source: str) -> Binary:
    """The binary with this content, by what the content shows. Raises `BundleError` for anything else."""
    build, mark = build_of(data), MARK.search(data)
    if build is None:
        wrong = "it is not an ELF file"
    elif not is_static_program(data):
        wrong = "it is not a static executable"
    elif mark is None:
        wrong = "it is another program"
    else:
        return Binary(data, source, mark[1].decode(), build.machine)
    raise BundleError(
        f"{source}: not a static binary of fastvsock: {wrong}: pass fastvsock-VERSION-linux-MACHINE of a release"
    )


def tried(binary: Binary) -> Binary:
    """The same binary, once it has printed its version. Raises `BundleError` if it does something else.

    What runs is a copy in memory: the file may not be executable, and is not read again. One that does not start here,
    such as one for another machine, is taken as it is.
    """
    try:
        fd = _in_memory(binary.data)
    except OSError:  # no /proc
        return binary
    try:
        ran = run([f"/proc/{os.getpid()}/fd/{fd}", "--version"])
    finally:
        os.close(fd)
    started = ran.status is not None or ran.late
    if started and ran.out != f"fastvsock {binary.version}\n":
        raise BundleError(
            f"{binary.source}: not a working fastvsock {binary.version}: with --version it prints "
            f"{ran.out!r} ({ran.wrong or 'exit status 0'}): get the file again"
        )
    return binary


def _in_memory(data: bytes) -> int:
    """A descriptor for reading a file in memory, which nothing can write to: execve(2) would fail with ETXTBSY."""
    with open(os.memfd_create("fastvsock"), "wb") as file:
        file.write(data)
        file.flush()
        return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)


def is_binary(data: bytes) -> bool:
    """Whether a file is a static binary of fastvsock, of any version and for any machine."""
    return build_of(data) is not None and MARK.search(data) is not None
