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
import fcntl
import itertools
import os
import select
import shlex
import signal
import socket
import subprocess
import termios
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from sys import byteorder
from time import monotonic
from types import TracebackType
from typing import NamedTuple

from ..errors import EmulatorError as EmulatorError
from ..errors import shown
from ..handshake import MAX_PORT
from ..host.socket_file import SocketFile

MAX_CONNECTIONS = 1023  # unix/mod.rs
FIRST_HOST_PORT = 1 << 30  # muxer.rs
LINE_MIN, LINE_MAX = 10, 32  # bytes of a CONNECT line; muxer.rs
PACKET = 65536  # bytes in a packet, and in the VMM's buffer; csm/mod.rs
CREDIT_UPDATE = 4096  # bytes of known credit under which the guest is told of more; csm/mod.rs
CLOSE_DEADLINE = 2.0  # seconds; csm/mod.rs
GUEST_BUFFER = 106496  # SO_SNDBUF towards the guest; then 262,144 bytes wait for it to read, as in a Linux guest
BACKLOG = 4096
ROUNDS = 16  # packets in one direction before the other connections get their turn, or looks at all before a child does
PATIENCE = 2.0  # seconds that services have to end after their connections
BACK = "FASTVSOCK_GUEST_BACK"

IN, OUT, HUP, EDGE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLET
NEVER = float("inf")


# The guest's services


@dataclass(frozen=True)
class Exec:
    """A service that runs a child for each connection: `argv`, whose descriptors 0 and 1 are the guest's end.

    The child's exit is the guest's full close. A child that wants to reach a port of the host connects to the Unix
    socket ``$FASTVSOCK_GUEST_BACK_PORT``, as the VMM does for a guest that connects to CID 2.
    """

    argv: tuple[str, ...]

    @classmethod
    def parse(cls, command: str) -> "Exec":
        """From a command line; no shell runs it. Raises `ValueError` where quotes do not match or nothing is there."""
        argv = tuple(shlex.split(command))
        if not argv:
            raise ValueError("no command")
        return cls(argv)


@dataclass(frozen=True)
class Tcp:
    """A service that joins the guest's end to a TCP port, as socat in a guest does; its end of file is a full close."""

    host: str
    port: int

    def __call__(self, guest: socket.socket) -> None:
        with socket.create_connection((self.host, self.port)) as tcp:
            up = threading.Thread(target=_forward, args=(guest, tcp), daemon=True)
            up.start()
            _forward(tcp, guest)
            for end in (guest, tcp):
                _shut(end, socket.SHUT_RDWR)
            up.join()


Service = Callable[[socket.socket], object] | Exec
"""A callable gets the guest's end, a blocking stream socket, in a thread of its own; its return is the full close."""


def echo(guest: socket.socket) -> None:
    """Send back what comes, until end of file."""
    buffer = memoryview(bytearray(PACKET))
    while count := guest.recv_into(buffer):
        guest.sendall(buffer[:count])


def discard(guest: socket.socket) -> None:
    """Read until end of file, then answer the count of bytes and a newline.

    After a half-close of the host the answer goes nowhere, since the VMM has shut both directions.
    """
    buffer, total = bytearray(PACKET), 0
    while count := guest.recv_into(buffer):
        total += count
    guest.sendall(b"%d\n" % total)


def chargen(guest: socket.socket) -> None:
    """Send bytes until the peer closes: the one at offset i is ``(i ^ (i >> 8) ^ (i >> 16)) & 0xff``. Reads nothing."""
    for third in itertools.cycle(range(256)):
        guest.sendall(_pattern(third))


@cache
def _pattern(third: int) -> bytes:
    """The 64 KiB of chargen that begin at offset `third` << 16."""
    if third:
        return _pattern(0).translate(bytes(byte ^ third for byte in range(256)))
    return bytes((i ^ i >> 8) & 0xFF for i in range(PACKET))


DEFAULT_SERVICES: dict[int, Service] = {7: echo, 9: discard, 19: chargen}


def _forward(source: socket.socket, target: socket.socket) -> None:
    """Copy until end of file, then half-close; an error at either end is an end of file too."""
    buffer = memoryview(bytearray(PACKET))
    try:
        while count := source.recv_into(buffer):
            target.sendall(buffer[:count])
    except OSError:
        pass
    _shut(target, socket.SHUT_WR)


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # its peer has closed


