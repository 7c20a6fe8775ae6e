"""One established connection of the emulated VMM: two sockets, and the rules of csm/connection.rs between them.

The guest's end is one half of a socketpair, held by a service. What the guest does shows on the other half: end of file
is its half-close, end of file with POLLHUP its full close. The same holds for the host's socket.

Up (host to guest), the VMM reads only what it can pass on, so that a guest which does not read stops the host. Down, it
takes packets of up to 64 KiB as far as the guest's credit goes. What the host's socket does not take waits in a buffer
of 64 KiB. A connection that ended at one side with bytes still under way gets a deadline of 2 s (`expires`), which is
enforced only when the next connection is made.

The guest's kernel would hand over a large write as packets of 64 KiB; a socketpair hands it over in pieces. So while
the host's queue is well filled, a piece that is not a whole packet waits in the buffer, and leaves it with the rest of
the packet, with the guest's end of file, or once the host has read. Otherwise the queue, which is charged by the piece,
would hold less than it does behind a real VMM.
"""

import select
import socket
from collections.abc import Callable
from time import monotonic

from ..engines import queues
from .guest import PACKET, shutdown
from .poller import Poller

CREDIT_UPDATE = 4096  # bytes: the guest is sent a credit update when it knows of less than this; csm/mod.rs
CLOSE_DEADLINE = 2.0  # seconds; csm/mod.rs
ROUNDS = 16  # packets in one direction before the other connections get their turn

IN, OUT, HUP, EDGE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLET
NEVER = float("inf")


