"""The VMM's side of a hybrid vsock, and a guest behind it, without a VM: for demos, tests and development.

One thread is the VMM, as Firecracker's muxer is (src/vmm/src/devices/virtio/vsock: unix/muxer.rs, csm/connection.rs),
and it keeps that code's rules, the unpleasant ones included. The guest's end of each connection is one half of a
socketpair, held by a service: a child process, or a callable in a thread of its own. What the guest does shows on the
other half: end of file is its half-close, end of file with POLLHUP its full close.

Up (host to guest), the VMM reads only what it can pass on, so that a guest which does not read stops the host. Down,
it takes packets of up to 64 KiB as far as the guest's credit goes. What the host's socket does not take waits in a
buffer of 64 KiB. A connection that ended at one side with bytes still under way gets a deadline of 2 s, and nobody
looks at deadlines but the next new connection: it reaps what is overdue, bytes and all.

The guest's kernel would hand over a large write as packets of 64 KiB; a socketpair gives it away in pieces. So a
piece that is no whole packet goes into the buffer while the host's queue is well filled, and leaves it with the
packet's rest, with the guest's end of file, or once the host has read. Otherwise the queue, which is charged by the
piece, would hold less than it does behind a real VMM.
"""

import errno
import itertools
import os
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from types import TracebackType
from typing import NamedTuple

from ..errors import EmulatorError, printable
from ..host.socket_file import SocketFile
from .guest import DEFAULT_SERVICES, Exec, Service
from .muxer import IN, ROUNDS, Connection
from .poller import Poller
from .request_line import LINE_MAX, asked_port, take_line

MAX_CONNECTIONS = 1023  # unix/mod.rs
FIRST_HOST_PORT = 1 << 30  # muxer.rs
GUEST_BUFFER = 106496  # SO_SNDBUF towards the guest; then 262,144 bytes wait for it to read, as in a Linux guest
BACKLOG = 4096
PATIENCE = 2.0  # seconds that services have to end after their connections
BACK = "FASTVSOCK_GUEST_BACK"


class _Request(NamedTuple):
    """An accepted connection whose CONNECT line has not come, and the two halves of what it may become."""

    host: socket.socket
    guest: socket.socket
    end: socket.socket


