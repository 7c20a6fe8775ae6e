"""The emulated VMM: it listens on the UDS, reads CONNECT lines, and keeps the connections.

One thread is the VMM, as in Firecracker's src/vmm/src/devices/virtio/vsock/unix/muxer.rs, whose limits hold here too.
The sockets that a connection needs are made before it is accepted, so a shortage of descriptors stops accept(2) and
never leaves a connection half made. What happens to bytes: connection.py. Who serves them: launcher.py and guest.py.
"""

import errno
import itertools
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import monotonic
from types import TracebackType

from ..errors import SUN_PATH_MAX, EmulatorError, printable
from ..host.socket_file import SocketFile
from .connection import IN, Connection
from .guest import DEFAULT_SERVICES, Service, Unix
from .launcher import Launcher
from .poller import Poller
from .request_line import LONGEST
from .vmm import VMMS

MAX_CONNECTIONS = 1023  # unix/mod.rs
FIRST_HOST_PORT = 1 << 30  # muxer.rs
# SO_SNDBUF towards the guest. 262,144 bytes wait for it to read, as in a Linux guest, where they come in packets of
# 64 KiB; smaller pieces fill this queue sooner, since it is charged by the piece.
GUEST_BUFFER = 106496
BACKLOG = 4096
LONGEST_SUFFIX = len("_4294967295")  # behind the UDS's path, for a port of the host


@dataclass
class _Request:
    """An accepted connection whose CONNECT line is not complete, and the two halves of what it may become."""

    host: socket.socket
    guest: socket.socket
    end: socket.socket
    line: bytes = b""


