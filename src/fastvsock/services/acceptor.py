"""Accepts connections, and gives each a thread of its own; a failure in one never affects another.

One thread, the one that calls `step`, polls the listening sockets and a pipe by which other threads wake it. Over the
limit either it does not accept, so that clients wait in the kernel's backlog, or it accepts and closes: a VMM waits in
connect(2) with its only thread while a backlog is full, and all its guest's connections stall. The limit is lowered to
what the descriptors are enough for.

If something runs short all the same, connections wait. Where accept(2) fails, the service pauses until a connection has
ended or a second has passed; a listening socket whose connection cannot be accepted stays readable, and poll(2) would
return at once again and again. Where no thread can be started for a connection, it is kept and started later.
"""

import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from .. import errors, stdio
from ..engines import _copy  # noqa: F401 (with no descriptor left, the engine to fall back to could not be loaded)
from ..host.listeners import BACKLOG, Listener
from ..host.tcp import set_options
from ..stdio import log
from .connection import Connection
from .limits import SHORTAGE_PAUSE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class AccessPolicy(Protocol):
        """Decides which connections are served. Both methods return why one is not, or an empty string."""

        def on_accept(self, connection: "Connection") -> str:
            """Called right after accept(2), in the accepting thread; must be quick. Empty: perhaps."""

        def reject_reason(self, connection: "Connection") -> str:
            """Called in the connection's own thread."""


LONGEST_STEP = 3600.0  # seconds; poll(2) takes 24 days at most
LOG_EVERY = 1.0  # seconds between two lines about rejected connections


