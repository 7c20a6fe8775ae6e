"""The host's side of a channel: opens it, and runs a command in the guest with three descriptors as its own."""

import errno
import os
from time import monotonic

from .. import errors, handshake
from ..engines import choose, exchange
from ..engines.exchange import Exchange
from ..relaying import raise_send_buffer
from . import protocol
from .protocol import STDERR, STDIN, STDOUT, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FAREWELL = 1.0  # seconds for what the agent may do without
MAX_PENDING = 1024  # signals and sizes of a window that wait for a connection which stalls
NAMES = ("stdin", "stdout", "stderr")


class Channel:
    """A connection to the guest's agent, with a request under way. Times are in seconds.

    `timeout` bounds each attempt to connect, and then the time to the agent's first answer. `wait` is for connecting,
    as for `fastvsock.connect`. Raises the errors of that, `UsageError` and `EngineError`.
    """

    def __init__(
        self,
        uds: "handshake.Path",
        request: Request,
        *,
        port: int = protocol.PORT,
        timeout: float | None = 10.0,
        wait: float = 0.0,
        engine: str | None = None,
    ) -> None:
        engine = choose(engine)  # before a connection is made that would be of no use
        frame = request.encode()
        self._limit = handshake.limit(timeout)
        self.sock = handshake.connect(uds, port, timeout, wait)
        self.sock.setblocking(False)
        raise_send_buffer(self.sock)
        self._deadline = monotonic() + self._limit
        self._woken = self._wakeup = -1
        try:
            self._woken, self._wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self.exchange = Exchange(self.sock.fileno(), self._woken, engine=engine)
        except BaseException:
            self._disconnect()
            raise
        self.order = protocol.Client()
        self._targets: list[int] = []  # incoming streams that have yet to be delivered
        self._sources: dict[int, int] = {}
        self.exchange.send(frame)

    @property
    def wakeup(self) -> int:
        """A descriptor that does not block: a byte written to it makes `next` return WOKEN."""
        return self._wakeup

    def add_source(self, stream: int, fd: int) -> None:
        """Send what `fd` gives as `stream`. Raises `StreamError`."""
        try:
            self.exchange.add_source(stream, fd)
        except OSError as error:
            raise _cannot("read", stream, error.errno or 0) from None
        self._sources[stream] = fd

    def add_target(self, stream: int, fd: int) -> None:
        """Write what comes of `stream` to `fd`. Raises `StreamError`."""
        try:
            self.exchange.add_target(stream, fd)
        except OSError as error:
            raise _cannot("write", stream, error.errno or 0) from None
        self._targets.append(stream)

    def next(self, timeout: float | None = None) -> tuple[int, int, object]:
        """What happens next. Messages, and what ends a channel early, are dealt with before it returns.

        Raises `StartError`, `ProtocolError`, `ChannelBrokenError`, `AgentTimeoutError` and `StreamError`.
        """
        limits = [] if timeout is None else [timeout]
        if not self.order.has_started:
            limits.append(max(self._deadline - monotonic(), 0))
        event, stream, value = self.exchange.run(int(min(min(limits) * 1000 + 1, 1 << 30)) if limits else -1)
        if event == exchange.MESSAGE:
            assert isinstance(value, bytes)
            self.order.receive(stream, value)
        elif event == exchange.DELIVERED:
            self._targets.remove(stream)
        elif event == exchange.SOURCE_ENDED:
            self._sources.pop(stream, None)
            if value:
                raise _cannot("read", stream, _number(value))
        elif event == exchange.STOPPED:
            self._sources.pop(stream, None)
        elif event == exchange.BROKEN:
            raise errors.ProtocolError(exchange.complaint(value))
        elif event == exchange.CLOSED:
            raise errors.ChannelBrokenError(self.how_far(), _number(value))
        elif event == exchange.TIMEOUT and not self.order.has_started and monotonic() >= self._deadline:
            raise errors.AgentTimeoutError(self._limit)
        return event, stream, value

    @property
    def is_over(self) -> bool:
        """Whether the work has ended, and all of its output is delivered. Raises `ProtocolError`."""
        if self.order.status is None:
            return False
        for stream in self._targets:
            if not self.exchange.has_ended(stream):
                raise errors.ProtocolError(f"the exit status before the end of stream {stream}")
        return not self._targets

    def how_far(self) -> str:
        """What has been moved, in words."""
        if not self.order.has_started:
            return "connecting and before its first answer"
        sent, received = self.exchange.moved
        return f"{sent} bytes up and {received} down"

    def finish(self) -> None:
        """Let the agent know that everything is here; best effort, for everything is."""
        deadline = monotonic() + FAREWELL
        for stream in list(self._sources):
            self.exchange.end(stream)
        self.exchange.send(protocol.done())
        pause = 0
        while self.exchange.unsent and monotonic() < deadline:
            event, _, _ = self.exchange.run(pause)
            pause = 20
            if event in (exchange.CLOSED, exchange.BROKEN):
                return

    def close(self) -> None:
        """Close the connection, which ends the work if it has not ended."""
        if self._wakeup >= 0:
            self.exchange.close()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._wakeup >= 0:
            os.close(self._woken)
            os.close(self._wakeup)
            self._woken = self._wakeup = -1
        self.sock.close()


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _cannot(what: str, stream: int, number: int) -> errors.StreamError:
    return errors.StreamError(f"cannot {what} {NAMES[stream]}: {os.strerror(number)}", number)


