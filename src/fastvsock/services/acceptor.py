"""Accepts connections, and gives each a thread of its own in which it lives and dies alone.

One thread, whoever calls `step`, polls the listening sockets and a pipe, by which other threads wake it. Over the
limit it does not accept: the kernel's backlog is the queue, and a client there waits instead of failing. The limit is
lowered to what the descriptors are enough for.

Should something be short all the same, a connection waits. Where accept(2) fails, the service pauses until a connection
has ended or a second has passed; a socket with a connection that cannot be taken stays readable, and poll(2) would come
back at once, again and again. Where there is no thread for it, it is kept and started later.
"""

import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from .. import errors, stdio
from ..engines import _copy  # noqa: F401 (once descriptors are short, the engine to fall back to could not be loaded)
from ..host.listeners import BACKLOG, Listener
from ..stdio import log
from .connection import Connection
from .limits import SHORTAGE_PAUSE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Doorman(Protocol):
        """Whoever knows which connections are welcome."""

        def meet(self, connection: "Connection") -> object:
            """Look at one right when it is accepted, in the accepting thread."""

        def refusal(self, connection: "Connection") -> str:
            """Why it is not welcome, or nothing, in the connection's own thread."""


LONGEST_STEP = 3600.0  # seconds; poll(2) takes 24 days at most

# Keepalive finds a client that closed without a word from this side on: its kernel answers for it for a minute.
KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


class Service:
    """Accepts on `listeners` and calls `serve` with each connection, in a thread of its own, `limit` at once at most.

    `serve` raises a `FastvsockError` for what failed. A connection that the `doorman` refuses is closed. Counts:
    `taken` (welcome ones), `refused` (others), `ended` (of those taken), `failed` (of those ended), `lost` (those of
    which something was dropped unheard).
    """

    def __init__(
        self,
        listeners: list[Listener],
        serve: Callable[[Connection], object],
        limit: int,
        doorman: "Doorman | None" = None,
    ) -> None:
        self.listeners, self.limit = listeners, limit
        self.open: set[Connection] = set()
        self.taken = self.refused = self.ended = self.failed = self.lost = 0
        self.last_error: errors.FastvsockError | None = None
        self._serve, self._doorman = serve, doorman
        self._lock = threading.Lock()
        self._moved = 0, 0  # by connections that have ended
        self._waiting: deque[Connection] = deque()  # accepted, and open, but without a thread
        self._woken, self._wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._paused_until = 0.0

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes moved up and down by all connections so far."""
        with self._lock:
            return _sum(self._moved, *(connection.progress for connection in self.open))

    def step(self, timeout: float) -> None:
        """Accept what has come; return after something has happened, or `timeout` seconds."""
        self._start()
        now = monotonic()
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        room = 0 if self._waiting or now < self._paused_until else self.limit - len(self.open)
        accepting = self.listeners if room > 0 else []
        for listener in accepting:
            poll.register(listener.sock, select.POLLIN)
        if self._paused_until > now:
            timeout = min(timeout, self._paused_until - now)
        ready = dict(poll.poll(max(min(timeout, LONGEST_STEP), 0) * 1000))
        if self._woken in ready:
            self._paused_until = 0.0
            os.read(self._woken, 4096)
        for listener in accepting:
            if room > 0 and listener.sock.fileno() in ready:
                room -= self._accept(listener.sock)

    def wake(self) -> None:
        """Let `step` return, from any thread."""
        try:
            os.write(self._wakeup, b"\0")
        except BlockingIOError:
            pass  # full, and so readable

    def stop_accepting(self) -> None:
        """Listen no more; who waits in the backlog is turned away."""
        for listener in self.listeners:
            listener.sock.close()
        for listener in self.listeners:
            listener.close()
        self.listeners = []

    def last_call(self) -> None:
        """Take all that waits in the backlogs, though it be over the limit: then it waits here. Listen no more."""
        for listener in self.listeners:
            for _ in range(BACKLOG):  # so that one who connects again and again does not keep it up
                if not self._accept(listener.sock):
                    break
        self.stop_accepting()
        if self._paused_until > monotonic():
            self.lost += 1
            log("connections that waited to be accepted were turned away")

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

    def _accept(self, listener: socket.socket) -> bool:
        """Take one connection; whether there was one."""
        try:
            sock, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False  # another process was faster, or the client has given up
        except OSError as error:
            self._pause(f"cannot accept a connection: {error.strerror}; waiting for another one to end")
            return False
        connection = Connection(sock, _prepare(sock, address))
        if self._doorman:
            self._doorman.meet(connection)
        with self._lock:
            self.open.add(connection)
        self._waiting.append(connection)
        self._start()
        return True

    def _start(self) -> None:
        """Start a thread for each connection that waits for one, as far as limit and threads go."""
        while self._waiting and len(self.open) - len(self._waiting) < self.limit:
            if monotonic() < self._paused_until:
                return
            try:
                self._waiting[0].start(self._run)
            except (RuntimeError, MemoryError) as error:
                return self._pause(f"cannot serve a connection yet: {error}; waiting for another one to end")
            self._waiting.popleft()

    def _pause(self, sentence: str) -> None:
        log(sentence)
        self._paused_until = monotonic() + SHORTAGE_PAUSE

    def _run(self, connection: Connection) -> None:
        taken = False
        try:
            refusal = self._doorman.refusal(connection) if self._doorman else ""
            taken = not refusal
            self._count(connection, refusal)
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

    def _count(self, connection: Connection, refusal: str) -> None:
        with self._lock:
            self.taken += not refusal
            self.refused += bool(refusal)
        if refusal:
            log(f"{connection.name}: {refusal}")
        self.wake()

    def _fail(self, connection: Connection, error: errors.FastvsockError) -> None:
        log(f"{connection.name}: {stdio.message_and_status(error, hints=True)[0]}")
        with self._lock:
            self.last_error = error
            self.failed += 1

    def _end(self, connection: Connection, taken: bool) -> None:
        connection.sock.close()
        with self._lock:
            self.open.remove(connection)
            self._moved = _sum(self._moved, connection.moved)
            self.ended += taken
            self.lost += connection.lost
        self.wake()


def _sum(*counts: tuple[int, int]) -> tuple[int, int]:
    up, down = (sum(way) for way in zip(*counts, strict=True))
    return up, down


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
