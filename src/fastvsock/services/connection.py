"""One accepted connection: its relay, its two threads, its child, its counts, and how it is cut off."""

import _thread
import signal
import socket
import threading
from collections.abc import Callable

from ..channels.dialling import DialRelay
from ..engines import queues
from ..host.processes import Child
from ..relaying import Relay, RelayResult


class Connection:
    """One accepted connection. `name` says who is at its other end; counts are in bytes.

    An `AccessPolicy` keeps what it learns here: `owner`, and whether the connection is `unidentified`. `admitted` is
    None until the policy has decided.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock, self.name = sock, name
        self.owner: tuple[int, int, int] | None = None
        self.unidentified = False
        self.admitted: bool | None = None
        self.child: Child | None = None
        self.moved = 0, 0
        self._relay: Relay | DialRelay | None = None
        self._sockets: tuple[socket.socket, ...] = ()
        self._cut = False
        self._lock = threading.Lock()
        self._reserved = _thread.allocate_lock()
        self._reserved_function: Callable[[], object] | None = None
        self._reserved_used = False

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes moved up and down so far."""
        relay = self._relay
        return (relay.sent, relay.received) if relay else self.moved

    @property
    def pending(self) -> bool:
        """Whether bytes wait in its sockets, or may wait: true until it has a relay."""
        if not self._sockets:
            return True
        try:
            return any(any(queues(sock.fileno())) for sock in self._sockets)
        except (OSError, ValueError):
            return False  # closed meanwhile

    def run(self, relay: Relay | DialRelay, *sockets: socket.socket) -> RelayResult:
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

    def start(self, serve: "Callable[[Connection], object]") -> None:
        """Call `serve` in a thread. Raises `RuntimeError` where not both threads of a connection can be started.

        The second one, for the relay's other direction, is started now and reserved: of many connections that all have
        their first thread, none might get a second.
        """
        self._reserved = reserved = _thread.allocate_lock()  # a new one, should this be the second attempt
        reserved.acquire()
        _thread.start_new_thread(self._run_reserved, (reserved,))
        try:
            threading.Thread(target=self._run, args=(serve,), daemon=True).start()
        except BaseException:
            reserved.release()
            raise

    def run_in_reserved_thread(self, function: Callable[[], object], arguments: tuple[()]) -> None:
        """Call `function` in the reserved thread: the way in which a relay starts its second thread."""
        self._reserved_function, self._reserved_used = function, True
        self._reserved.release()

    def _run(self, serve: "Callable[[Connection], object]") -> None:
        try:
            serve(self)
        finally:
            if not self._reserved_used:
                self._reserved.release()

    def _run_reserved(self, reserved: "_thread.LockType") -> None:
        reserved.acquire()
        function, self._reserved_function = self._reserved_function, None  # the last reference closes the relay's pipes
        if function:
            function()

    def abandon_relay(self) -> None:
        """There will be no relay: only the connection's own socket can have bytes `pending`."""
        self._sockets = (self.sock,)

    def start_child(self, spawn: Callable[[], Child]) -> Child | None:
        """Start the connection's child, which `cut` and `Service.end_children` end; None where it was cut already."""
        with self._lock:
            if not self._cut:
                self.child = spawn()
            return self.child

    @property
    def is_cut(self) -> bool:
        """Whether `cut` has ended it, so that an end of file is not its peer's."""
        return self._cut

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
        if self.child:
            self.child.send(signal.SIGTERM)
