"""The framed pump in pure Python, for where the core was not built. The twin of `_frames.pyx`."""

import errno
import fcntl
import os
import select
import termios
from sys import byteorder

from . import frames
from .exchange import (
    BROKEN,
    CLOSED,
    DELIVERED,
    FILE,
    FULL,
    MESSAGE,
    OWN,
    SOURCE_ENDED,
    STOPPED,
    TARGET_LOST,
    TIMEOUT,
    WOKEN,
)

CHUNK = 1 << 17  # bytes of a DATA frame
RECEIVE = 1 << 17  # bytes of one read of the socket
NEARLY_FULL = 15 << 12  # bytes in a pipe of the default size, where the next write may have to wait
BACKLOG = 1 << 16  # bytes of frames that wait for the socket before sources are read no more


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class _Source:
    """A descriptor whose bytes are sent as a stream."""

    __slots__ = ("blocks", "fd", "limit", "ready", "was_full")

    def __init__(self, fd: int, kind: int) -> None:
        self.fd, self.limit = fd, -1  # bytes that may still come of it; -1: any number
        self.was_full = False
        self.blocks = not kind & OWN
        self.ready = kind & ~OWN == FILE


class _Target:
    """A descriptor that a stream is written to, with what it has yet to take; -1 takes all, and drops it."""

    __slots__ = ("dropped", "fd", "held", "over", "piece", "ready", "was_full")

    def __init__(self, fd: int, piece: int) -> None:
        self.fd, self.piece = fd, piece
        self.held = bytearray()
        self.ready = False  # for what is held
        self.dropped = self.over = False  # the sender was asked to stop; DELIVERED was reported
        self.was_full = False


