"""Moves the bytes of all streams of a channel between its socket and the streams' descriptors, by frames.

One loop serves the whole channel and blocks nowhere but in poll(2): a stream whose descriptor has no room waits, and
the rest go on. The twins do the work: `_frames.pyx` (splice at the host, a copy without the interpreter's lock where a
socket does not splice well) and `_framescopy.py` (pure Python). What they share stands here: which twin serves, and
descriptors that do not block although they are other processes' too.
"""

import errno
import os
import stat

from . import choose, frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from ._copy import Pipe

    class Twin(Protocol):
        """What the twins have in common: see `_framescopy.Exchange`."""

        def add_source(self, stream: int, fd: int, kind: int) -> None: ...
        def add_target(self, stream: int, fd: int, piece: int) -> None: ...
        def send(self, frames: bytes) -> None: ...
        def end(self, stream: int) -> None: ...
        def finish(self, stream: int) -> None: ...
        def drop(self, stream: int) -> None: ...
        def calm(self) -> None: ...
        def run(self, timeout: int) -> tuple[int, int, object]: ...
        def sent(self, stream: int) -> int: ...
        def received(self, stream: int) -> int: ...
        def has_ended(self, stream: int) -> bool: ...
        @property
        def unsent(self) -> int: ...


# What run() returns, with a stream and a value; the numbers stand in `_frames.pyx` once more.
(
    MESSAGE,  # its type in place of the stream, and its bytes
    SOURCE_ENDED,  # an errno: 0 where the end was reached, and said to the other end
    TARGET_LOST,  # an errno: nobody reads the stream here any more, and the other end knows
    DELIVERED,  # the count: the stream has ended, and all of it was written or dropped
    STOPPED,  # the other end wants no more of a stream, which is no longer read
    CLOSED,  # an errno, or 0: the connection has ended
    BROKEN,  # the arguments of a `frames.Complaint`
    WOKEN,
    TIMEOUT,
    FULL,  # a descriptor that could do with more room; stays in this file
) = range(10)

# What a source is: a pipe, a regular file, anything else; `OWN` marks one that does not block.
PIPE, FILE, OTHER, OWN = 0, 1, 2, 4

PIPE_PIECE = 4096  # a pipe that polls writable takes as much at once: pipe(7)
SOCKET_PIECE = 1 << 14  # and a socket this: a third of its buffer is free, and 200 KiB is the usual size
AF_UNIX = 1
REST = 1000  # milliseconds without anything moving, after which pipes get their size back
OVER = SOURCE_ENDED, TARGET_LOST, DELIVERED, STOPPED  # events after which a stream's descriptor is used no more


