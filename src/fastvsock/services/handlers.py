"""Relays between connections: a host's clients to the guest's port (`proxy`), the guest's to the host's (`listen`).

A connection has one relay, and so two pumps and two threads. The socket towards the VMM is the relay's socket, with all
that relaying.py says of its end. The near end is a socket, or a child's stdin and stdout, with one peer for both
directions. That peer may be gone for good with its last bytes still in our socket, so the relay is a `PeerRelay`.

Half-closes are passed on both ways: the near end gets the guest's right away, and the guest the near end's after
`linger`, since most VMMs take it for a close.
"""

import errno
import os
import signal
import socket
from contextlib import ExitStack, closing
from functools import partial
from time import monotonic

from .. import errors, handshake
from ..channels.client import Channel
from ..channels.dialling import DialRelay, dial
from ..engines import has_closed
from ..host.processes import Child, spawn
from ..host.sock_diag import is_closed
from ..host.tcp import set_options
from ..relaying import GONE, Relay, RelayResult, end_output
from ..stdio import log
from .connection import Connection
from .datagrams import connect_unix, deliver
from .hanging_up import hang_up
from .limits import retry_on_shortage
from .peer_relay import PeerRelay
from .terms import Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CUT_OFF = (
    "the guest sent nothing after the connection was half-closed at the end of its input: if an answer is missing, the "
    "VMM has dropped it (--linger SECONDS waits longer for an answer, --linger inf without limit)"
)
KILL_AFTER = 5.0  # seconds from the SIGTERM for a child whose connection has failed to SIGKILL


def relay_socket(connection: Connection, guest: socket.socket, near: socket.socket, terms: Terms) -> None:
    """Relay between two connected sockets and close both. Raises `RelayError`."""
    near.setblocking(False)  # it is ours alone, and a socket that does not block needs no poll(2) before each call
    stalled = False
    with closing(near), closing(guest):
        fd = near.fileno()
        has_left = partial(has_closed, fd) if near.family == socket.AF_UNIX else partial(is_closed, near)
        relay = _relay(connection, guest, fd, fd, terms, has_left=has_left)
        result = connection.run(relay, guest, near)
        if result.cut_off and not has_left():
            log(f"{connection.name}: {CUT_OFF}")
        if result.ended != "stopped" and not isinstance(result.error, errors.IdleTimeoutError):
            stalled = hang_up(guest, terms.stalled) | hang_up(near, terms.stalled)
    _check(result, terms.stalled if stalled else None)


def _relay(
    connection: Connection,
    guest: socket.socket,
    rfd: int,
    wfd: int,
    terms: Terms,
    *,
    has_left: "Callable[[], bool] | None" = None,
    end_output: "Callable[[], object] | None" = None,
) -> PeerRelay:
    make = partial(
        PeerRelay,
        guest,
        rfd,
        wfd,
        linger=terms.linger,
        idle_timeout=terms.idle_timeout,
        engine=terms.engine,
        end_output=end_output,
        start=connection.run_in_reserved_thread,
    )
    relay = retry_on_shortage(make, terms.timeout)
    relay.has_left = has_left
    return relay


def _check(result: RelayResult, stalled: float | None = None) -> None:
    """Raise what a relay failed with, unless the near end's peer left early: that is the peer's own business."""
    error = result.error
    if isinstance(error, errors.StreamError) and error.errno in (*GONE, errno.ETIMEDOUT):
        error = None
    if error is None and stalled is not None:
        error = errors.RelayError(
            f"closed with data unread: the other side was closed, and nothing was read for {stalled:g} s",
            errno.ETIMEDOUT,
        )
    if error is not None:
        raise error


def _turn_away(connection: Connection, terms: Terms) -> None:
    """Close a connection that cannot be relayed."""
    connection.abandon_relay()
    hang_up(connection.sock, terms.stalled)


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
            _turn_away(connection, terms)
            raise
        relay_socket(connection, socket.socket(fileno=found.detach()), connection.sock, terms)


class ToAddress:
    """Serves `Service`: each connection goes to an address inside the guest, by the agent there.

    `addresses` are what the listeners' addresses lead to, as `socket.getsockname` has them.
    """

    def __init__(
        self, uds: str, agent_port: int, addresses: "Mapping[str | tuple[str, int], str]", terms: Terms
    ) -> None:
        self._uds, self._agent_port, self._addresses, self._terms = uds, agent_port, addresses, terms

    def __call__(self, connection: Connection) -> None:
        near = connection.sock
        try:
            channel = retry_on_shortage(partial(self._dial, self._addresses[_key(near)]), self._terms.timeout)
        except (errors.FastvsockError, OSError) as error:
            _turn_away(connection, self._terms)
            if isinstance(error, errors.FastvsockError):
                error.exit_code = 1  # those of `exec` leave room for its command's: here none is run
            raise
        near.setblocking(False)
        with closing(near), closing(channel):
            relay = DialRelay(channel, near, partial(is_closed, near), self._terms.idle_timeout)
            result = connection.run(relay, near)
            if result.ended != "stopped" and not isinstance(result.error, errors.IdleTimeoutError):
                hang_up(near, self._terms.stalled)
        _check(result)

    def _dial(self, address: str) -> Channel:
        terms = self._terms
        return dial(
            self._uds, address, port=self._agent_port, timeout=terms.timeout, wait=terms.wait, engine=terms.engine
        )


