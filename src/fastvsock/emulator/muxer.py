"""One established connection: the VMM's two sockets, and the rules of Firecracker's csm/connection.rs."""

import select
import socket
from collections.abc import Callable
from time import monotonic

from ..engines import queues
from .guest import PACKET, shut
from .poller import Poller

CREDIT_UPDATE = 4096  # bytes of known credit under which the guest is told of more; csm/mod.rs
CLOSE_DEADLINE = 2.0  # seconds; csm/mod.rs
ROUNDS = 16  # packets in one direction before the other connections get their turn, or looks at all before a child does

IN, OUT, HUP, EDGE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLET
NEVER = float("inf")


class Connection:
    """One established connection: the VMM's two sockets, and the rules of csm/connection.rs."""

    def __init__(
        self,
        host: socket.socket,
        guest: socket.socket,
        name: str,
        poller: Poller,
        ended: "Callable[[Connection], None]",
    ) -> None:
        self.name, self.expires = name, NEVER
        self._host, self._guest, self._poller, self._ended = host, guest, poller, ended
        self._buffer = poller.buffer
        self._up: bytes | memoryview = b""  # read from the host, and not yet taken by the guest's end
        self._down = bytearray()  # taken from the guest, and not yet by the host's socket
        self._blocked = False  # the host's socket has refused some of `_down`
        self._credit, self._untold = PACKET, 0  # bytes that the guest may send, and those that it does not know of yet
        self._deaf = self._silent = False  # the guest receives, sends no more
        self._host_closed = False
        self._done = False
        self.settle()

    def end(self) -> None:
        """Close both sides. What is still in the VMM's hands is lost."""
        if self._done:
            return
        self._done = True
        self._poller.watch(self._host.fileno(), None, self._on_host)
        self._poller.watch(self._guest.fileno(), None, self._on_guest)
        self._host.close()
        self._close_guest()
        self._ended(self)

    def _close_guest(self) -> None:
        """Close the guest's side so that it reads an end of file: unread bytes would make that a reset (unix(7))."""
        shut(self._guest, socket.SHUT_RDWR)
        try:
            while self._guest.recv_into(self._buffer):
                pass
        except OSError:
            pass  # the guest itself closed with bytes unread
        self._guest.close()

    def settle(self) -> None:
        """Watch what can be acted upon, and nothing else: epoll reports HUP again and again."""
        if self._done:
            return
        host = OUT if self._down else 0
        if not (self._up or self._deaf or self._host_closed):
            host |= IN
        self._poller.watch(self._host.fileno(), host or None, self._on_host)
        self._poller.watch(self._guest.fileno(), self._guest_events(), self._on_guest)

    def _guest_events(self) -> int | None:
        if self._host_closed:
            return OUT | EDGE  # an event for what the guest takes: unix_write_space() in net/unix/af_unix.c
        up = OUT if self._up else 0
        if self._silent:
            return None if self._deaf else up  # epoll adds HUP, the full close
        if not self._credit:
            return up or EDGE  # HUP still matters, once
        return up | IN

    def _on_host(self, events: int) -> None:
        try:
            if events & OUT and self._down:
                self._flush()
            if events & IN:
                self._pull_up()
        except BlockingIOError:
            pass
        except OSError:
            self.end()  # any other error kills the connection there too
        self.settle()

    def _on_guest(self, events: int) -> None:
        try:
            if self._host_closed:
                return self._end_when_read()
            if events & OUT and self._up:
                self._push_up()
            if events & IN and not self._silent:
                self._pull_down()
            elif events & HUP and hung_up(self._guest):
                self._hang_up()
        except BlockingIOError:
            pass
        except OSError:
            self.end()
        self.settle()

    def _pull_up(self) -> None:
        for _ in range(ROUNDS):
            if self._done or self._up or self._deaf or self._host_closed:
                return
            count = self._host.recv_into(self._buffer)
            if not count:
                return self._close_host()
            self._up = self._buffer[:count]
            self._tell_credit()  # each packet to the guest carries it
            self._push_up()

    def _push_up(self) -> None:
        try:
            self._up = bytes(self._up[self._guest.send(self._up) :])
        except BlockingIOError:
            self._up = bytes(self._up)
        except (BrokenPipeError, ConnectionResetError):
            self._up, self._deaf = b"", True
            if self._silent:
                self._guest_closed()

    def _pull_down(self) -> None:
        for _ in range(ROUNDS):
            if self._done or self._host_closed or not self._credit:
                return
            try:
                count = self._guest.recv_into(self._buffer, self._credit)
            except ConnectionResetError:
                count = 0  # it closed with bytes unread
            if not count:
                return self._end_of_guest()
            self._credit -= count
            if self._down or (self._credit and not _writable(self._host)):
                self._down += self._buffer[:count]
                if not (self._credit or self._blocked):
                    self._flush()
            else:
                self._send_down(self._buffer[:count])

    def _send_down(self, packet: memoryview) -> None:
        try:
            sent = self._host.send(packet)
        except BlockingIOError:
            sent = 0
        self._down += packet[sent:]
        self._forwarded(sent)

    def _flush(self) -> None:
        try:
            sent = self._host.send(self._down)
        except BlockingIOError:
            sent = 0
        del self._down[:sent]
        self._forwarded(sent)

    def _forwarded(self, count: int) -> None:
        self._blocked = bool(self._down)
        self._untold += count
        if PACKET - self._untold < CREDIT_UPDATE:
            self._tell_credit()
        if self._silent and self._deaf and not self._down:
            self.end()

    def _tell_credit(self) -> None:
        self._credit += self._untold
        self._untold = 0

    def _hang_up(self) -> None:
        if self._silent:
            self._guest_closed()
        elif not (self._credit or queues(self._guest.fileno())[0]):
            self._end_of_guest()  # to close takes no credit

    def _end_of_guest(self) -> None:
        self._silent = True
        if self._down and not self._blocked:
            self._flush()
        if self._done:
            return
        if hung_up(self._guest):
            self.expires = monotonic() + CLOSE_DEADLINE  # not after a half-close, where connection.rs sets none
            self._guest_closed()

    def _guest_closed(self) -> None:
        self._up, self._deaf = b"", True
        if not self._down:
            self.end()

    def _close_host(self) -> None:
        """End of file from the host closes both directions: LocalClosed in connection.rs."""
        self._host_closed = True
        self.expires = monotonic() + CLOSE_DEADLINE
        shut(self._guest, socket.SHUT_RDWR)
        self._end_when_read()

    def _end_when_read(self) -> None:
        # The guest's driver answers with a reset once nothing is left to read. The last byte of the count is given
        # back only after the event (sock_wfree() in net/core/sock.c).
        if queues(self._guest.fileno())[1] <= 1:
            self.end()


def hung_up(sock: socket.socket) -> bool:
    return bool(_events(sock, 0) & select.POLLHUP)


def _writable(sock: socket.socket) -> bool:
    return bool(_events(sock, select.POLLOUT))


def _events(sock: socket.socket, mask: int) -> int:
    poll = select.poll()
    poll.register(sock, mask)
    return sum(events for _, events in poll.poll(0))
