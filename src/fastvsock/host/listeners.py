"""Listening sockets: opened here, or passed by systemd.

With port 0 the kernel chooses a free one. The mode of a socket file decides who may connect; socket_file.py makes and
removes it.
"""

import os
import socket

from .. import errors
from ..host.socket_file import SocketFile
from .addresses import Address, check_reach

BACKLOG = 4096  # the kernel's own cap, net.core.somaxconn, since Linux 5.4
FIRST_PASSED = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
OWNER_ONLY = 0o600


class Listener:
    """A listening socket that does not block, with its address; `close` also removes a socket file that it made."""

    def __init__(self, sock: socket.socket, file: "tuple[str, SocketFile] | None" = None) -> None:
        self.sock = sock
        self._file = file and file[1]
        self.address = address_of(sock) if file is None else Address(path=file[0])

    def close(self) -> None:
        """Stop listening."""
        self.sock.close()
        self.remove_file()

    def remove_file(self) -> None:
        """Remove the socket file, unless another process has put its own in its place."""
        if self._file:
            self._file.remove()
            self._file.close()


def address_of(sock: socket.socket) -> Address:
    """The address that a listening socket has."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Address(path=os.fsdecode(name) or "(unnamed)")
    return Address(name[0], name[1])


def open_listener(address: Address, mode: int = OWNER_ONLY) -> Listener:
    """Listen on `address`; a socket file gets `mode`. Raises `FastvsockError`."""
    try:
        return _open_unix(address.path, mode) if address.path else _open_tcp(address)
    except OSError as error:
        if isinstance(error, errors.FastvsockError):
            raise
        raise errors.FastvsockError(f"cannot listen on {address}: {error.strerror or error}") from None


def _open_tcp(address: Address) -> Listener:
    sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free: socket(7)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.setblocking(False)
        sock.listen(BACKLOG)
        return Listener(sock)
    except BaseException:
        sock.close()
        raise


def _open_unix(path: str, mode: int) -> Listener:
    file = SocketFile(path)
    try:
        return Listener(file.listen(BACKLOG, mode), (path, file))
    except BaseException:
        file.close()
        raise


def passed(environment: "os._Environ[str]", *, remote: bool = False) -> list[Listener]:
    """The listening sockets that systemd (or a program with its protocol) passed to this process: sd_listen_fds(3).

    Removes the variables, so that a child does not use them. Raises `FastvsockError`.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    return [_adopt(fd, remote) for fd in range(FIRST_PASSED, FIRST_PASSED + int(count))]


def _adopt(fd: int, remote: bool) -> Listener:
    try:
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise errors.FastvsockError(f"descriptor {fd} of LISTEN_FDS is not a socket: {error.strerror}") from None
    if not listens or sock.type != socket.SOCK_STREAM:
        raise errors.FastvsockError(
            f"descriptor {fd} of LISTEN_FDS is not a listening stream socket: set Accept=no in the socket unit"
        )
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise errors.FastvsockError(f"descriptor {fd} of LISTEN_FDS is neither a TCP nor a Unix socket")
    sock.set_inheritable(False)
    sock.setblocking(False)  # systemd itself only polls it: sd_listen_fds(3), NonBlocking= in systemd.service(5)
    listener = Listener(sock)
    if sock.family != socket.AF_UNIX:
        check_reach(listener.address.host, str(listener.address), remote)
    return listener