class Emulator:
    """A VMM's side of a hybrid vsock at the path `uds`, with `services` as the guest's listeners.

    `services` maps guest ports to what serves them (`DEFAULT_SERVICES` unless given); all other ports refuse. `log`
    is called with a sentence for each connection that begins, ends or is refused, and for a path that is too long for a
    VMM. `vmm` is the VMM whose rules hold: ``firecracker``, or ``cloud-hypervisor`` (53.0), which passes half-closes on
    and accepts a CONNECT line in pieces. Raises `ValueError` for any other name.

        with Emulator("/tmp/v.sock", {7: echo, 22: Tcp("127.0.0.1", 22)}):
            fastvsock.connect("/tmp/v.sock", 7)

    `start` and `close`, or the ``with`` block, run it in a thread of its own; `listen`, `run` and `close` in the
    caller's. It needs up to four descriptors for each connection. When there are no more, it accepts nothing until a
    connection ends: connect(2) succeeds and no answer comes, as with a real VMM.
    """

    def __init__(
        self,
        uds: str | os.PathLike[str],
        services: Mapping[int, Service] | None = None,
        log: Callable[[str], object] | None = None,
        vmm: str = "firecracker",
    ) -> None:
        if vmm not in VMMS:
            raise ValueError(f"unknown VMM {vmm!r}: use {' or '.join(VMMS)}")
        self.uds = os.fspath(uds)
        self._vmm = VMMS[vmm]
        self._services = dict(DEFAULT_SERVICES if services is None else services)
        self._log = log or (lambda sentence: None)
        self._lock = threading.RLock()  # between the thread that runs and those that call
        self._poller = Poller()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.watch(self._stop, IN, self._on_stop)
        self._stopped = self._closed = self._full = False
        self._listener: socket.socket | None = None
        self._file: SocketFile | None = None
        self._requests: dict[int, _Request] = {}
        self._connections: set[Connection] = set()
        self._host_ports = itertools.count(FIRST_HOST_PORT)
        self._launcher = Launcher(os.path.abspath(self.uds), self._poller, self._lock, self._accept_again, self._log)
        self._runner: threading.Thread | None = None

    def __enter__(self) -> "Emulator":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Listen, and serve in a thread until `close`. Raises `EmulatorError`, after which nothing is left open."""
        try:
            self.listen()
        except BaseException:
            self.close()
            raise
        self._runner = threading.Thread(target=self.run, name=f"emulator of {self.uds}", daemon=True)
        self._runner.start()

    def listen(self) -> None:
        """Create the socket at `uds`. A stale socket is replaced; anything else there raises `EmulatorError`.

        Of several emulators that find the same stale socket one replaces it.
        """
        if not self.uds:
            raise EmulatorError("the path of the UDS is empty: give the path of a socket to create", errno.ENOENT)
        try:
            self._file = SocketFile(self.uds)
            self._listener = self._file.listen(BACKLOG)
        except OSError as error:
            reason = error.strerror or str(error)
            raise EmulatorError(f"{printable(self.uds)}: cannot listen there: {reason}", error.errno or 0) from None
        self._poller.watch(self._listener.fileno(), IN, self._on_listener)
        if warning := path_warning(self.uds):
            self._log(warning)

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopped:
            ready = self._poller.wait(block=not self._launcher.is_due)
            with self._lock:
                for fd, events in ready:
                    self._poller.dispatch(fd, events)
                self._launcher.start_child(idle=not ready)

    def stop(self) -> None:
        """Make `run` return soon. From any thread, or from a signal handler."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """End all connections and services, and remove the socket if it is still the one that was created.

        Children get SIGTERM, and SIGKILL after 2 s. The threads of services see the end of their connection, and get
        the same time to return.
        """
        if self._closed:
            return
        self._closed = True
        self.stop()
        if self._runner:
            self._runner.join()
        if self._file:
            self._file.remove()
            self._file.close()
        if self._listener:
            self._listener.close()
        for request in self._requests.values():
            _close(request.host, request.guest, request.end)
        for connection in list(self._connections):
            connection.end()
        self._launcher.close()
        self._poller.close()
        os.close(self._stop)

    def connect_to_host(self, port: int) -> socket.socket:
        """The guest's end of a new connection from the guest to `port` of the host: the Unix socket ``<uds>_<port>``.

        Raises `ConnectionResetError` where nothing listens there, or where the VMM has no connection left.
        """
        host = socket.socket(socket.AF_UNIX)
        try:
            with SocketFile(f"{self.uds}_{port}") as there:
                host.connect(there.address)
            with self._lock:
                host.setblocking(False)
                guest, end = _pair()
                if not self._has_room():
                    _close(guest, end)
                    raise ConnectionResetError
                self._add(host, guest, f"from the guest to port {port} of the host")
                return end
        except OSError:
            host.close()
            reason = f"{self.uds}_{port}: connection reset: nothing listens there, or the VMM has no connection left"
            raise ConnectionResetError(errno.ECONNRESET, reason) from None

    def _on_stop(self, events: int) -> None:
        self._stopped = True

    def _on_listener(self, events: int) -> None:
        assert self._listener is not None
        pair: tuple[()] | tuple[socket.socket, socket.socket] = ()
        try:
            pair = _pair()  # before accept(2): a VMM that accepts has all the descriptors that it needs
            host, _ = self._listener.accept()
        except BlockingIOError:
            return _close(*pair)
        except OSError as error:
            _close(*pair)
            self._log(f"cannot accept a connection: {error.strerror}")
            self._full = True
            return self._poller.forget(self._listener.fileno())
        if len(self._connections) >= MAX_CONNECTIONS:
            self._log(f"a connection refused: there are {MAX_CONNECTIONS} already")
            return _close(host, *pair)
        host.setblocking(False)
        request = self._requests[host.fileno()] = _Request(host, *pair)
        self._poller.watch(host.fileno(), IN, partial(self._on_request, request))

    def _on_request(self, request: _Request, events: int) -> None:
        """Read as much as belongs to the CONNECT line, and act upon it once it is complete."""
        host = request.host
        try:
            ahead = host.recv(LONGEST - len(request.line), socket.MSG_PEEK)
            length = self._vmm.request_line(request.line + ahead) if ahead else len(request.line)
            request.line += host.recv(len(ahead) if length is None else length - len(request.line))
        except BlockingIOError:
            return
        except OSError:
            length = len(request.line)  # the host has reset the connection
        if length is None:
            return
        self._poller.forget(host.fileno())
        del self._requests[host.fileno()]
        try:
            port = self._vmm.requested_port(request.line)
        except ValueError:
            return self._refuse(request, f"a connection refused: not a CONNECT line: {request.line!r}")
        self._connect(request, port)

    def _connect(self, request: _Request, port: int) -> None:
        host_port = next(self._host_ports)
        name = f"{host_port} to port {port}"
        service = self._services.get(port)
        if not self._has_room() or service is None:
            reason = "no room" if service else "nothing listens there"
            return self._refuse(request, f"connection {name} refused: {reason}")
        guest = request.guest
        try:
            if isinstance(service, Unix):
                guest = _reach(service)
                _close(request.guest, request.end)
            else:
                self._launcher.serve(service, request.end, name)
        except (RuntimeError, OSError) as error:
            return self._refuse(request, f"connection {name} refused: {error}")
        try:
            request.host.send(b"OK %d\n" % host_port)
        except OSError:
            pass  # the host has left, as the connection will find out
        self._add(request.host, guest, name)

    def _refuse(self, request: _Request, sentence: str) -> None:
        self._log(sentence)
        _close(request.host, request.guest, request.end)
        self._accept_again()

    def _has_room(self) -> bool:
        """Whether one more connection may be added. Reaps those that are overdue, as add_connection() in muxer.rs."""
        now = monotonic()
        for connection in [connection for connection in self._connections if connection.expires < now]:
            self._log(f"connection {connection.name} reaped, with what was still under way")
            connection.end()
        return len(self._connections) < MAX_CONNECTIONS

    def _add(self, host: socket.socket, guest: socket.socket, name: str) -> None:
        self._log(f"connection {name}")
        passes = self._vmm.passes_half_closes
        connection = Connection(host, guest, name, self._poller, self._ended, passes_half_closes=passes)
        self._connections.add(connection)

    def _ended(self, connection: Connection) -> None:
        self._log(f"connection {connection.name} ended")
        self._connections.discard(connection)
        self._accept_again()

    def _accept_again(self) -> None:
        if self._full and self._listener:
            self._full = False
            self._poller.watch(self._listener.fileno(), IN, self._on_listener)


def path_warning(uds: str) -> str:
    """What works with the emulator only, since the path of its socket is long; empty for a path that is short enough.

    The emulator gets around the 107 bytes of a Unix socket's address (unix(7), sun_path). Other programs do not, and
    a VMM needs room for ``_PORT`` behind the path, for the guest's connections to the host.
    """
    size, room = len(os.fsencode(uds)), SUN_PATH_MAX - len(os.fsencode(uds)) - len("_")
    if size > SUN_PATH_MAX:
        return (
            f"warning: the path of the UDS has {size} bytes, and a Unix socket address {SUN_PATH_MAX}: a VMM cannot "
            "listen there, and most programs cannot connect to it; use a shorter path"
        )
    if size + LONGEST_SUFFIX > SUN_PATH_MAX:
        ports = f"ports above {10**room - 1}" if room > 0 else "any port"
        return (
            f"warning: the path of the UDS has {size} bytes, and a Unix socket address {SUN_PATH_MAX}: with _PORT "
            f"behind it there is no room for {ports}, to which a guest could not connect; use a path of at most "
            f"{SUN_PATH_MAX - LONGEST_SUFFIX} bytes"
        )
    return ""


def _close(*sockets: socket.socket) -> None:
    for sock in sockets:
        sock.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    """The VMM's half and the guest's half of a connection."""
    guest, end = socket.socketpair()
    guest.setblocking(False)
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, GUEST_BUFFER)
    return guest, end


def _reach(service: Unix) -> socket.socket:
    """The VMM's half of a connection whose other half another process has. Raises `OSError`."""
    guest = service.connect()
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, GUEST_BUFFER)
    return guest
