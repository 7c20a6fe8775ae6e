"""What throughput benchmarks share: forked children that feed a relay and drain it, so that its CPU time is its own."""

import os
from collections.abc import Callable

PIECE = 1 << 20  # bytes a read or write


def child(work: Callable[[], None], *foreign: int) -> int:
    """A process that does `work`, without the descriptors `foreign`; its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        for fd in foreign:
            os.close(fd)
        work()
        status = 0
    finally:
        os._exit(status)


def feed(fd: int, size: int) -> None:
    """Write `size` bytes."""
    piece = memoryview(bytes(PIECE))
    while size:
        size -= os.write(fd, piece[: min(size, PIECE)])


def drain(fd: int, size: int) -> None:
    """Read `size` bytes, or end the process with a failure where there are fewer."""
    buffer = bytearray(PIECE)
    while size:
        got = os.readv(fd, [buffer])
        if not got:
            os._exit(1)
        size -= got


def wait(*children: int) -> None:
    """Wait for children. Raises `RuntimeError` where one failed."""
    for number in children:
        hold(os.waitpid(number, 0)[1], 0)


def hold(got: object, wanted: object) -> None:
    """Raise `RuntimeError` unless the two are equal."""
    if got != wanted:
        raise RuntimeError(f"the relay did {got!r}, and not {wanted!r}")
