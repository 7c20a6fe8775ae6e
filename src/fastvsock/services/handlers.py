"""Relays between connections: a host's clients to the guest's port (`proxy`), the guest's to the host's (`listen`).

A connection has one relay, and so two pumps and two threads. The socket towards the VMM is the relay's socket, with all
that relaying.py says of its end; the near end is a socket, or a child's stdin and stdout, and one peer holds both its
ways. That peer may be gone for good with its last words still in our socket, so it is a `PeerRelay`.

Sockets are closed with care. Closing a TCP socket with unread input sends a reset, and a reset takes away what the peer
has not read yet (RFC 2525, 2.17); a Unix socket's peer, a VMM perhaps, gets ECONNRESET instead of an end of file. So
`hang_up` says "that was all" with a half-close, and reads on until the peer closes as well, or has got everything and
been silent for a while.
"""

import errno
import os
import signal
import socket
from contextlib import ExitStack, closing
from functools import partial
from time import monotonic

from .. import errors, handshake
from ..engines import queues
from ..host.processes import Child, spawn
from ..host.sock_diag import is_closed
from ..relaying import GONE, PIECE, Relay, RelayResult
from .connection import Connection
from .limits import retry_on_shortage
from .peer_relay import PeerRelay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SILENCE, FAREWELL = 5.0, 30.0  # seconds without and with a word from a peer, which has got everything: as nginx's


class Terms:
    """How connections are made and relayed. Times are in seconds."""

    __slots__ = ("engine", "linger", "timeout", "wait")

    def __init__(
        self, timeout: float = 10.0, wait: float = 0.0, linger: float | None = None, engine: str | None = None
    ) -> None:
        self.timeout, self.wait, self.linger, self.engine = timeout, wait, linger, engine


def hang_up(near: socket.socket) -> None:
    """Close a connection so that its peer can read all that was sent to it, and then the end of file."""
    try:
        near.shutdown(socket.SHUT_WR)
        near.settimeout(SILENCE)
        since = monotonic()
        while monotonic() < since + FAREWELL or queues(near.fileno())[1]:
            try:
                if not near.recv(PIECE):
                    return
            except TimeoutError:
                if not queues(near.fileno())[1]:
                    return
    except OSError:
        pass  # a peer that is gone needs no farewell
    finally:
        near.close()


def relay_socket(connection: Connection, guest: socket.socket, near: socket.socket, terms: Terms) -> None:
    """Relay between two connected sockets and close both. Raises `RelayError`."""
    near.setblocking(False)  # it is ours alone, and what does not block needs no poll(2) before each call
    with closing(near), closing(guest):
        fd = near.fileno()
        relay = _relay(connection, guest, fd, fd, terms, partial(is_closed, near))
        result = connection.run(relay, guest, near)
        if result.ended != "stopped":
            hang_up(guest)
            hang_up(near)
    _check(result)


def _relay(
    connection: Connection,
    guest: socket.socket,
    rfd: int,
    wfd: int,
    terms: Terms,
    has_left: "Callable[[], bool] | None" = None,
) -> PeerRelay:
    make = partial(PeerRelay, guest, rfd, wfd, linger=terms.linger, engine=terms.engine, start=connection.lend)
    relay = retry_on_shortage(make, terms.timeout)
    relay.has_left = has_left
    return relay


def _check(result: RelayResult) -> None:
    """Raise what a relay failed with, unless it is that the near end's peer left in a hurry: that is its own affair."""
    error = result.error
    if error is not None and not (isinstance(error, errors.StreamError) and error.errno in (*GONE, errno.ETIMEDOUT)):
        raise error


def _turn_away(connection: Connection) -> None:
    """Close a connection that cannot be relayed."""
    connection.give_up()
    hang_up(connection.sock)


class ToGuest:
    """Serves `Service`: each connection goes to `port` of the guest behind the Unix socket `uds`."""

    def __init__(self, uds: str, port: int, terms: Terms) -> None:
        self._uds, self._port, self._terms = uds, port, terms

    def __call__(self, connection: Connection) -> None:
        terms = self._terms
        try:
            found = retry_on_shortage(
                lambda: handshake.connect(self._uds, self._port, terms.timeout, terms.wait), terms.timeout
            )
        except errors.FastvsockError:
            _turn_away(connection)
            raise
        relay_socket(connection, socket.socket(fileno=found.detach()), connection.sock, terms)


class ToSocket:
    """Serves `Service`: each of the guest's connections goes to a TCP or Unix socket of the host."""

    def __init__(self, address: tuple[str, int] | str, terms: Terms) -> None:
        self._address, self._terms = address, terms

    def __call__(self, connection: Connection) -> None:
        try:
            near = retry_on_shortage(self._connect, self._terms.timeout)
        except OSError as error:
            _turn_away(connection)
            where = self._address if isinstance(self._address, str) else "{} port {}".format(*self._address)
            raise errors.FastvsockError(f"cannot connect to {where}: {error.strerror or error}") from None
        relay_socket(connection, connection.sock, near, self._terms)

    def _connect(self) -> socket.socket:
        if not isinstance(self._address, str):
            near = socket.create_connection(self._address, self._terms.timeout)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            near = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            near.settimeout(self._terms.timeout)
            near.connect(self._address)
        near.settimeout(None)
        return near


class ToCommand:
    """Serves `Service`: each of the guest's connections gets a child, whose stdin and stdout it is.

    A child may work on after the guest has closed; its connection counts as open until it ends.
    """

    def __init__(self, words: list[str], terms: Terms, limit: tuple[int, int]) -> None:
        self._words, self._terms, self._limit = words, terms, limit
        self.status = 0  # the exit status of the last child that ended

    def __call__(self, connection: Connection) -> None:
        with ExitStack() as ours:
            try:
                child, from_child, to_child = retry_on_shortage(
                    partial(self._spawn, connection, ours), self._terms.timeout
                )
            except OSError as error:
                _turn_away(connection)
                if isinstance(error, errors.FastvsockError):
                    raise
                raise errors.CommandError(self._words[0], error) from None
            try:
                relay = _relay(connection, connection.sock, from_child, to_child, self._terms)
                result = connection.run(relay, connection.sock)
            except BaseException:
                child.send(signal.SIGTERM)
                raise
            finally:
                ours.close()
                hang_up(connection.sock)
                self.status = child.wait()
        _check(result)

    def _spawn(self, connection: Connection, ours: ExitStack) -> tuple[Child, int, int]:
        with ExitStack() as theirs, ExitStack() as kept:
            its_in, to_child = _pipe(theirs, kept)
            from_child, its_out = _pipe(kept, theirs)
            child = spawn(self._words, stdin=its_in, stdout=its_out, limit=self._limit)
            connection.on_cut = partial(child.send, signal.SIGTERM)
            ours.push(kept.pop_all())
        return child, from_child, to_child


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """A pipe, whose ends are closed with those two."""
    ends = os.pipe2(os.O_CLOEXEC)
    for fd, closing_it in zip(ends, (reader, writer), strict=True):
        closing_it.callback(os.close, fd)
    return ends


class ToStdio:
    """Serves `Service`: one connection of the guest's is this process' stdin and stdout, as `fastvsock connect`'s."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    def __call__(self, connection: Connection) -> None:
        terms = self._terms
        relay = Relay(connection.sock, 0, 1, linger=terms.linger, engine=terms.engine, start=connection.lend)
        result = connection.run(relay, connection.sock)
        if result.error is not None:
            raise result.error