class Connection:
    """An established connection between the sockets `host` and `guest`, which it owns and closes.

    `expires` is when it may be reaped (`time.monotonic`). `ended` is called once, after both sockets are closed.
    """

    def __init__(
        self,
        host: socket.socket,
        guest: socket.socket,
        name: str,
        poller: Poller,
        ended: "Callable[[Connection], None]",
        *,
        passes_half_closes: bool,
    ) -> None:
        self.name, self.expires = name, NEVER
        self._host, self._guest, self._poller, self._ended = host, guest, poller, ended
        self._passes_half_closes = passes_half_closes
        self._buffer = poller.buffer
        self._up: bytes | memoryview = b""  # read from the host, not yet taken by the guest
        self._down = bytearray()  # taken from the guest, not yet by the host's socket
        self._blocked = False  # the host's socket has refused some of `_down`
        self._credit, self._unreported = PACKET, 0  # bytes that the guest may send, and further ones it has to hear of
        self._host_silent = False  # the host sends no more
        self._guest_silent = False  # the guest sends no more
        self._guest_deaf = False  # the guest reads no more
        self._host_closed = False  # both directions are closed from the host's side
        self._done = False
        self._settle()

    def end(self) -> None:
        """Close both sides. What is still in the VMM's hands is lost."""
        if self._done:
            return
        self._done = True
        self._poller.forget(self._host.fileno())
        self._poller.forget(self._guest.fileno())
        self._host.close()
        self._close_guest()
        self._ended(self)

    def _close_guest(self) -> None:
        """Close the guest's side so that it reads an end of file: unread bytes would make it a reset (unix(7))."""
        shutdown(self._guest, socket.SHUT_RDWR)
        try:
            while self._guest.recv_into(self._buffer):
                pass
        except OSError:
            pass  # the guest itself closed with bytes unread
        self._guest.close()

    def _settle(self) -> None:
        """Watch for what can be acted upon, and nothing else: epoll reports the same HUP again and again."""
        if self._done:
            return
        for sock, mask, handler in (
            (self._host, self._host_events(), self._on_host),
            (self._guest, self._guest_events(), self._on_guest),
        ):
            if mask is None:
                self._poller.forget(sock.fileno())
            else:
                self._poller.watch(sock.fileno(), mask, handler)

    def _host_events(self) -> int | None:
        down = OUT if self._down else 0
        if self._host_silent:
            return down if down or not self._host_closed else None  # after a half-close HUP matters, the full close
        if self._up or self._guest_deaf:
            return down or None
        return down | IN

    def _guest_events(self) -> int | None:
        if self._host_closed:
            return OUT | EDGE  # an event for each read of the guest: unix_write_space() in net/unix/af_unix.c
        up = OUT if self._up else 0
        if self._guest_silent:
            return None if self._guest_deaf else up  # epoll adds HUP, the full close
        if not self._credit:
            return up or EDGE  # HUP still matters, once
        return up | IN

    def _on_host(self, events: int) -> None:
        try:
            if events & OUT and self._down:
                self._flush()
            if events & IN:
                self._pull_up()
            elif events & HUP and self._host_silent and not (self._host_closed or self._done):
                self._close_host()
        except BlockingIOError:
            pass
        except OSError:
            self.end()  # any other error ends the connection in connection.rs too
        self._settle()

    def _on_guest(self, events: int) -> None:
        try:
            if self._host_closed:
                return self._end_when_read()
            if events & OUT and self._up:
                self._push_up()
            if events & IN and not self._guest_silent:
                self._pull_down()
            elif events & HUP and hung_up(self._guest):
                self._on_hang_up()
        except BlockingIOError:
            pass
        except OSError:
            self.end()
        self._settle()

    def _pull_up(self) -> None:
        for _ in range(ROUNDS):
            if self._done or self._up or self._guest_deaf or self._host_silent:
                return
            count = self._host.recv_into(self._buffer)
            if not count:
                return self._end_of_host()
            self._up = self._buffer[:count]
            self._report_credit()  # each packet to the guest carries it
            self._push_up()

    def _push_up(self) -> None:
        try:
            self._up = bytes(self._up[self._guest.send(self._up) :])
        except BlockingIOError:
            self._up = bytes(self._up)
        except (BrokenPipeError, ConnectionResetError):
            self._up, self._guest_deaf = b"", True
            if self._guest_silent:
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
        self._unreported += count
        if PACKET - self._unreported < CREDIT_UPDATE:
            self._report_credit()
        if self._guest_silent and not self._down:
            self._pass_on_end_of_guest()

    def _report_credit(self) -> None:
        self._credit += self._unreported
        self._unreported = 0

    def _on_hang_up(self) -> None:
        if self._guest_silent:
            self._guest_closed()
        elif not (self._credit or queues(self._guest.fileno())[0]):
            self._end_of_guest()  # a close takes no credit

    def _end_of_guest(self) -> None:
        """End of file from the guest: its half-close, or its full close, which alone sets a deadline."""
        self._guest_silent = True
        if self._down and not self._blocked:
            self._flush()
        if self._done:
            return
        if hung_up(self._guest):
            self.expires = monotonic() + CLOSE_DEADLINE
            self._guest_closed()
        elif not self._down:
            self._pass_on_end_of_guest()

    def _guest_closed(self) -> None:
        self._up, self._guest_deaf = b"", True
        if not self._down:
            self.end()

    def _pass_on_end_of_guest(self) -> None:
        """What the host is shown once it has been given all that the guest sent."""
        if self._guest_deaf:
            self.end()
        elif self._passes_half_closes:
            shutdown(self._host, socket.SHUT_WR)

    def _end_of_host(self) -> None:
        """End of file from the host: a half-close, unless HUP follows. Not every VMM tells the two apart."""
        self._host_silent = True
        if not self._passes_half_closes:
            return self._close_host()
        if self._guest_silent:
            self.expires = monotonic() + CLOSE_DEADLINE  # nothing but the rest of `_down` is left to do
        shutdown(self._guest, socket.SHUT_WR)

    def _close_host(self) -> None:
        """Close both directions: LocalClosed in connection.rs."""
        self._host_closed = True
        self.expires = monotonic() + CLOSE_DEADLINE
        shutdown(self._guest, socket.SHUT_RDWR)
        self._end_when_read()

    def _end_when_read(self) -> None:
        # The guest's driver answers with a reset once nothing is left to read. The last byte of the count is given
        # back only after the event (sock_wfree() in net/core/sock.c).
        if queues(self._guest.fileno())[1] <= 1:
            self.end()


def hung_up(sock: socket.socket) -> bool:
    """Whether both directions of a Unix socket are closed: its peer has closed, or each side has half-closed."""
    return bool(_events(sock, 0) & select.POLLHUP)


def _writable(sock: socket.socket) -> bool:
    return bool(_events(sock, select.POLLOUT))


def _events(sock: socket.socket, mask: int) -> int:
    poll = select.poll()
    poll.register(sock, mask)
    return sum(events for _, events in poll.poll(0))
