"""The guest's services: what listens on its ports."""

import itertools
import shlex
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from ..errors import EmulatorError as EmulatorError

PACKET = 65536  # bytes in a packet, and in the VMM's buffer; csm/mod.rs


# The guest's services


@dataclass(frozen=True)
class Exec:
    """A service that runs a child for each connection: `argv`, whose descriptors 0 and 1 are the guest's end.

    The child's exit is the guest's full close. A child that wants to reach a port of the host connects to the Unix
    socket ``$FASTVSOCK_GUEST_BACK_PORT``, as the VMM does for a guest that connects to CID 2.
    """

    argv: tuple[str, ...]

    @classmethod
    def parse(cls, command: str) -> "Exec":
        """From a command line; no shell runs it. Raises `ValueError` where quotes do not match or nothing is there."""
        argv = tuple(shlex.split(command))
        if not argv:
            raise ValueError("no command")
        return cls(argv)


@dataclass(frozen=True)
class Tcp:
    """A service that joins the guest's end to a TCP port, as socat in a guest does; its end of file is a full close."""

    host: str
    port: int

    def __call__(self, guest: socket.socket) -> None:
        with socket.create_connection((self.host, self.port)) as tcp:
            up = threading.Thread(target=_forward, args=(guest, tcp), daemon=True)
            up.start()
            _forward(tcp, guest)
            for end in (guest, tcp):
                shut(end, socket.SHUT_RDWR)
            up.join()


Service = Callable[[socket.socket], object] | Exec
"""A callable gets the guest's end, a blocking stream socket, in a thread of its own; its return is the full close."""


def echo(guest: socket.socket) -> None:
    """Send back what comes, until end of file."""
    buffer = memoryview(bytearray(PACKET))
    while count := guest.recv_into(buffer):
        guest.sendall(buffer[:count])


def discard(guest: socket.socket) -> None:
    """Read until end of file, then answer the count of bytes and a newline.

    After a half-close of the host the answer goes nowhere, since the VMM has shut both directions.
    """
    buffer, total = bytearray(PACKET), 0
    while count := guest.recv_into(buffer):
        total += count
    guest.sendall(b"%d\n" % total)


def chargen(guest: socket.socket) -> None:
    """Send bytes until the peer closes: the one at offset i is ``(i ^ (i >> 8) ^ (i >> 16)) & 0xff``. Reads nothing."""
    for third in itertools.cycle(range(256)):
        guest.sendall(_pattern(third))


@cache
def _pattern(third: int) -> bytes:
    """The 64 KiB of chargen that begin at offset `third` << 16."""
    if third:
        return _pattern(0).translate(bytes(byte ^ third for byte in range(256)))
    return bytes((i ^ i >> 8) & 0xFF for i in range(PACKET))


DEFAULT_SERVICES: dict[int, Service] = {7: echo, 9: discard, 19: chargen}


def _forward(source: socket.socket, target: socket.socket) -> None:
    """Copy until end of file, then half-close; an error at either end is an end of file too."""
    buffer = memoryview(bytearray(PACKET))
    try:
        while count := source.recv_into(buffer):
            target.sendall(buffer[:count])
    except OSError:
        pass
    shut(target, socket.SHUT_WR)


def shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # its peer has closed