class Rejections:
    """Logs why connections are rejected, one line every `LOG_EVERY` seconds: any user can cause thousands of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._quiet_until = 0.0
        self._unlogged = 0

    def log(self, name: str, reason: str) -> None:
        """Log one, and how many went without a line before it."""
        with self._lock:
            if monotonic() < self._quiet_until:
                self._unlogged += 1
                return
            self.flush()
            self._quiet_until = monotonic() + LOG_EVERY
            log(f"{name}: {reason}")

    def flush(self) -> None:
        """Log how many went without a line."""
        unlogged, self._unlogged = self._unlogged, 0
        if unlogged:
            log(f"{unlogged} more connection{'s were' if unlogged > 1 else ' was'} rejected")


class Service:
    """Accepts on `listeners` and calls `serve` with each connection, in a thread of its own, at most `limit` at a time.

    `serve` raises a `FastvsockError` for what failed. A connection that the `policy` rejects is closed. With `queue`,
    connections over the limit wait in the backlog; else they are rejected too. Counts: `taken` (not rejected),
    `rejected`, `unidentified` (of those rejected: their owner could not be determined), `ended` (of those taken),
    `failed` (of those ended).
    """

    def __init__(
        self,
        listeners: list[Listener],
        serve: Callable[[Connection], object],
        limit: int,
        policy: "AccessPolicy | None" = None,
        *,
        queue: bool = True,
    ) -> None:
        self.listeners, self.limit = listeners, limit
        self.open: set[Connection] = set()
        self.taken = self.rejected = self.unidentified = self.ended = self.failed = 0
        self.last_error: errors.FastvsockError | None = None
        self._serve, self._policy, self._queue = serve, policy, queue
        self._lock = threading.Lock()
        self._rejections = Rejections()
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
        """Accept the connections that have come; return after something has happened, or `timeout` seconds."""
        self._start()
        now = monotonic()
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        paused = now < self._paused_until
        accepting = self.listeners if not paused and (self._has_room() or not self._queue) else []
        for listener in accepting:
            poll.register(listener.sock, select.POLLIN)
        if paused:
            timeout = min(timeout, self._paused_until - now)
        ready = dict(poll.poll(max(min(timeout, LONGEST_STEP), 0) * 1000))
        if self._woken in ready:
            self._paused_until = 0.0
            os.read(self._woken, 4096)
        for listener in accepting:
            if listener.sock.fileno() in ready and (self._has_room() or not self._queue):
                self._accept(listener.sock)

    def wake(self) -> None:
        """Let `step` return, from any thread."""
        try:
            os.write(self._wakeup, b"\0")
        except BlockingIOError:
            pass  # full, and so readable

    def stop_accepting(self) -> None:
        """Stop listening; clients that wait in the backlog are turned away."""
        for listener in self.listeners:
            listener.sock.close()
        for listener in self.listeners:
            listener.close()
        self.listeners = []

    def last_call(self) -> None:
        """Accept all that waits in the backlogs, over the limit too: those wait here. Then stop listening."""
        for listener in self.listeners:
            for _ in range(BACKLOG):  # a bound, in case a client connects again and again
                if not self._accept(listener.sock, over_limit=True):
                    break
        self.stop_accepting()
        if self._paused_until > monotonic():
            log("connections that waited to be accepted were turned away: their owners are unknown")

    def connections(self) -> list[Connection]:
        """The connections that are open now."""
        with self._lock:
            return list(self.open)

    def cut(self) -> bool:
        """End all connections; return whether any of them was not a stranger's."""
        connections = self.connections()
        is_ours = any(connection.admitted for connection in connections) or any(
            connection.admitted is None and not self._reject_reason(connection) for connection in connections
        )
        for connection in connections:
            connection.cut()
        return is_ours

    def end_children(self, patience: float) -> None:
        """Kill the children of connections that were cut and do not end by themselves within `patience` seconds."""
        deadline = monotonic() + patience
        for child in [connection.child for connection in self.connections()]:
            if child:
                child.end(deadline)

    def flush_log(self) -> None:
        """Log how many connections were rejected without a line of their own."""
        self._rejections.flush()

    def _has_room(self) -> bool:
        return not self._waiting and len(self.open) < self.limit

    def _accept(self, listener: socket.socket, *, over_limit: bool = False) -> bool:
        """Accept one connection; return whether there was one."""
        try:
            sock, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False  # another process was faster, or the client has given up
        except OSError as error:
            self._pause(f"cannot accept a connection: {error.strerror}; waiting for another one to end")
            return False
        connection = Connection(sock, _prepare(sock, address))
        reason = self._policy.on_accept(connection) if self._policy else ""
        if not reason and not over_limit and not self._has_room():
            reason = f"rejected: all {self.limit} connections are in use (--max-connections)"
        if reason:
            self._reject(connection, reason)
            sock.close()
            return True
        with self._lock:
            self.open.add(connection)
        self._waiting.append(connection)
        self._start()
        return True

    def _start(self) -> None:
        """Start a thread for each connection that waits for one, as far as the limit and the threads allow."""
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
        try:
            reason = self._reject_reason(connection)
            if reason:
                self._reject(connection, reason)
            else:
                self._admit(connection)
                self._serve(connection)
        except errors.FastvsockError as error:
            self._fail(connection, error)
        except Exception as error:
            if os.environ.get("FASTVSOCK_DEBUG") == "1":
                raise
            self._fail(connection, errors.FastvsockError(f"unexpected {type(error).__name__}: {error}"))
        finally:
            self._end(connection)

    def _reject_reason(self, connection: Connection) -> str:
        return self._policy.reject_reason(connection) if self._policy else ""

    def _admit(self, connection: Connection) -> None:
        with self._lock:
            connection.admitted = True
            self.taken += 1
        self.wake()

    def _reject(self, connection: Connection, reason: str) -> None:
        with self._lock:
            connection.admitted = False
            self.rejected += 1
            self.unidentified += connection.unidentified
        self._rejections.log(connection.name, reason)

    def _fail(self, connection: Connection, error: errors.FastvsockError) -> None:
        log(f"{connection.name}: {stdio.message_and_status(error, hints=True)[0]}")
        with self._lock:
            self.last_error = error
            self.failed += 1

    def _end(self, connection: Connection) -> None:
        connection.sock.close()
        with self._lock:
            self.open.remove(connection)
            self._moved = _sum(self._moved, connection.moved)
            self.ended += bool(connection.admitted)
        self.wake()


def _sum(*counts: tuple[int, int]) -> tuple[int, int]:
    up, down = (sum(way) for way in zip(*counts, strict=True))
    return up, down


def _prepare(sock: socket.socket, address: object) -> str:
    """Set a new connection's options; return who is at its other end, in words."""
    sock.setblocking(True)
    if sock.family == socket.AF_UNIX or not isinstance(address, tuple):
        return "a connection"
    set_options(sock)
    return f"{address[0]} port {address[1]}"
