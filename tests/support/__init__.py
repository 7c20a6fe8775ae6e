"""What the tests share: the guest's pattern, the real command as a child, and a VMM's side that a test controls.

A test that holds against any VMM uses the `endpoint` fixture (the emulator, or real Firecracker inside the harness of
tests/vm). A test of what a VMM does only when it is broken uses `Listener`, where the test itself is the VMM.
"""

import os
import shlex
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).parents[2]  # of the repository
HANG = 60.0  # seconds; a guard against hanging, never a statement about speed
ENGINES = ("splice", "copy")
MODULES = {"fastvsock": "fastvsock", "runcvm-vsock-connect": "fastvsock.runcvm_vsock_connect"}

# Another program under test than the installed package: the words that run it, with its name in place of {name}.
PROGRAM = os.environ.get("FASTVSOCK_TEST_COMMAND", "")
of_the_package = pytest.mark.skipif(
    bool(PROGRAM), reason="by design: looks into the installed package, not FASTVSOCK_TEST_COMMAND"
)

# The guest's services, the same in the emulator and in the real guest: guest_agent.c
ECHO, DISCARD, CHARGEN, COMMAND, LATE_SOURCE, CLOSE, SOURCE, NOTHING = 7, 9, 19, 1000, 1001, 1002, 1003, 1999
SOURCE_SIZE = 1_000_000  # bytes from LATE_SOURCE and SOURCE


@dataclass(frozen=True)
class Endpoint:
    """A VMM's side with a guest behind it: the emulator, or, `real` and on a slow machine, Firecracker."""

    uds: str
    real: bool

    @property
    def linger(self) -> str:
        """A time of silence, for --linger, that a transfer without fault does not reach."""
        return "5" if self.real else "1"

    def size(self, usual: int) -> int:
        """How many bytes to move: inside the harness everything is emulated, and 30 times slower."""
        return usual // 16 if self.real else usual


def pattern(size: int, start: int = 0) -> bytes:
    """The guest's bytes from offset `start`: (i ^ i >> 8 ^ i >> 16) & 0xff, made 256 at a time."""
    first, last = start >> 8, (start + size + 255) >> 8
    blocks = b"".join(_block((i ^ i >> 8) & 0xFF) for i in range(first, last))
    skip = start - (first << 8)
    return blocks[skip : skip + size]


def _block(key: int) -> bytes:
    return _BLOCKS[key]


_BLOCKS = [bytes(i ^ key for i in range(256)) for key in range(256)]


def summary(data: bytes) -> bytes:
    """What the guest's `sink` answers."""
    return b"%d %08x\n" % (len(data), zlib.crc32(data))


def called(name: str) -> list[str]:
    """The words that run `fastvsock` or `runcvm-vsock-connect`: the installed package's, or those of PROGRAM."""
    words = shlex.split(PROGRAM)
    return [word.replace("{name}", name) for word in words] or [sys.executable, "-m", MODULES[name]]


def command(*arguments: str, engine: str = "auto") -> list[str]:
    """The command line of the program under test."""
    return [*called("runcvm-vsock-connect"), "--engine", engine, *arguments]


def run(
    *arguments: str, engine: str = "auto", input: bytes | None = None, before: Sequence[str] = (), **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the real command to its end, through the command `before`. Without `input`, stdin is /dev/null."""
    if input is None:
        options.setdefault("stdin", subprocess.DEVNULL)
    else:
        options["input"] = input
    return subprocess.run(
        [*before, *command(*arguments, engine=engine)],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        timeout=HANG,
        check=False,
        **options,
    )


class Child(subprocess.Popen[bytes]):
    """A child whose three streams are pipes, unless the test made them something else and does not use these."""

    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]


@contextmanager
def started(arguments: Sequence[str], **options: Any) -> Iterator[Child]:
    """A child process that is gone, with its pipes, when the block ends."""
    for name in ("stdin", "stdout", "stderr"):
        options.setdefault(name, subprocess.PIPE)
    child = Child(arguments, bufsize=0, **options)
    try:
        yield child
    finally:
        child.kill()
        child.wait(HANG)
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream:
                stream.close()


@contextmanager
def connecting(uds: str, port: int, *options: str, engine: str = "auto", **kinds: Any) -> Iterator[Child]:
    """The real command as a running child, its three streams unbuffered pipes unless `kinds` says else."""
    with started(command(*options, uds, str(port), engine=engine), **kinds) as child:
        yield child


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data` to a blocking descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_exactly(fd: int, size: int) -> bytes:
    """Read `size` bytes, or less at the end of file."""
    parts = []
    while size and (part := os.read(fd, min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def descriptors(pid: int | str = "self") -> dict[str, str]:
    """The open descriptors of a process and what they lead to."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[entry.name] = os.readlink(entry)
        except FileNotFoundError:  # the one that read the directory
            continue
    return found


class Listener:
    """A Unix socket whose far side is the test itself."""

    def __init__(self, path: Path) -> None:
        self.uds = str(path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(HANG)
        self._socket.bind(self.uds)
        self._socket.listen(128)

    def accept(self, answer: bytes = b"OK 1073741824\n") -> socket.socket:
        """Take one connection, read its CONNECT line, and answer."""
        connection, _ = self._socket.accept()
        connection.settimeout(HANG)
        line = b""
        while not line.endswith(b"\n"):
            byte = connection.recv(1)
            assert byte, "the connection ended before its CONNECT line did"
            line += byte
        connection.sendall(answer)
        return connection

    def close(self) -> None:
        """Listen no more; the socket file stays, as after a crash."""
        self._socket.close()


def python(code: str, *arguments: str) -> list[str]:
    """The words that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