def _key(sock: socket.socket) -> str | tuple[str, int]:
    """Which listener a connection came by: IPv6 has more than host and port."""
    name = sock.getsockname()
    return (name[0], name[1]) if isinstance(name, tuple) else os.fsdecode(name)


class ToSocket:
    """Serves `Service`: each of the guest's connections goes to a TCP or Unix socket of the host.

    A Unix socket may be one for datagrams (`datagrams` says so, or it turns out): then a connection is one message.
    """

    def __init__(self, address: tuple[str, int] | str, terms: Terms, *, datagrams: bool = False) -> None:
        self._address, self._terms, self._datagrams = address, terms, datagrams

    def __call__(self, connection: Connection) -> None:
        where = self._address if isinstance(self._address, str) else "{} port {}".format(*self._address)
        try:
            near = retry_on_shortage(self._connect, self._terms.timeout)
        except OSError as error:
            _turn_away(connection, self._terms)
            raise errors.FastvsockError(f"cannot connect to {where}: {error.strerror or error}") from None
        if near.type == socket.SOCK_DGRAM:
            with near:
                deliver(connection, near, where, self._terms)
        else:
            relay_socket(connection, connection.sock, near, self._terms)

    def _connect(self) -> socket.socket:
        timeout = self._terms.timeout
        if isinstance(self._address, str):
            near = self._connect_unix(self._address, timeout)
        else:
            near = socket.create_connection(self._address, timeout)
            set_options(near)
        near.settimeout(None if near.type == socket.SOCK_STREAM else timeout)
        return near

    def _connect_unix(self, path: str, timeout: float) -> socket.socket:
        if not self._datagrams:
            try:
                return connect_unix(path, socket.SOCK_STREAM, timeout)
            except OSError as error:
                # An abstract name is looked up together with the socket's type: net/unix/af_unix.c.
                if error.errno != errno.EPROTOTYPE and not path.startswith("@"):
                    raise
        return connect_unix(path, socket.SOCK_DGRAM, timeout)


class ToCommand:
    """Serves `Service`: each of the guest's connections gets a child, whose stdin and stdout it is.

    A child may go on after the guest has closed; its connection counts as open until it ends.
    """

    def __init__(self, words: list[str], terms: Terms, limit: tuple[int, int]) -> None:
        self._words, self._terms, self._limit = words, terms, limit
        self.status = 0  # the exit status of the last child that ended

    def __call__(self, connection: Connection) -> None:
        with ExitStack() as ours:
            try:
                started = retry_on_shortage(partial(self._spawn, connection, ours), self._terms.timeout)
            except OSError as error:
                _turn_away(connection, self._terms)
                if isinstance(error, errors.FastvsockError):
                    raise
                raise errors.CommandError(self._words[0], error) from None
            if started:
                result = self._relay(connection, ours, *started)
                _check(result)

    def _relay(
        self, connection: Connection, ours: ExitStack, child: Child, from_child: int, to_child: int
    ) -> RelayResult:
        failed = True
        try:
            ends = from_child, to_child
            relay = _relay(connection, connection.sock, *ends, self._terms, end_output=partial(end_output, to_child))
            result = connection.run(relay, connection.sock)
            if result.cut_off:
                log(f"{connection.name}: {CUT_OFF}")
            failed = isinstance(result.error, errors.IdleTimeoutError)
        finally:
            ours.close()
            if failed:
                child.send(signal.SIGTERM)
            hang_up(connection.sock, self._terms.stalled)
            if failed:
                child.end(monotonic() + KILL_AFTER)
            self.status = child.wait()
        return result

    def _spawn(self, connection: Connection, ours: ExitStack) -> tuple[Child, int, int] | None:
        """Start a child; None where the connection was cut meanwhile."""
        with ExitStack() as theirs, ExitStack() as kept:
            its_in, to_child = _pipe(theirs, kept)
            from_child, its_out = _pipe(kept, theirs)
            child = connection.start_child(lambda: spawn(self._words, stdin=its_in, stdout=its_out, limit=self._limit))
            if child is None:
                return None
            ours.push(kept.pop_all())
        return child, from_child, to_child


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """A pipe, whose two ends are closed with `reader` and `writer`."""
    ends = os.pipe2(os.O_CLOEXEC)
    for fd, closing_it in zip(ends, (reader, writer), strict=True):
        closing_it.callback(os.close, fd)
    return ends


class ToStdio:
    """Serves `Service`: one connection of the guest is this process' stdin and stdout, as for `fastvsock connect`."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    def __call__(self, connection: Connection) -> None:
        terms = self._terms
        relay = Relay(
            connection.sock,
            0,
            1,
            linger=terms.linger,
            idle_timeout=terms.idle_timeout,
            engine=terms.engine,
            end_output=partial(end_output, 1),
            start=connection.run_in_reserved_thread,
        )
        result = connection.run(relay, connection.sock)
        if result.cut_off:
            log(f"{connection.name}: {CUT_OFF}")
        if result.error is not None:
            raise result.error
