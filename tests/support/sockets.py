"""Unix sockets in the state that a test wants."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import HANG


@contextmanager
def bound(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """A Unix socket at `path` that does not listen. A path of any length: bind(2) gets its folder as a descriptor."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.settimeout(HANG)
            sock.bind(f"/proc/self/fd/{folder}/{path.name}")
            yield sock
    finally:
        os.close(folder)


@contextmanager
def listening(path: Path, backlog: int = 128) -> Iterator[socket.socket]:
    """A Unix stream socket at `path` that listens, and answers nothing by itself."""
    with bound(path) as sock:
        sock.listen(backlog)
        yield sock


def take(sock: socket.socket) -> socket.socket:
    """Accept a connection and see its CONNECT line without taking it, as a VMM that dies just then."""
    connection, _ = sock.accept()
    connection.settimeout(HANG)
    connection.recv(1, socket.MSG_PEEK)
    return connection
