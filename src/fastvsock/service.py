"""Accepts connections, and gives each a thread of its own in which it lives and dies alone.

One thread, whoever calls `step`, polls the listening sockets and a pipe, by which other threads wake it. Over the
limit it does not accept: the kernel's backlog is the queue, and a client there waits instead of failing. The limit is
lowered to what the descriptors are enough for. Should accept(2) fail for a shortage all the same, the service pauses
until a connection has ended or a second has passed; a socket with a connection that cannot be taken stays readable,
and poll(2) would come back at once, again and again.
"""

import fcntl
import os
import resource
import select
import socket
import struct
import termios
import threading
from collections.abc import Callable
from time import monotonic

from . import errors
from .listening import Listener
from .relaying import Relay, RelayResult

MAX_CONNECTIONS = 1023  # the VMM's own limit: Firecracker's vsock/unix/mod.rs
DESCRIPTORS = 8  # a connection's: two sockets, the relay's wake-up pipe, a pipe for each direction
SPARE = 32  # descriptors for everything else
SHORTAGE_PAUSE = 1.0  # seconds
STACK = 1 << 18  # bytes; the default of 8 MiB is address space that some containers count

# Keepalive finds a client that closed without a word from this side on: its kernel answers for it for a minute.
KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


def say(text: str) -> None:
    """One line on stderr, in one write, so that threads do not mix their lines."""
    try:
        os.write(2, f"fastvsock: {text}\n".encode(errors="backslashreplace"))
    except OSError:
        pass  # nobody listens, and there is no other place


class Connection:
    """One accepted connection. `name` says who is at its other end; counts are in bytes."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock, self.name = sock, name
        self.error: errors.FastvsockError | None = None
        self.on_cut: Callable[[], object] = lambda: None
        self.moved = 0, 0
        self._relay: Relay | None = None
        self._sockets: tuple[socket.socket, ...] = ()
        self._cut = False
        self._lock = threading.Lock()

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes moved up and down so far."""
        relay = self._relay
        return (relay.sent, relay.received) if relay else self.moved

    @property
    def pending(self) -> bool:
        """Whether bytes wait in its sockets, to be read here or by the peers."""
        try:
            return any(queued(sock, way) for sock in self._sockets for way in (termios.FIONREAD, termios.TIOCOUTQ))
        except (OSError, ValueError):
            return False  # closed meanwhile

    def run(self, relay: Relay, *sockets: socket.socket) -> RelayResult:
        """Run the connection's relay between `sockets`; `cut` ends it."""
        with self._lock:
            self._relay, self._sockets = relay, sockets
            if self._cut:
                relay.stop()
        try:
            return relay.run()
        finally:
            with self._lock:
                self.moved = relay.sent, relay.received
                self._relay = None
                relay.close()

    def cut(self) -> None:
        """End it now, from any thread."""
        with self._lock:
            self._cut = True
            if self._relay:
                self._relay.stop()
            for sock in {self.sock, *self._sockets}:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has ended by itself
        self.on_cut()


