"""A relay's four ends, with the test at the other side of each."""

import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from io import FileIO

import fastvsock
from support import HANG


class Ends:
    """A relay's four ends: `sock` with `guest` behind it, `rfd` that `feed` fills, and `wfd` that goes to `out`."""

    def __init__(self) -> None:
        self.sock, self.guest = socket.socketpair()
        self.rfd, feed = os.pipe()
        out, self.wfd = os.pipe()
        self.feed = FileIO(feed, "wb")
        self.out = FileIO(out, "rb")
        self.guest.settimeout(HANG)

    def close(self) -> None:
        os.close(self.rfd)
        os.close(self.wfd)
        for end in (self.sock, self.guest, self.feed, self.out):
            end.close()

    def until_running(self) -> None:
        """Both pumps have moved something: they run."""
        self.feed.write(b"u")
        assert self.guest.recv(1) == b"u"
        self.guest.send(b"d")
        assert self.out.read(1) == b"d"


Start = Callable[..., "Future[fastvsock.RelayResult]"]