class Command:
    """A command in the guest, served by `run` until it has ended: `files` are our ends of its three streams.

    An element of `files` that is None is a missing stream: an empty stdin, or output that goes nowhere.
    """

    def __init__(self, channel: Channel, files: "tuple[int | None, int | None, int | None]") -> None:
        self.channel = channel
        self._failure: errors.StreamError | None = None
        self._pending: list[bytes] = []
        stdin, stdout, stderr = files
        if stdin is not None:
            channel.add_source(STDIN, stdin)
        for stream, fd in ((STDOUT, stdout), (STDERR, stderr)):
            if fd is not None:
                channel.add_target(stream, fd)

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group; from a signal handler too."""
        signals = self.channel.order.signals
        signals.append(monotonic())  # first: another thread may have the agent's answer in a moment
        if not self._post(protocol.signal(number)):
            signals.pop()

    @property
    def unanswered(self) -> float:
        """Seconds since the oldest signal that the agent has not confirmed was sent; 0.0 where there is none."""
        signals = self.channel.order.signals
        return monotonic() - signals[0] if signals else 0.0

    def resize(self, rows: int, columns: int) -> None:
        """Pass on the size of a window."""
        self._post(protocol.resize(rows, columns))

    def _post(self, frame: bytes) -> bool:
        """Send a frame from any thread; False where so many wait that memory would fill with them."""
        if len(self._pending) >= MAX_PENDING:
            return False
        self._pending.append(frame)
        try:
            os.write(self.channel.wakeup, b"\0")
        except OSError:
            pass  # full, and so readable; or it is over
        return True

    def run(
        self,
        on_end: "Callable[[int], object]" = lambda stream: None,
        deadline: float | None = None,
        on_start: "Callable[[], object]" = lambda: None,
    ) -> int | None:
        """The exit status, -n where signal n ended the command; None where it has not ended at `deadline` (monotonic).

        `on_start` is called once the command has started, `on_end` with each stream that is done with: its descriptor
        is used no more. Raises what `Channel.next` does.
        """
        channel = self.channel
        while not channel.is_over:
            if deadline is not None and monotonic() >= deadline:
                return None
            event, stream, value = channel.next(None if deadline is None else max(deadline - monotonic(), 0))
            if event == exchange.TARGET_LOST and value not in (errno.EPIPE, errno.EBADF):
                self._failure = self._failure or _cannot("write", stream, _number(value))
            if event in exchange.OVER:
                on_end(stream)
            elif event == exchange.MESSAGE and stream == protocol.STARTED:
                on_start()
            while self._pending:
                channel.exchange.send(self._pending.pop(0))
        channel.finish()
        if self._failure:
            raise self._failure
        return channel.order.status


def information(
    uds: "handshake.Path", *, port: int = protocol.PORT, timeout: float | None = 10.0, wait: float = 0.0
) -> dict[str, str]:
    """What the guest's agent says of itself and of the guest. Raises what `Channel` and its `next` do."""
    channel = Channel(uds, Request(protocol.INFO), port=port, timeout=timeout, wait=wait)
    try:
        while not channel.is_over:
            channel.next()
        channel.finish()
        return channel.order.properties
    finally:
        channel.close()
