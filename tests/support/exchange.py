"""A payload each way at once, in any pieces and with any pauses, and the sums of what arrived.

`linger` is 0 throughout, so that the end of one direction shows at the far side, and nothing can hide behind it.
"""

import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from support import HANG, Listener, connecting, summary, write_all

KINDS = ["pipe", "socketpair"]  # of stdin and stdout
PIECE = 1 << 18  # bytes a call once the pieces of a `Shape` are used up


@dataclass(frozen=True)
class Shape:
    """How one side writes or reads: the size of each call, and the pause in front of it in microseconds."""

    pieces: Sequence[tuple[int, int]] = ()

    def sizes(self, total: int) -> list[int]:
        """The sizes of the calls that move `total` bytes, pausing as it goes."""
        found = []
        for size, _ in self.pieces:
            found.append(min(size, total))
            total -= found[-1]
        return [size for size in (*found, *[PIECE] * (total // PIECE), total % PIECE) if size]

    def pause(self, call: int) -> None:
        """Pause in front of call number `call`."""
        if call < len(self.pieces) and self.pieces[call][1]:
            time.sleep(self.pieces[call][1] / 1e6)


@dataclass(frozen=True)
class Way:
    """One direction: a payload of `size` random bytes, and how it is written and read."""

    size: int
    writes: Shape = Shape()
    reads: Shape = Shape()

    @cached_property
    def payload(self) -> bytes:
        """The same bytes at each run; in the repr of a failing example they would tell nothing."""
        return random.Random(self.size).randbytes(self.size)

    @property
    def sum(self) -> bytes:
        """What `exchange` tells when all of it has arrived."""
        return summary(self.payload)


class Ends:
    """The near side's stdin and stdout, as a child or a relay gets them, and the test's ends of them.

    `kind` is ``pipe`` or ``socketpair``; socat's EXEC gives the latter, one socket for both.
    """

    def __init__(self, kind: str) -> None:
        self._sockets: list[socket.socket] = []
        if kind == "socketpair":
            mine, theirs = socket.socketpair()
            self._sockets = [mine, theirs]
            self.rfd = self.wfd = theirs.detach()
            self.feed, self.drain = os.dup(mine.fileno()), mine.detach()
        else:
            self.rfd, self.feed = os.pipe()
            self.drain, self.wfd = os.pipe()

    def end_input(self) -> None:
        """Let stdin end."""
        if self._sockets:
            with socket.socket(fileno=self.feed) as sock:
                sock.shutdown(socket.SHUT_WR)
        else:
            os.close(self.feed)

    def close_theirs(self) -> None:
        """Close what the child or the relay got."""
        for fd in {self.rfd, self.wfd}:
            os.close(fd)


def send(write: Callable[[bytes], object], way: Way, done: Callable[[], object]) -> None:
    """Write the payload in its pieces."""
    start = 0
    try:
        for call, size in enumerate(way.writes.sizes(way.size)):
            way.writes.pause(call)
            write(way.payload[start : start + size])
            start += size
    except ConnectionError:
        return  # what is missing at the far end tells more
    finally:
        done()


def receive(read: Callable[[int], bytes], way: Way, into: list[bytes]) -> None:
    """Read until the end."""
    call = 0
    try:
        while True:
            way.reads.pause(call)
            size = way.reads.pieces[call][0] if call < len(way.reads.pieces) else PIECE
            into.append(read(size))
            if not into[-1]:
                return
            call += 1
    except ConnectionError:
        return


def exchange(ends: Ends, far: socket.socket, up: Way, down: Way) -> tuple[bytes, bytes]:
    """Send `up` through the near side's stdin and `down` from `far`, at once; sums what arrived at `far` and at stdout.

    `far` is closed when both have ended there, and stdout is read to its end, which comes of that.
    """
    arrived_up: list[bytes] = []
    arrived_down: list[bytes] = []
    sending = [
        threading.Thread(target=send, args=(partial(write_all, ends.feed), up, ends.end_input), daemon=True),
        threading.Thread(target=send, args=(far.sendall, down, lambda: None), daemon=True),
        threading.Thread(target=receive, args=(far.recv, up, arrived_up), daemon=True),
    ]
    receiving = threading.Thread(target=receive, args=(partial(os.read, ends.drain), down, arrived_down), daemon=True)
    for thread in (*sending, receiving):
        thread.start()
    try:
        for thread in sending:
            thread.join(HANG)
    finally:
        far.close()
    receiving.join(HANG)
    assert not any(thread.is_alive() for thread in (*sending, receiving)), "it hangs"
    os.close(ends.drain)
    return summary(b"".join(arrived_up)), summary(b"".join(arrived_down))


@contextmanager
def commanding(listener: Listener, ends: Ends, engine: str, **kinds: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The real command, with `ends` as its stdin and stdout, and a half-close right behind the end of stdin."""
    options = ["--linger", "0"]
    with connecting(listener.uds, 5000, *options, engine=engine, stdin=ends.rfd, stdout=ends.wfd, **kinds) as child:
        ends.close_theirs()
        yield child
