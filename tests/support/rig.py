"""An exchange of frames between a socket, at whose other end the test is, and pipes."""

import fcntl
import os
import socket
from contextlib import ExitStack

from fastvsock.engines import exchange
from fastvsock.engines.exchange import Exchange
from support import HANG, write_all
from support.channels import Peer

LIMIT = int(HANG * 1000)  # milliseconds


class Rig:
    """An exchange that sends stream 0 and receives streams 1 and 2, each from or to a pipe."""

    def __init__(self, engine: str, stack: ExitStack, splices: bool) -> None:
        ours, theirs = socket.socketpair()
        self.peer = Peer(stack.enter_context(theirs))
        self.sock = stack.enter_context(ours)
        for end in ours, theirs:  # so that the test's own frames do not wait for the exchange to run
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours.setblocking(False)
        self.stack = stack
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        stack.callback(os.close, self.wake)
        self.exchange = Exchange(ours.fileno(), self.wake, engine=engine, splices=splices)
        stack.callback(self.exchange.close)
        self.source, self.feed = self.pipe()
        self.out, self.out_target = self.pipe()
        self.err, self.err_target = self.pipe()

    def pipe(self) -> tuple[int, int]:
        read_end, write_end = os.pipe()
        for fd in read_end, write_end:
            self.stack.callback(self.close, fd)
        return read_end, write_end

    def close(self, fd: int) -> None:
        """Close a descriptor that may be closed by now."""
        try:
            os.close(fd)
        except OSError:
            pass

    def stall(self, target: int) -> None:
        """Fill a pipe that cannot become larger."""
        write_all(target, bytes(fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, 1 << 20)))

    def use_pipes(self) -> None:
        self.exchange.add_source(0, self.source)
        self.exchange.add_target(1, self.out_target)
        self.exchange.add_target(2, self.err_target)

    def run(self, timeout: int = LIMIT) -> tuple[int, int, object]:
        return self.exchange.run(timeout)

    def settle(self) -> None:
        """Until nothing moves."""
        assert self.run(50) == (exchange.TIMEOUT, 0, 0)
