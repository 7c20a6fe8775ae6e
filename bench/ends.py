"""What a rig needs to know of its ends: their reports, their input, and how they connect without a forwarder."""

import atexit
import os
import re
import socket
import tempfile
import zlib
from dataclasses import dataclass
from functools import cache

from .sample import PeerError


@dataclass
class Tally:
    """What an end reports about a stream: see report() in peers/common.h."""

    word: bytes
    size: int
    crc: int
    begin: int
    end: int


def tally(line: bytes) -> Tally:
    """Parse an end's report."""
    word, *numbers = line.split()
    return Tally(word, *map(int, numbers))


def announced_port(line: str) -> int:
    """The port in a proxy's announcement of its address on 127.0.0.1. Raises `PeerError`."""
    found = re.search(r"127\.0\.0\.1:(\d+)", line)
    if not found:
        raise PeerError(f"did not announce its port, but wrote {line.strip()!r}")
    return int(found[1])


def shake(uds: str, port: int, timeout: float) -> socket.socket:
    """A connection to a port behind `uds`, without a forwarder."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    sock.connect(uds)
    sock.sendall(b"CONNECT %d\n" % port)
    while sock.recv(1) != b"\n":
        pass
    return sock


@cache
def work_file(size: int) -> tuple[str, int]:
    """A file of `size` bytes, removed when this process ends, and its checksum."""
    file = tempfile.NamedTemporaryFile(prefix="fastvsock-bench-")  # noqa: SIM115
    atexit.register(file.close)
    block, crc = os.urandom(1 << 20), 0
    for start in range(0, size, len(block)):
        piece = block[: size - start]
        file.write(piece)
        crc = zlib.crc32(piece, crc)
    file.flush()
    return file.name, crc