class Emulator:
    """A VMM's side of a hybrid vsock at the path `uds`, with `services` as the guest's listeners.

    `services` maps guest ports to what serves them (`DEFAULT_SERVICES` unless given); all other ports refuse. `log`
    is called with a sentence for each connection that begins, ends or is refused.

        with Emulator("/tmp/v.sock", {7: echo, 22: Tcp("127.0.0.1", 22)}):
            fastvsock.connect("/tmp/v.sock", 7)

    `start` and `close`, or the ``with`` block, run it in a thread; `listen`, `run` and `close` in the caller's own.
    It needs up to four descriptors a connection. When there are no more it accepts nobody until a connection ends:
    connect(2) still succeeds then and no answer comes, as with a VMM.
    """

    def __init__(
        self,
        uds: str | os.PathLike[str],
        services: Mapping[int, Service] | None = None,
        log: Callable[[str], object] | None = None,
    ) -> None:
        self.uds = os.fspath(uds)
        self._back = os.path.abspath(self.uds)
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
        self._due: deque[tuple[Exec, socket.socket, str]] = deque()  # guests that have accepted, and want their child
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._threads: set[threading.Thread] = set()
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
        """Create the socket at `uds`. Raises `EmulatorError` where something is there already, but for a stale socket.

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

    def run(self) -> None:
        """Serve until `stop`."""
        rounds = 0
        while not self._stopped:
            ready = self._poller.wait(block=not self._due)
            rounds = rounds + 1 if self._due else 0
            with self._lock:
                for fd, events in ready:
                    self._poller.dispatch(fd, events)
                if self._due and (not ready or rounds >= ROUNDS):
                    self._start(*self._due.popleft())
                    rounds = 0

    def stop(self) -> None:
        """Make `run` return soon. From any thread, or from a signal handler."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """End all connections and services, and remove the socket if it is still ours.

        Children get SIGTERM, and SIGKILL after 2 s. Threads of services see their connection closed, and are waited
        for as long.
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
            _close(*request)
        _close(*(end for _, end, _ in self._due))
        for connection in list(self._connections):
            connection.end()
        self._end_services()
        self._poller.close()
        os.close(self._stop)

    def connect_to_host(self, port: int) -> socket.socket:
        """The guest's end of a new connection from the guest to `port` of the host: the Unix socket ``<uds>_<port>``.

        Raises `ConnectionResetError` where nobody listens there, or where the VMM has no connection left.
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
            raise ConnectionResetError(f"{self.uds}_{port}: connection reset: nobody listens there") from None

    def _on_stop(self, events: int) -> None:
        self._stopped = True

    def _on_listener(self, events: int) -> None:
        assert self._listener is not None
        pair: tuple[()] | tuple[socket.socket, socket.socket] = ()
        try:
            pair = _pair()  # already, since a VMM that can accept has all the descriptors that it needs
            host, _ = self._listener.accept()
        except BlockingIOError:
            return _close(*pair)
        except OSError as error:
            _close(*pair)
            self._log(f"cannot accept a connection: {error.strerror}")
            self._full = True
            return self._poller.watch(self._listener.fileno(), None, self._on_listener)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._log(f"a connection refused: there are {MAX_CONNECTIONS}")
            return _close(host, *pair)
        host.setblocking(False)
        request = self._requests[host.fileno()] = _Request(host, *pair)
        self._poller.watch(host.fileno(), IN, partial(self._on_request, request))

    def _on_request(self, request: _Request, events: int) -> None:
        """The first bytes are there, and the CONNECT line must be whole among them."""
        host = request.host
        ahead = b""
        try:
            ahead = host.recv(LINE_MAX, socket.MSG_PEEK)
            line = take_line(ahead)
            host.recv(len(ahead if line is None else line))
        except BlockingIOError:
            return
        except OSError:
            line = None
        self._poller.watch(host.fileno(), None, self._on_stop)
        del self._requests[host.fileno()]
        try:
            port = asked_port(line or b"")
        except ValueError:
            return self._refuse(request, f"a connection refused: no CONNECT line in one piece: {ahead!r}")
        self._connect(request, port)

    def _connect(self, request: _Request, port: int) -> None:
        host_port = next(self._host_ports)
        name = f"{host_port} to port {port}"
        service = self._services.get(port)
        if not self._has_room() or service is None:
            reason = "no room" if service else "nothing listens there"
            return self._refuse(request, f"connection {name} refused: {reason}")
        try:
            self._serve(service, request.end, name)
        except RuntimeError as error:
            return self._refuse(request, f"connection {name} refused: {error}")
        try:
            request.host.send(b"OK %d\n" % host_port)
        except OSError:
            pass  # it has left, and the connection will see that
        self._add(request.host, request.guest, name)

    def _refuse(self, request: _Request, sentence: str) -> None:
        self._log(sentence)
        _close(*request)
        self._accept_again()

    def _has_room(self) -> bool:
        """Whether one more connection may be added. To ask is what reaps those that are overdue (add_connection)."""
        now = monotonic()
        for connection in [connection for connection in self._connections if connection.expires < now]:
            self._log(f"connection {connection.name} reaped, with what was still under way")
            connection.end()
        return len(self._connections) < MAX_CONNECTIONS

    def _add(self, host: socket.socket, guest: socket.socket, name: str) -> None:
        self._log(f"connection {name}")
        self._connections.add(Connection(host, guest, name, self._poller, self._ended))

    def _ended(self, connection: Connection) -> None:
        self._log(f"connection {connection.name} ended")
        self._connections.discard(connection)
        self._accept_again()

    def _accept_again(self) -> None:
        if self._full and self._listener:
            self._full = False
            self._poller.watch(self._listener.fileno(), IN, self._on_listener)

    def _serve(self, service: Service, end: socket.socket, name: str) -> None:
        """Hand the guest's end to its service. It is closed when this raises `RuntimeError`, for want of a thread."""
        if isinstance(service, Exec):
            return self._due.append((service, end, name))
        try:
            thread = threading.Thread(target=self._call, args=(service, end), name=name, daemon=True)
            thread.start()
            self._threads.add(thread)
        except BaseException:
            end.close()
            raise

    def _start(self, service: Exec, end: socket.socket, name: str) -> None:
        """Start a service's child, which takes as long as the machine needs to run it: nobody's answer waits for that.

        The guest has accepted already, so where there is no child it closes.
        """
        with end:
            try:
                self._spawn(service, end)
            except OSError as error:
                self._log(f"connection {name}: cannot start {service.argv[0]}: {error.strerror or error}")

    def _call(self, service: Callable[[socket.socket], object], end: socket.socket) -> None:
        try:
            with end:
                service(end)
        except OSError as error:
            self._log(f"{threading.current_thread().name}: {error}")
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
                self._accept_again()

    def _spawn(self, service: Exec, end: socket.socket) -> None:
        child = subprocess.Popen(
            service.argv,
            stdin=end.fileno(),
            stdout=end.fileno(),
            env={**os.environ, BACK: self._back},
            start_new_session=True,  # a terminal's SIGINT is the emulator's to hand on
        )
        try:
            pidfd = os.pidfd_open(child.pid)
        except OSError:
            child.kill()
            child.wait()
            raise
        self._children[pidfd] = child
        self._poller.watch(pidfd, IN, partial(self._on_exit, pidfd))

    def _on_exit(self, pidfd: int, events: int) -> None:
        self._poller.watch(pidfd, None, self._on_stop)
        self._children.pop(pidfd).wait()
        os.close(pidfd)
        self._accept_again()

    def _end_services(self) -> None:
        deadline = monotonic() + PATIENCE
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in self._children.values():
                if child.poll() is None:
                    os.killpg(child.pid, number)
            for child in self._children.values():
                try:
                    child.wait(max(0.0, deadline - monotonic()) if number == signal.SIGTERM else None)
                except subprocess.TimeoutExpired:
                    continue
        for pidfd in self._children:
            os.close(pidfd)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))


def _close(*sockets: socket.socket) -> None:
    for sock in sockets:
        sock.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    """The VMM's half and the guest's half of a connection."""
    guest, end = socket.socketpair()
    guest.setblocking(False)
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, GUEST_BUFFER)
    return guest, end