class Exchange:
    """The frames of one channel, over the connected socket `sock`, which must not block.

    `wake` becomes readable when `run` is to return. `engine` is one of `ENGINES`; None means what the environment says.
    None of the descriptors given is closed. Raises `EngineError`.
    """

    def __init__(self, sock: int, wake: int, *, engine: str | None = None, splices: bool = True) -> None:
        self.engine = choose(engine)
        self._own: list[int] = []
        self._twin: Twin
        if self.engine == "splice":
            from ._frames import Exchange as Native

            self._twin = Native(sock, wake, splices)
        else:
            from ._framescopy import Exchange as Copying

            self._twin = Copying(sock, wake)
        twin = self._twin
        self.send, self.end, self.finish, self.drop = twin.send, twin.end, twin.finish, twin.drop
        self.has_ended = twin.has_ended
        self._grown: dict[int, Pipe] = {}  # pipes that a stream has filled, until it ends or rests
        self._sources: list[int] = []
        self._targets: list[int] = []

    def run(self, timeout: int) -> tuple[int, int, object]:
        """Move bytes until something has happened, or for `timeout` milliseconds of silence (-1: no limit).

        What it returns stands above. Python's signal handlers run in between, and may raise.
        """
        while True:
            may_rest = bool(self._grown) and not 0 <= timeout <= REST
            found = event, stream, value = self._twin.run(REST if may_rest else timeout)
            if event == FULL:
                assert isinstance(value, int)
                self._grow(stream, value)
            elif event == TIMEOUT and may_rest:
                timeout -= REST if timeout > 0 else 0
                self._shrink()
            else:
                if event in OVER:
                    self.release(stream)
                return found

    def _grow(self, stream: int, fd: int) -> None:
        """Make a pipe larger that a stream has filled; best effort."""
        from ._copy import Pipe  # few streams fill one

        pipe = Pipe(fd)
        if pipe.grow():
            self._grown[stream] = pipe

    def _shrink(self) -> None:
        for stream in list(self._grown):
            self.release(stream)
        self._twin.calm()

    def release(self, stream: int) -> None:
        """Give a stream's pipe its size back: its descriptor, which must still be open, is about to be closed."""
        pipe = self._grown.pop(stream, None)
        if pipe:
            pipe.let_go()

    @property
    def unsent(self) -> int:
        """Bytes of frames that the socket has yet to take, payload included."""
        return self._twin.unsent

    def add_source(self, stream: int, fd: int) -> None:
        """Send what the descriptor `fd` gives as `stream`. Raises `OSError` where it is not open."""
        mode = os.fstat(fd).st_mode
        kind = PIPE if stat.S_ISFIFO(mode) else FILE if stat.S_ISREG(mode) else OTHER
        self._sources.append(stream)
        if os.isatty(fd) and os.get_blocking(fd):
            # Of what a poll has promised nothing may be left, once a job that was stopped by its read() goes on.
            fd = self._reopened(fd)
        self._twin.add_source(stream, fd, kind | (0 if os.get_blocking(fd) else OWN))

    def _reopened(self, terminal: int) -> int:
        """A descriptor of our own to read a terminal without blocking; the same one where /proc is missing."""
        try:
            own = os.open(f"/proc/self/fd/{terminal}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return terminal
        self._own.append(own)
        return own

    def add_target(self, stream: int, fd: int) -> None:
        """Write what comes of `stream` to the descriptor `fd`. Raises `OSError` where it is not open."""
        own, piece = not_blocking(fd)
        self._targets.append(stream)
        if own != fd:
            self._own.append(own)
        self._twin.add_target(stream, own, piece)

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes sent, and bytes received and delivered, of all streams."""
        return sum(map(self._twin.sent, self._sources)), sum(map(self._twin.received, self._targets))

    def close(self) -> None:
        """Close the descriptors that are its own; give pipes of others, which must still be open, their sizes back."""
        for stream in list(self._grown):
            self.release(stream)
        for fd in self._own:
            os.close(fd)
        self._own.clear()


def not_blocking(fd: int) -> tuple[int, int]:
    """A descriptor to write to `fd` without blocking, a new one perhaps, and the bytes for each write (0: any number).

    O_NONBLOCK is not ours to set on what other processes share. A pipe or a terminal is opened once more through
    /proc, which gives an open file description of our own. Where that cannot be, each write follows a poll and is small
    enough not to block.
    """
    mode = os.fstat(fd).st_mode
    if not os.get_blocking(fd):
        return fd, 0
    if stat.S_ISSOCK(mode):
        return fd, SOCKET_PIECE
    if stat.S_ISFIFO(mode) or os.isatty(fd):
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), 0
        except OSError as error:
            if error.errno == errno.ENXIO:  # a FIFO that nobody reads: the write will say EPIPE
                return fd, 0
            return fd, PIPE_PIECE
    return fd, 0


def splices_well(family: int) -> bool:
    """Whether splice is the cheaper way to and from a socket of `family`.

    On AF_VSOCK, in a guest, it does not pay: from pipe to socket it cost 1.2 to 2.3 times the CPU time of a copy, from
    socket to pipe 0.8 to 1.15 times (Linux 6.1 behind Firecracker, emulated; the lower figures are the agent's own,
    medians of 64 MiB). Pumps without frames splice there too: the other engine copies in Python, and took 1.6 and 1.3
    times as much.
    """
    return family == AF_UNIX


def complaint(arguments: object) -> str:
    """What is wrong with the frame that BROKEN is about."""
    assert isinstance(arguments, tuple)
    return str(frames.Complaint(*arguments))
