"""Delivers a guest's connections to a Unix datagram socket of the host: one connection is one message.

A service manager's NOTIFY_SOCKET is such a socket, and a guest's systemd reports ``READY=1`` as a stream to a port of
the host (sd_notify(3), vsock). Half a message would be a wrong one, so a message is what the guest sent before its end
of file, and nothing is delivered of a connection that breaks. But some VMMs hide a guest's half-close; then there is no
end of file while the guest waits for ours. So a message also ends when nothing has come for a while, and this is
logged.
"""

import errno
import socket

from .. import errors
from ..host.addresses import unix_name
from ..host.socket_file import SocketFile
from ..stdio import log
from .connection import Connection
from .hanging_up import hang_up
from .terms import Terms

LARGEST = 1 << 18  # bytes; more than net.core.wmem_max, the kernel's limit for a datagram
PIECE = 1 << 16  # bytes
MESSAGE_ENDS = 5.0  # seconds without a byte, once there are some, where there is no --idle-timeout


def connect_unix(path: str, kind: int, timeout: float) -> socket.socket:
    """A socket of the type `kind` connected to the Unix socket `path`; @NAME is an abstract one. Raises `OSError`."""
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.settimeout(timeout)
        if path.startswith("@"):
            sock.connect(unix_name(path))
        else:
            with SocketFile(path) as file:
                sock.connect(file.address)
    except BaseException:
        sock.close()
        raise
    return sock


def deliver(connection: Connection, target: socket.socket, path: str, terms: Terms) -> None:
    """Send what the guest sends on `connection` as one message to `target`, then hang up. Raises `RelayError`."""
    connection.abandon_relay()
    try:
        message = _read_message(connection, terms.idle_timeout)
        if connection.is_cut:
            raise errors.RelayError(f"the service ended first: {len(message)} bytes were not delivered", 0)
        if message:
            target.send(message)
    except errors.RelayError:
        raise
    except OSError as error:
        raise errors.StreamError(f"cannot deliver to {path}: {error.strerror or error}", error.errno or 0) from None
    finally:
        hang_up(connection.sock, terms.stalled)
    connection.moved = 0, len(message)


def _read_message(connection: Connection, idle_timeout: float | None) -> bytes:
    sock, message = connection.sock, b""
    sock.settimeout(idle_timeout)
    while True:
        try:
            piece = sock.recv(PIECE)
        except TimeoutError:
            return _cut_short(connection, message, sock.gettimeout())
        except OSError as error:
            raise errors.ConnectionBrokenError(
                f"the connection to the guest broke ({error.strerror}): its {len(message)} bytes were not delivered",
                error.errno or 0,
            ) from None
        if not piece:
            return message
        message += piece
        if len(message) > LARGEST:
            raise errors.StreamError(f"a message of more than {LARGEST} bytes was not delivered", errno.EMSGSIZE)
        sock.settimeout(idle_timeout or MESSAGE_ENDS)


def _cut_short(connection: Connection, message: bytes, silence: float | None) -> bytes:
    if not message:
        raise errors.IdleTimeoutError(f"the guest sent nothing for {silence:g} s", errno.ETIMEDOUT)
    log(
        f"{connection.name}: the guest sent {len(message)} bytes, then nothing for {silence:g} s: delivered as they are"
    )
    return message
