"""`fastvsock agent --forward PORT=HOST:PORT`: a vsock port of the guest, relayed to a TCP port inside it.

It needs no channel and no client of ours: what connects is whatever the host runs, ssh for instance. The relay's socket
is the TCP one, so what ends a relay is the server's end: the vsock connection is closed then, whole, because a VMM may
hide a half-close from the host. The host's end is half-closed towards the server, once nothing moves any more. A TCP
server sends the same when it closes as when it half-closes; the kernel knows which, if the server is in the same guest.
"""

import errno
import socket
from select import POLLIN, poll
from time import monotonic, sleep

from .. import errors
from ..host.sock_diag import is_closed
from ..relaying import Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

WAIT = 10.0  # seconds in which a server may begin to listen
PAUSE = 0.1  # seconds between two attempts
TIMEOUT = 10.0  # seconds for an attempt
LOOK_FIRST, LOOK_LAST = 10, 1000  # milliseconds between two looks at a server that sends no more, doubling
NOT_YET = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)


class ServerRelay(Relay):
    """A relay whose socket is a TCP server's."""

    def _await_close(self) -> None:
        assert isinstance(self._sock, socket.socket)
        poller = poll()
        poller.register(self._sock.fileno(), 0)  # POLLHUP
        poller.register(self._down_woken, POLLIN)
        pause = LOOK_FIRST
        while not is_closed(self._sock) and not poller.poll(pause):
            pause = min(2 * pause, LOOK_LAST)


class Forward:
    """Relays connections to a TCP address, which may have yet to be listened on."""

    def __init__(self, address: tuple[str, int], engine: str | None = None) -> None:
        self._address, self._engine = address, engine

    def serve(self, connection: "_socket.socket") -> None:
        """Relay one connection to its end, and close it. Raises `FastvsockError`."""
        with socket.socket(fileno=connection.detach()) as sock:
            try:
                near = self._connect()
            except OSError as error:
                where = "{} port {}".format(*self._address)
                raise errors.FastvsockError(f"cannot connect to {where}: {error.strerror or error}") from None
            with near:
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setblocking(False)
                relay = ServerRelay(near, sock.fileno(), sock.fileno(), engine=self._engine)
                try:
                    relay.run()
                finally:
                    relay.close()

    def _connect(self) -> socket.socket:
        give_up = monotonic() + WAIT
        while True:
            try:
                return socket.create_connection(self._address, TIMEOUT)
            except OSError as error:
                if error.errno not in NOT_YET or monotonic() >= give_up:
                    raise
            sleep(PAUSE)
