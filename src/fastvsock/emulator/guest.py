"""The guest's services: what listens on its ports."""

import itertools
import shlex
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from ..host.sock_diag import other_end

PACKET = 65536  # bytes in a packet, and in the VMM's buffer; csm/mod.rs
LOOK = 0.1  # seconds between looks at a TCP server that has half-closed


@dataclass(frozen=True)
class Exec:
    """A service that runs `argv` as a child for each connection, with the guest's end as its descriptors 0 and 1.

    The guest has closed fully when the child, and whatever it left running with these descriptors, has ended. To reach
    port 5000 of the host, a child connects to the Unix socket ``${FASTVSOCK_HOST_SOCKET_PREFIX}_5000``; a program in a
    real guest would connect to CID 2.
    """

    argv: tuple[str, ...]

    @classmethod
    def parse(cls, command: str) -> "Exec":
        """Split a command line; no shell runs it. Raises `ValueError` for unmatched quotes, and for an empty line."""
        argv = tuple(shlex.split(command))
        if not argv:
            raise ValueError("the command is empty")
        return cls(argv)


@dataclass(frozen=True)
class Tcp:
    """A service that joins each connection to a TCP port, as a guest would with socat.

    Half-closes are passed on, both ways. A server on this machine has closed when no process has its socket open any
    more (host/sock_diag.py); of one on another machine nothing but the end of file is seen, which counts as a close.
    Nagle's algorithm is off: together with delayed acknowledgements it would add 40 ms to each small request.
    """

    host: str
    port: int

    def __call__(self, guest: socket.socket) -> None:
        """Serve one connection. Raises `OSError` where the port cannot be reached."""
        with socket.create_connection((self.host, self.port)) as tcp:
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            up = threading.Thread(target=_forward, args=(guest, tcp), daemon=True)
            up.start()
            _forward(tcp, guest)
            while up.is_alive() and _is_half_closed(tcp):
                up.join(LOOK)
            for end in (guest, tcp):
                shutdown(end, socket.SHUT_RDWR)
            up.join()


@dataclass(frozen=True)
class Unix:
    """A service of another process, which listens on the Unix socket `path`: its end of a connection is the guest's."""

    path: str

    def connect(self) -> socket.socket:
        """A connection to it, which does not block. Raises `OSError`."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            sock.connect(self.path)
        except BaseException:
            sock.close()
            raise
        return sock


Service = Callable[[socket.socket], object] | Exec | Unix
"""What serves a port: an `Exec`, a `Unix`, or a callable. The callable runs in a thread of its own for each connection
and gets the guest's end, a blocking stream socket that is closed when it returns. An `OSError` that it raises is
logged."""


def echo(guest: socket.socket) -> None:
    """Send back what comes, until end of file."""
    buffer = memoryview(bytearray(PACKET))
    while count := guest.recv_into(buffer):
        guest.sendall(buffer[:count])


def discard(guest: socket.socket) -> None:
    """Read until end of file, then answer the count of bytes and a newline.

    Behind Firecracker the answer is lost: the host's half-close has closed both directions.
    """
    buffer, total = bytearray(PACKET), 0
    while count := guest.recv_into(buffer):
        total += count
    guest.sendall(b"%d\n" % total)


def chargen(guest: socket.socket) -> None:
    """Send bytes until the host closes; the byte at offset i is ``(i ^ (i >> 8) ^ (i >> 16)) & 0xff``. Read nothing."""
    for third in itertools.cycle(range(256)):
        guest.sendall(_pattern(third))


@cache
def _pattern(third: int) -> bytes:
    """The 64 KiB of chargen that begin at offset `third` << 16."""
    if third:
        return _pattern(0).translate(bytes(byte ^ third for byte in range(256)))
    return bytes((i ^ i >> 8) & 0xFF for i in range(PACKET))


DEFAULT_SERVICES: dict[int, Service] = {7: echo, 9: discard, 19: chargen}
"""The guest's services unless others are given, at the ports of RFC 862, 863 and 864."""


def _forward(source: socket.socket, target: socket.socket) -> None:
    """Copy until end of file, then half-close. An error at either end counts as end of file."""
    buffer = memoryview(bytearray(PACKET))
    try:
        while count := source.recv_into(buffer):
            target.sendall(buffer[:count])
    except OSError:
        pass
    shutdown(target, socket.SHUT_WR)


def _is_half_closed(tcp: socket.socket) -> bool:
    """Whether a process of this machine still has the other end of a TCP connection open, which has sent its end."""
    try:
        found = other_end(tcp)
    except OSError:
        return False  # reset, or the kernel does not answer
    return found is not None and found[2] != 0


def shutdown(sock: socket.socket, how: int) -> None:
    """Shut down a socket, whether or not its peer is still there."""
    try:
        sock.shutdown(how)
    except OSError:
        pass  # ENOTCONN: the peer has closed