class Exchange:
    """Moves the streams of a channel between the socket `sock`, which does not block, and their descriptors.

    `wake`, a descriptor of this exchange's alone, becomes readable when `run` is to return, or when Python has a signal
    to handle (`signal.set_wakeup_fd`).
    """

    def __init__(self, sock: int, wake: int) -> None:
        self._sock, self._wake = sock, wake
        self._frames = frames.Frames()
        self._sources: dict[int, _Source] = {}
        self._targets: dict[int, _Target] = {}
        self._events: list[tuple[int, int, object]] = []
        self._out = bytearray()
        self._in = memoryview(bytearray(RECEIVE))
        self._received: Iterator[frames.Event] | None = None  # of `_in`, what is not dealt with
        self._readable = self._writable = True
        self._closed = False

    @property
    def unsent(self) -> int:
        """Bytes of frames that the socket has yet to take, payload included."""
        return len(self._out)

    def sent(self, stream: int) -> int:
        """Bytes of an outgoing stream so far."""
        return self._frames.outgoing[stream].count

    def received(self, stream: int) -> int:
        """Bytes of an incoming stream that were delivered so far, or dropped."""
        incoming = self._frames.incoming[stream]
        return incoming.count - incoming.held

    def has_ended(self, stream: int) -> bool:
        """Whether the other end has said the end of an incoming stream."""
        return self._frames.incoming[stream].ended

    def add_source(self, stream: int, fd: int, kind: int) -> None:
        """Send what `fd`, which is a `kind`, gives as `stream`; -1 gives nothing until `end`."""
        self._frames.outgoing[stream] = frames.Outgoing()
        if fd >= 0:
            self._sources[stream] = _Source(fd, kind)

    def add_target(self, stream: int, fd: int, piece: int) -> None:
        """Write what comes of `stream` to `fd`, at most `piece` bytes at once after a poll; 0: it does not block."""
        self._frames.incoming[stream] = frames.Incoming()
        self._targets[stream] = _Target(fd, piece)

    def send(self, frames: bytes) -> None:
        """Send whole frames, of messages for instance, as soon as the socket takes them."""
        self._out += frames

    def end(self, stream: int) -> None:
        """End an outgoing stream with what was sent of it."""
        self._sources.pop(stream, None)
        outgoing = self._frames.outgoing[stream]
        if not outgoing.ended:
            outgoing.ended = True
            self._out += frames.end_frame(stream, outgoing.count)

    def finish(self, stream: int) -> None:
        """End an outgoing stream with what its descriptor, a pipe, holds now; later bytes are not waited for."""
        source = self._sources.get(stream)
        if source:
            source.limit = readable_bytes(source.fd)

    def drop(self, stream: int) -> None:
        """Read an incoming stream no more: the sender is asked to stop, and what still comes goes nowhere."""
        target = self._targets[stream]
        if target.dropped:
            return
        target.fd, target.dropped = -1, True
        self._delivered(stream, len(target.held))
        target.held.clear()
        if not self._frames.incoming[stream].ended:
            self._out += frames.frame(frames.STOP, stream)
        self._report_end(stream)

    def calm(self) -> None:
        """Report a full pipe again: those that were are of the usual size now."""
        for source in self._sources.values():
            source.was_full = False
        for target in self._targets.values():
            target.was_full = False

    def run(self, timeout: int) -> tuple[int, int, object]:
        """Move bytes until something has happened, or for `timeout` milliseconds of silence (-1: no limit).

        What it returns: see exchange.py. Python's signal handlers run in between, and may raise.
        """
        while not self._events:
            try:
                moved = self._pass_on()
                moved |= self._receive()
                moved |= self._transmit()
            except frames.Complaint as complaint:
                self._events.append((BROKEN, 0, complaint.args))
                self._closed = True
                continue
            if not (moved or self._events):
                self._wait(timeout)
        return self._events.pop(0)

    def _receive(self) -> bool:
        """Deal with what the socket has, up to the next event: what comes behind it may depend on what is done then."""
        if self._closed or not (self._received or self._readable):
            return False
        return self._go_on() if self._received else self._read_socket()

    def _read_socket(self) -> bool:
        try:
            count = os.readv(self._sock, [self._in])
        except BlockingIOError:
            self._readable = False
            return False
        except OSError as error:
            return self._close(error.errno or errno.EIO)
        if not count:
            return self._close(0 if self._frames.is_between else errno.ECONNRESET)
        self._readable = count == RECEIVE
        self._received = self._frames.receive(self._in[:count])
        return self._go_on()

    def _go_on(self) -> bool:
        assert self._received
        for kind, stream, value in self._received:
            self._take(kind, stream, value)
            if self._events:
                return True
        self._received = None
        return True

    def _take(self, kind: int, stream: int, value: "bytes | memoryview | int") -> None:
        if kind >= frames.MESSAGES:
            self._events.append((MESSAGE, kind, value))
        elif kind == frames.DATA:
            assert isinstance(value, memoryview)
            self._deliver(stream, value)
        elif kind == frames.END:
            self._report_end(stream)
        elif kind == frames.STOP and not self._frames.outgoing[stream].ended:
            self.end(stream)
            self._events.append((STOPPED, stream, 0))

    def _close(self, number: int) -> bool:
        self._closed = True
        self._events.append((CLOSED, 0, number))
        return True

    def _deliver(self, stream: int, data: memoryview) -> None:
        target = self._targets[stream]
        if target.fd < 0:
            return self._delivered(stream, len(data))
        count = 0 if target.held else self._write(stream, target, data)
        target.held += data[count:]
        if target.held and not target.was_full:
            target.was_full = True
            self._events.append((FULL, stream, target.fd))

    def _write(self, stream: int, target: _Target, data: "memoryview | bytearray") -> int:
        """Write what the target takes; the bytes that need not be held."""
        try:
            if target.piece and not _has_room(target.fd):
                raise BlockingIOError
            count = os.write(target.fd, data[: target.piece] if target.piece else data)
        except BlockingIOError:
            target.ready = False
            return 0
        except OSError as error:
            self._lose(stream, error.errno or errno.EIO, len(data))
            return len(data)
        self._delivered(stream, count)
        return count

    def _lose(self, stream: int, number: int, in_hand: int) -> None:
        """The target of a stream takes no more; `in_hand` bytes of it are not in `held`, or are its only ones."""
        target = self._targets[stream]
        if not target.held:
            self._delivered(stream, in_hand)
        self._events.append((TARGET_LOST, stream, number))
        self.drop(stream)

    def _delivered(self, stream: int, count: int) -> None:
        grant = self._frames.incoming[stream].deliver(count)
        if grant:
            self._out += frames.credit_frame(stream, grant)

    def _pass_on(self) -> bool:
        """Write what is held for targets that have room."""
        moved = False
        for stream, target in self._targets.items():
            if target.held and target.ready:
                moved = True
                count = self._write(stream, target, target.held)
                del target.held[:count]
                self._report_end(stream)
        return moved

    def _report_end(self, stream: int) -> None:
        target, incoming = self._targets[stream], self._frames.incoming[stream]
        if incoming.ended and not (target.held or target.over):
            target.over = True
            target.fd = -1  # its owner may close it now, and the number may become another's
            self._events.append((DELIVERED, stream, incoming.count))

    def _transmit(self) -> bool:
        moved = False
        if len(self._out) < BACKLOG:
            for stream in list(self._sources):
                moved |= self._read(stream)
        if not self._out or not self._writable or self._closed:
            return moved
        del self._out[: self._send(self._out)]
        return self._writable or moved

    def _send(self, *pieces: "bytes | bytearray") -> int:
        """The bytes that the socket took, or that go nowhere."""
        try:
            return os.writev(self._sock, pieces)
        except BlockingIOError:
            self._writable = False
            return 0
        except OSError as error:
            self._writable = False
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                return sum(map(len, pieces))  # what was sent to us before is still to be read; its end says the rest
            self._close(error.errno or errno.EIO)
            return 0

    def _read(self, stream: int) -> bool:
        source, outgoing = self._sources[stream], self._frames.outgoing[stream]
        if not source.limit:
            self._finish(stream)
            return True
        if not (source.ready and outgoing.credit):
            return False
        size = min(CHUNK, outgoing.credit, source.limit if source.limit > 0 else CHUNK)
        try:
            data = os.read(source.fd, size)
        except BlockingIOError:
            source.ready = False
            return False
        except OSError as error:
            del self._sources[stream]
            self._events.append((SOURCE_ENDED, stream, error.errno or errno.EIO))
            return True
        if not data:
            self._finish(stream)
            return True
        source.ready = not source.blocks
        if len(data) >= NEARLY_FULL and not source.was_full:
            source.was_full = True
            self._events.append((FULL, stream, source.fd))
        if source.limit > 0:
            source.limit -= len(data)
        outgoing.send(len(data))
        header = frames.header(frames.DATA, stream, len(data))
        sent = 0 if self._out or not self._writable or self._closed else self._send(header, data)
        self._out += header[sent:]
        self._out += data[max(sent - len(header), 0) :]
        return True

    def _finish(self, stream: int) -> None:
        self.end(stream)
        self._events.append((SOURCE_ENDED, stream, 0))

    def _wait(self, timeout: int) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if not self._closed:
            # POLLHUP is reported whether it is asked for or not, and so never missed.
            poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._out else 0))
        by_fd: dict[int, list[_Source | _Target]] = {}
        for stream, source in self._sources.items():
            if self._frames.outgoing[stream].credit and len(self._out) < BACKLOG:
                poll.register(source.fd, select.POLLIN)
                by_fd.setdefault(source.fd, []).append(source)
        for target in self._targets.values():
            if target.fd >= 0:
                known = select.POLLIN if target.fd in by_fd else 0
                poll.register(target.fd, known | (select.POLLOUT if target.held else 0))
                by_fd.setdefault(target.fd, []).append(target)
        ready = poll.poll(timeout)
        if not ready:
            self._events.append((TIMEOUT, 0, 0))
        for fd, events in ready:
            self._note(fd, events, by_fd.get(fd, []))

    def _note(self, fd: int, events: int, users: "list[_Source | _Target]") -> None:
        if fd == self._wake:
            os.read(fd, 4096)
            self._events.append((WOKEN, 0, 0))
        elif fd == self._sock:
            self._readable |= bool(events & ~select.POLLOUT)
            self._writable |= bool(events & select.POLLOUT)
        for user in users:
            if isinstance(user, _Source):
                user.ready |= bool(events & ~select.POLLOUT)
            elif events & select.POLLOUT:
                user.ready = True
            elif events & (select.POLLERR | select.POLLHUP):
                stream = next(stream for stream, target in self._targets.items() if target is user)
                self._lose(stream, errno.EPIPE, len(user.held))


def _has_room(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def readable_bytes(fd: int) -> int:
    """What a pipe holds."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), byteorder)