# The handshake as muxer.rs reads it


def take_line(data: bytes) -> bytes | None:
    """The part of `data` that the VMM takes for the CONNECT line, or None while `data` ends before the line does.

    The VMM looks for the newline from the tenth byte on, and gives up looking after 32 (read_local_stream_port).
    """
    newline = data.find(b"\n", LINE_MIN - 1, LINE_MAX)
    if newline >= 0:
        return data[: newline + 1]
    return data[:LINE_MAX] if len(data) >= LINE_MAX else None


def asked_port(line: bytes) -> int:
    """The guest port that a CONNECT line asks for. Raises `ValueError` where muxer.rs refuses the line.

    Two words count, however they are spaced: "connect" in any letter case, and what Rust parses as a u32.
    """
    words = line.decode().split()
    if len(words) < 2 or words[0].lower() != "connect":
        raise ValueError("not a request")
    digits = words[1].removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or int(digits) > MAX_PORT:
        raise ValueError("not a port")
    return int(digits)


class _Poller:
    """epoll, with a handler for each descriptor; only changes reach the kernel.

    `buffer` is a packet's room, any handler's for as long as it runs.
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(PACKET))
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, Callable[[int], None]]] = {}

    def watch(self, fd: int, mask: int | None, handler: Callable[[int], None]) -> None:
        """Call `handler` with the events of `mask` (epoll adds HUP and ERR to any). None stops watching."""
        known = self._watched.get(fd)
        if mask is None:
            if known:
                del self._watched[fd]
                self._epoll.unregister(fd)
            return
        if known is None:
            self._epoll.register(fd, mask)
        elif known[0] != mask:
            self._epoll.modify(fd, mask)
        self._watched[fd] = mask, handler

    def wait(self, block: bool) -> list[tuple[int, int]]:
        """Descriptors with their events; blocks until there are some, or not at all."""
        return self._epoll.poll(None if block else 0)

    def dispatch(self, fd: int, events: int) -> None:
        """Call the handler, unless an earlier one of the same round has put an end to the descriptor."""
        watched = self._watched.get(fd)
        if watched:
            watched[1](events)

    def close(self) -> None:
        self._epoll.close()


class _Connection:
    """One established connection: the VMM's two sockets, and the rules of csm/connection.rs."""

    def __init__(
        self,
        host: socket.socket,
        guest: socket.socket,
        name: str,
        poller: _Poller,
        ended: "Callable[[_Connection], None]",
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
        _shut(self._guest, socket.SHUT_RDWR)
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
            elif events & HUP and _hung_up(self._guest):
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
        elif not (self._credit or _queued(self._guest, termios.FIONREAD)):
            self._end_of_guest()  # to close takes no credit

    def _end_of_guest(self) -> None:
        self._silent = True
        if self._down and not self._blocked:
            self._flush()
        if self._done:
            return
        if _hung_up(self._guest):
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
        _shut(self._guest, socket.SHUT_RDWR)
        self._end_when_read()

    def _end_when_read(self) -> None:
        # The guest's driver answers with a reset once nothing is left to read. The last byte of the count is given
        # back only after the event (sock_wfree() in net/core/sock.c).
        if _queued(self._guest, termios.TIOCOUTQ) <= 1:
            self.end()


def _queued(sock: socket.socket, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(sock.fileno(), request, bytes(4)), byteorder)


def _hung_up(sock: socket.socket) -> bool:
    return bool(_events(sock, 0) & select.POLLHUP)


def _writable(sock: socket.socket) -> bool:
    return bool(_events(sock, select.POLLOUT))


def _events(sock: socket.socket, mask: int) -> int:
    poll = select.poll()
    poll.register(sock, mask)
    return sum(events for _, events in poll.poll(0))


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
        self._poller = _Poller()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.watch(self._stop, IN, self._on_stop)
        self._stopped = self._closed = self._full = False
        self._listener: socket.socket | None = None
        self._file: SocketFile | None = None
        self._requests: dict[int, _Request] = {}
        self._connections: set[_Connection] = set()
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
            raise EmulatorError(f"{shown(self.uds)}: cannot listen there: {reason}", error.errno or 0) from None
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
        self._connections.add(_Connection(host, guest, name, self._poller, self._ended))

    def _ended(self, connection: _Connection) -> None:
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
