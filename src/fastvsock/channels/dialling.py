"""The host's side of `dial`: a connected socket here, joined to one in the guest, both half-closes intact."""

import _socket
import errno
import os
from time import monotonic

from .. import errors
from ..engines import exchange
from ..relaying import GONE, RelayResult
from . import protocol
from .client import Channel
from .protocol import DOWN, UP, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..handshake import Path

ASK_AGAIN = 1.0, 16.0  # seconds, doubling: the first and the longest time after which a peer is asked for again


def dial(
    uds: "Path",
    address: str,
    *,
    port: int = protocol.PORT,
    timeout: float | None = 10.0,
    wait: float = 0.0,
    engine: str | None = None,
) -> Channel:
    """A channel to `address` in the guest, ``tcp:HOST:PORT`` or ``unix:PATH``, once it is connected there.

    Raises what `Channel` and `Channel.next` raise; `StartError` where nobody answers at the address.
    """
    request = Request(protocol.DIAL, address=os.fsencode(address))
    channel = Channel(uds, request, port=port, timeout=timeout, wait=wait, engine=engine)
    try:
        while not channel.order.has_started:
            channel.next()
    except BaseException:
        channel.close()
        raise
    return channel


class DialRelay:
    """Relays between a dial channel and the connected socket `near`, which does not block: as `relaying.Relay` does.

    `has_left` returns whether the peer of `near` has closed and not only half-closed; it is asked now and then once the
    peer sends no more. With `idle_timeout` (seconds), a relay in which nothing moves is given up. Neither the channel
    nor the socket is closed.
    """

    def __init__(
        self,
        channel: Channel,
        near: _socket.socket,
        has_left: "Callable[[], bool] | None" = None,
        idle_timeout: float | None = None,
    ) -> None:
        self._channel, self._near, self._has_left, self._idle_timeout = channel, near, has_left, idle_timeout
        self._stopped = False
        channel.add_source(UP, near.fileno())
        channel.add_target(DOWN, near.fileno())

    @property
    def sent(self) -> int:
        """Bytes handed to the connection to the guest so far."""
        return self._channel.exchange.moved[0]

    @property
    def received(self) -> int:
        """Bytes handed to `near` so far."""
        return self._channel.exchange.moved[1]

    def stop(self) -> None:
        """End run() soon, from any thread or from a signal handler."""
        self._stopped = True
        try:
            os.write(self._channel.wakeup, b"\0")
        except OSError:
            pass  # full, and so readable; or it is over

    def run(self) -> RelayResult:
        """Relay until both directions have ended, one side is cut off, or `stop`. To be called once."""
        started = monotonic()
        ended, failure = "guest", None
        try:
            ended = self._relay()
        except errors.StreamError as error:
            if error.errno in (*GONE, errno.ETIMEDOUT):
                ended = "reader"
            else:
                ended, failure = "error", errors.RelayError(str(error), error.errno or 0)
        except errors.IdleTimeoutError as error:
            ended, failure = "error", error
        except errors.ChannelError as error:
            ended, failure = "error", errors.ConnectionBrokenError(str(error), error.errno or 0)
        engine = self._channel.exchange.engine
        return RelayResult(self.sent, self.received, monotonic() - started, engine, engine, ended, failure)

    def _relay(self) -> str:
        channel, asks, pause = self._channel, False, ASK_AGAIN[0]
        moved, since = (0, 0), monotonic()
        while not channel.is_over:
            limits = [pause] if asks else []
            if self._idle_timeout is not None:
                limits.append(max(since + self._idle_timeout - monotonic(), 0))
            event, _, _ = channel.next(min(limits, default=None))
            if self._stopped:
                return "stopped"
            if moved != channel.exchange.moved:
                moved, since = channel.exchange.moved, monotonic()
            elif self._idle_timeout is not None and monotonic() - since >= self._idle_timeout:
                raise errors.IdleTimeoutError(
                    f"nothing moved for {self._idle_timeout:g} s, after {moved[0]} bytes up and {moved[1]} down: "
                    "the VMM may be paused, or one side has stopped reading",
                    errno.ETIMEDOUT,
                )
            if event == exchange.DELIVERED:
                self._shut(_socket.SHUT_WR)
            elif event == exchange.STOPPED:
                self._shut(_socket.SHUT_RD)
            elif event == exchange.SOURCE_ENDED:
                asks = self._has_left is not None
            elif event == exchange.TIMEOUT and asks and self._has_left:
                if self._has_left():
                    return "reader"
                pause = min(2 * pause, ASK_AGAIN[1])
        channel.finish()
        return "guest"

    def _shut(self, how: int) -> None:
        try:
            self._near.shutdown(how)
        except OSError:
            pass  # its peer has gone

    def close(self) -> None:
        """Nothing: the relay has no descriptors of its own."""
