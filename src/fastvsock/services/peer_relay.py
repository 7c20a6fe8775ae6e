"""A relay whose near end is one peer, which may be gone for good with its last bytes still in our socket."""

from select import POLLIN, poll
from time import monotonic

from ..engines import TARGET
from ..relaying import GONE, PIECE, Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ASK_AGAIN = 1.0, 16.0  # seconds, doubling: the first and the longest time between two calls of `has_left`


class PeerRelay(Relay):
    """A relay whose near end is one peer: when it stops reading, what it has sent is still delivered.

    From then on, what the guest sends is dropped, so that its end of file is still noticed. The relay ends when the
    peer's last byte is handed over, or with the guest. `has_left` returns whether the peer has closed, since the socket
    does not show it: a TCP peer that closes sends the same as one that half-closes. It is called at the end of input
    and again later, since closing takes a moment, and a half-closed socket may be closed later.
    """

    has_left: "Callable[[], bool] | None" = None
    _deaf = False
    _ask_at, _ask_after = 0.0, ASK_AGAIN[0]

    def _after_down(self, end: int, error: int) -> None:
        if end == TARGET and error in GONE:
            self._deaf = True
            if not self._up_is_over:  # where it is, the pump may have read what was to wake this thread
                self._drop()

    def _drop(self) -> None:
        """Read what the guest sends and drop it, until its end or until the relay is woken."""
        poller = poll()
        poller.register(self._sock.fileno(), POLLIN)
        poller.register(self._down_woken, POLLIN)
        while not any(fd == self._down_woken for fd, _ in poller.poll()):
            try:
                if not self._sock.recv(PIECE):
                    return
            except BlockingIOError:
                continue
            except OSError:
                return

    def _is_deserted(self) -> bool:
        if self.has_left and not self._deaf and monotonic() >= self._ask_at:
            self._deaf = self.has_left()
            self._ask_at = monotonic() + self._ask_after
            self._ask_after = min(2 * self._ask_after, ASK_AGAIN[1])
        return self._deaf
