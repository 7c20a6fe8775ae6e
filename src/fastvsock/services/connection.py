"""One accepted connection: its relay, its two threads, its counts, and how it is cut off."""

import _thread
import socket
import threading
from collections.abc import Callable

from ..engines import queues
from ..relaying import Relay, RelayResult


class Connection:
    """One accepted connection. `name` says who is at its other end; counts are in bytes.

    `owner` is for whoever has to know whose it is, `lost` whether something it sent was dropped unheard.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock, self.name = sock, name
        self.owner: tuple[int, int, int] | None = None
        self.lost = False
        self.on_cut: Callable[[], object] = lambda: None
        self.moved = 0, 0
        self._relay: Relay | None = None
        self._sockets: tuple[socket.socket, ...] = ()
        self._cut = False
        self._lock = threading.Lock()
        self._parked = _thread.allocate_lock()
        self._down: Callable[[], object] | None = None
        self._has_lent = False

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes moved up and down so far."""
        relay = self._relay
        return (relay.sent, relay.received) if relay else self.moved

    @property
    def pending(self) -> bool:
        """Whether bytes wait in its sockets, to be read here or by the peers, or may, for it has yet to be relayed."""
        if not self._sockets:
            return True
        try:
            return any(any(queues(sock.fileno())) for sock in self._sockets)
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

    def start(self, serve: "Callable[[Connection], object]") -> None:
        """Call `serve` in a thread. Raises `RuntimeError` where there is none, or none for the relay's other direction.

        That one is started now, and parked until `lend` has something for it: of many connections that all have their
        first thread, none might get a second.
        """
        self._parked = parked = _thread.allocate_lock()  # a new one, should this be the second attempt
        parked.acquire()
        _thread.start_new_thread(self._run_down, (parked,))
        try:
            threading.Thread(target=self._run, args=(serve,), daemon=True).start()
        except BaseException:
            parked.release()
            raise

    def lend(self, function: Callable[[], object], arguments: tuple[()]) -> None:
        """Call `function` in the parked thread: a relay's way to start one."""
        self._down, self._has_lent = function, True
        self._parked.release()

    def _run(self, serve: "Callable[[Connection], object]") -> None:
        try:
            serve(self)
        finally:
            if not self._has_lent:
                self._parked.release()

    def _run_down(self, parked: "_thread.LockType") -> None:
        parked.acquire()
        down, self._down = self._down, None  # the relay's pipes are closed with its last reference
        if down:
            down()

    def give_up(self) -> None:
        """There will be no relay: what it has to say is no longer waited for."""
        self._sockets = (self.sock,)

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
