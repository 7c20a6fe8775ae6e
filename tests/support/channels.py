"""What the tests of channels share: an agent, the real `exec` as a child, and a far end that a test controls."""

import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvsock.channels import protocol
from fastvsock.engines import frames
from support import HANG, Child, Listener, called, started

# 32 and 33, which the C library keeps to itself; make starts its commands with them ignored.
LIBC_SIGNALS = 3 << 31


def umbrella(*arguments: str) -> list[str]:
    """The command line of a subcommand."""
    return [*called("fastvsock"), *arguments]


@dataclass(frozen=True)
class Guest:
    """An agent's process, and the UDS that leads to it."""

    uds: str
    agent: Child


# Firecracker's, in the harness of tests/vm: it has neither Python nor a file of ours, and its agent is no process here.
REAL_GUEST = Guest(os.environ.get("FASTVSOCK_TEST_UDS", ""), None)  # type: ignore[arg-type]


@contextmanager
def agent_on(path: Path, *options: str, engine: str = "auto", **kinds: Any) -> Iterator[Guest]:
    """An agent that listens on a Unix socket, which answers CONNECT as a VMM's."""
    arguments = umbrella("agent", "--engine", engine, "--listen", f"unix:{path}", *options)
    with started(arguments, stdin=subprocess.DEVNULL, **kinds) as child:
        line = child.stdout.readline()
        assert line == f"listening on unix:{path}\n".encode(), line + child.stderr.read()
        yield Guest(str(path), child)
        child.terminate()
        child.wait(HANG)


def exec_command(guest: Guest | Listener, *words: str, options: Sequence[str] = (), engine: str = "auto") -> list[str]:
    """The command line of `fastvsock exec`."""
    return umbrella("exec", "--engine", engine, *options, guest.uds, *words)


def exec_in(
    guest: Guest,
    *words: str,
    options: Sequence[str] = (),
    engine: str = "auto",
    input: bytes | None = None,
    **kinds: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in the guest to its end. Without `input`, stdin is not passed on."""
    if input is not None:
        options = [*options, "-i"]
    return subprocess.run(
        exec_command(guest, *words, options=options, engine=engine),
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        stdout=kinds.pop("stdout", subprocess.PIPE),
        stderr=kinds.pop("stderr", subprocess.PIPE),
        timeout=HANG,
        check=False,
        **kinds,
    )


@contextmanager
def executing(
    guest: Guest, *words: str, options: Sequence[str] = (), engine: str = "auto", **kinds: Any
) -> Iterator[Child]:
    """The real command as a running child."""
    with started(exec_command(guest, *words, options=options, engine=engine), **kinds) as child:
        yield child


class Peer:
    """The other end of a channel, where the test itself writes and reads frames."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(HANG)

    def send(self, kind: int, stream: int = 0, payload: bytes = b"") -> None:
        """A whole frame."""
        self.sock.sendall(frames.frame(kind, stream, payload))

    def receive(self) -> tuple[int, int, bytes]:
        """The next frame: its type, stream and payload. Raises `EOFError`."""
        head = self._exactly(frames.HEADER)
        return head[0], head[1], self._exactly(int.from_bytes(head[4:], "big"))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def is_silent(self, seconds: float = 0.1) -> bool:
        """Whether nothing comes for a while."""
        return not select.select([self.sock], [], [], seconds)[0]

    def stream(self, number: int) -> bytes:
        """All of a stream to its end, whose count must be right; credit is given as it comes, the rest is dropped."""
        data = b""
        while True:
            kind, stream, payload = self.receive()
            if (kind, stream) == (frames.DATA, number):
                data += payload
                self.sock.sendall(frames.credit_frame(number, len(payload)))
            elif (kind, stream) == (frames.END, number):
                assert int.from_bytes(payload, "big") == len(data)
                return data


def dial_agent(guest: Guest) -> Peer:
    """A client's connection to an agent, by hand."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(guest.uds)
    return Peer(sock)


def ask(guest: Guest, *arguments: bytes, flags: int = 0) -> Peer:
    """A client's connection whose command has started."""
    peer = dial_agent(guest)
    peer.sock.sendall(protocol.Request(protocol.EXEC, arguments=arguments, flags=flags).encode())
    assert peer.receive() == (protocol.STARTED, 0, b"")
    return peer


def processes_with(word: str) -> list[int]:
    """The pids of the processes that have `word` in their command line, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and word.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def within(seconds: float, look: Any) -> bool:
    """Whether what `look` finds becomes true in time."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