class Service:
    """Accepts on `listeners` and calls `serve` with each connection, in a thread of its own, `limit` at once at most.

    `serve` raises a `FastvsockError` for what failed. A connection that is not `welcome`, which is asked in that thread
    too, is closed. Counts: `taken` (welcome ones), `refused` (others), `ended` (of those taken), `failed` (of those
    ended).
    """

    def __init__(
        self,
        listeners: list[Listener],
        serve: Callable[[Connection], object],
        limit: int,
        welcome: Callable[[Connection], bool] | None = None,
    ) -> None:
        self.listeners, self.limit = listeners, limit
        self.open: set[Connection] = set()
        self.taken = self.refused = self.ended = self.failed = 0
        self.last_error: errors.FastvsockError | None = None
        self._serve, self._welcome = serve, welcome
        self._lock = threading.Lock()
        self._moved = 0, 0  # by connections that have ended
        self._woken, self._wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._paused_until = 0.0

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes moved up and down by all connections so far."""
        with self._lock:
            return _sum(self._moved, *(connection.progress for connection in self.open))

    def step(self, timeout: float) -> None:
        """Accept what has come; return after something has happened, or `timeout` seconds."""
        now = monotonic()
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        accepting = self.listeners if len(self.open) < self.limit and now >= self._paused_until else []
        for listener in accepting:
            poll.register(listener.sock, select.POLLIN)
        if self._paused_until > now:
            timeout = min(timeout, self._paused_until - now)
        ready = dict(poll.poll(None if timeout == float("inf") else max(timeout, 0) * 1000))
        if self._woken in ready:
            self._paused_until = 0.0
            os.read(self._woken, 4096)
        for listener in accepting:
            if listener.sock.fileno() in ready:
                self._accept(listener.sock)

    def wake(self) -> None:
        """Let `step` return, from any thread."""
        try:
            os.write(self._wakeup, b"\0")
        except BlockingIOError:
            pass  # full, and so readable

    def stop_accepting(self) -> None:
        """Listen no more; who waits in the backlog is turned away."""
        for listener in self.listeners:
            listener.close()
        self.listeners = []

    def connections(self) -> list[Connection]:
        """Those that are open now."""
        with self._lock:
            return list(self.open)

    def cut(self) -> None:
        """End all connections."""
        for connection in self.connections():
            connection.cut()

    def close(self) -> None:
        """Close what the service has opened; its connections have ended."""
        self.stop_accepting()
        os.close(self._woken)
        os.close(self._wakeup)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # another process was faster, or the client has given up
        except OSError as error:
            return self._pause(f"cannot accept a connection: {error.strerror}; waiting for another one to end")
        connection = Connection(sock, _prepare(sock, address))
        with self._lock:
            self.open.add(connection)
        try:
            _start(self._run, connection)
        except RuntimeError as error:
            self._pause(f"{connection.name}: {error}")
            self._end(connection, False)

    def _pause(self, sentence: str) -> None:
        say(sentence)
        self._paused_until = monotonic() + SHORTAGE_PAUSE

    def _run(self, connection: Connection) -> None:
        taken = False
        try:
            taken = self._welcome is None or self._welcome(connection)
            self._count(connection, taken)
            if taken:
                self._serve(connection)
        except errors.FastvsockError as error:
            self._fail(connection, error)
        except Exception as error:
            if os.environ.get("FASTVSOCK_DEBUG") == "1":
                raise
            self._fail(connection, errors.FastvsockError(f"unexpected {type(error).__name__}: {error}"))
        finally:
            self._end(connection, taken)

    def _count(self, connection: Connection, taken: bool) -> None:
        with self._lock:
            self.taken += taken
            self.refused += not taken
        if not taken:
            say(f"{connection.name}: closed, for it is none of the command's own connections")
        self.wake()

    def _fail(self, connection: Connection, error: errors.FastvsockError) -> None:
        say(f"{connection.name}: {error}")
        with self._lock:
            self.last_error = error
            self.failed += 1

    def _end(self, connection: Connection, taken: bool) -> None:
        connection.sock.close()
        with self._lock:
            self.open.remove(connection)
            self._moved = _sum(self._moved, connection.moved)
            self.ended += taken
        self.wake()


def _sum(*counts: tuple[int, int]) -> tuple[int, int]:
    up, down = (sum(way) for way in zip(*counts, strict=True))
    return up, down


def queued(sock: socket.socket, way: int) -> int:
    """Bytes in a socket's queue: FIONREAD, not read here yet; TIOCOUTQ, not read (TCP: not acknowledged) over there."""
    return int(struct.unpack("i", fcntl.ioctl(sock, way, bytes(4)))[0])


def _prepare(sock: socket.socket, address: object) -> str:
    """Set a new connection's options and tell who is at its other end."""
    sock.setblocking(True)
    if sock.family == socket.AF_UNIX or not isinstance(address, tuple):
        return "a connection"
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in KEEP_ALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, seconds)
    return f"{address[0]} port {address[1]}"


def _start(run: Callable[[Connection], None], connection: Connection) -> None:
    before = threading.stack_size(STACK)
    try:
        threading.Thread(target=run, args=(connection,), daemon=True).start()
    finally:
        threading.stack_size(before)


def raise_descriptor_limit() -> tuple[int, int]:
    """Raise the soft limit of descriptors to the hard one, and return both as they were."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


def affordable(limit: int) -> int:
    """`limit`, or as many connections as the descriptors are enough for, said on stderr where that is less."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return limit
    enough_for = max((descriptors - len(os.listdir("/proc/self/fd")) - SPARE) // DESCRIPTORS, 1)
    if enough_for < limit:
        say(
            f"the limit of {descriptors} descriptors (ulimit -Hn) is enough for {enough_for} connections at once, "
            f"not {limit}: more will wait"
        )
    return min(limit, enough_for)
