"""The copy engine: a pump in pure Python, for where splice cannot serve. The twin of `_splice.pyx`.

One buffer, used again and again with `os.readv`: what a read brings is written at once, so nothing waits for more.
Down, from the VMM's socket to the near end, reading goes on into the rest of the buffer while the target has no
room, and the target is watched for its reader: the reasons stand at the head of `_splice.pyx`.

Blocking nowhere but in poll(2) is what lets a pump be stopped. Reads follow a poll. Writes need a descriptor that does
not block, and O_NONBLOCK is not ours to set on an inherited one: a pipe or a terminal is opened once more through
/proc, which gives an open file description of our own. Where that cannot be, each write follows a poll and is small
enough not to block.
"""

import errno
import fcntl
import os
import select
import stat
import termios
from sys import byteorder
from time import monotonic

from . import EOF, IDLE, SOURCE, STOPPED, TARGET, budget

CHUNK = 1 << 17  # bytes a read; of 64 KiB to 1 MiB the cheapest here, in CPU time for a byte
RESERVE = 1 << 20  # bytes the buffer holds on the way down: as the pipe of the splice engine
PIPE_SIZE = 1 << 20  # the kernel's default for fs.pipe-max-size
REST = 1000  # milliseconds without a byte, after which pipes get their size back
PIPE_PIECE = select.PIPE_BUF  # a pipe that polls writable takes as much at once: pipe(7)
SOCKET_PIECE = 1 << 14  # and a socket this: a third of its buffer is free, and 200 KiB is the usual size


class Pipe:
    """One of a pump's ends, if it is a pipe: made larger than usual while a stream fills it. Sizes are in bytes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._taken = 0  # of the budget
        self.size: float = _size(fd) or float("inf")
        self._tried = self.size == float("inf")  # not a pipe
        self._usual = self.size

    @property
    def is_large(self) -> bool:
        """Whether there is something to give back."""
        return self._taken > 0

    def grow(self) -> bool:
        """Make the pipe as large as the budget and the kernel allow, once until it shrinks. Whether it has grown."""
        if self._tried:
            return False
        self._tried = True
        size, want = _size(self._fd), PIPE_SIZE
        while want > size:
            if budget.take(want - size, True):
                if _resize(self._fd, want):
                    self.size = want
                    self._taken += want - size
                    return True
                budget.give_back(want - size)
            want //= 2
        return False

    def shrink(self) -> None:
        """Give the pipe its size back, or as little more as what it still holds takes."""
        if not self._taken:
            return
        size = int(self._usual)
        if _size(self._fd) == self.size:  # else somebody has changed it, and means it, or closed it
            while size < self.size and not _resize(self._fd, size):
                size *= 2
        left = size - int(self._usual)
        budget.give_back(self._taken - left)
        self.size, self._taken, self._tried = size, left, left > 0

    def let_go(self) -> None:
        """The pump is over, or pauses: shrink the pipe, and what it keeps for what it still holds is its owner's."""
        self.shrink()
        budget.give_back(self._taken)
        self._taken = 0
        self._tried = self._usual == float("inf")


def _size(fd: int) -> int:
    """The size of a pipe; 0 where it is something else, or closed."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError:
        return 0


def _resize(fd: int, size: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        return False  # a user's pages are capped, and what the pipe holds must fit: pipe(7), fcntl(2)
    return True


class Pump:
    """Moves bytes from the descriptor `source` to the descriptor `target` until end of file.

    `wake`, a descriptor of this pump's alone, becomes readable when the pump has to look up: it was stopped, or Python
    has a signal to handle (`signal.set_wakeup_fd`). `down` marks the direction from the VMM to the near end (see the
    head of this file). The pump closes none of the three.
    """

    def __init__(self, source: int, target: int, wake: int, down: bool = False) -> None:
        self.moved = 0
        self.moved_at = 0.0
        self._source, self._target, self._wake, self._down = source, target, wake, down
        self._stopped = False
        self._look: int | None = None
        self._inherited = Pipe(source), Pipe(target)
        self._buffer = memoryview(bytearray(RESERVE if down else CHUNK))
        self._start = self._end = 0  # what the target has yet to get
        self._ended = False
        self._broken = 0  # the errno with which the source ended, reported once the buffer is delivered
        self._read_ready = self._write_ready = False
        self._polls: dict[tuple[bool, bool], select.poll] = {}

    def stop(self) -> None:
        """Let run() end; the caller also makes `wake` readable."""
        self._stopped = True

    def leftover(self) -> int:
        """Nothing is ever left over: see the twin."""
        return -1

    def run(self, look: int = -1) -> tuple[int, int]:
        """Move bytes until an end is reached: EOF, SOURCE, TARGET or STOPPED, with an errno or 0.

        SOURCE and TARGET name the end that failed. With `look` (milliseconds) it also returns, with IDLE, after a wait
        of that long; the next call goes on. Python's signal handlers run in between, and may raise.
        """
        self._look = look if look >= 0 else None
        try:
            self._out, self._piece, own = _not_blocking(self._target)
        except OSError as error:
            return TARGET, error.errno or 0
        try:
            while not self._stopped:
                if self._start < self._end:
                    end = self._write()
                elif self._ended:
                    return SOURCE if self._broken else EOF, self._broken
                else:
                    end = self._wait(True, False)
                    if self._read_ready and not end:
                        self._read()
                if end:
                    return end
            return STOPPED, 0
        finally:
            for pipe in self._inherited:
                pipe.let_go()
            if own:
                os.close(self._out)

    def _read(self) -> None:
        room = self._buffer[self._end : self._end + CHUNK]
        try:
            n = os.readv(self._source, [room])
        except BlockingIOError:
            return
        except OSError as error:
            n, self._broken = 0, error.errno or errno.EIO
        self._end += n
        self._ended = not n
        if n >= self._inherited[0].size / 2:
            self._inherited[0].grow()

    def _write(self) -> tuple[int, int] | None:
        try:
            if self._piece and not self._can_write():
                raise BlockingIOError
            end = min(self._end, self._start + self._piece) if self._piece else self._end
            now = monotonic()
            n = os.write(self._out, self._buffer[self._start : end])
        except BlockingIOError:
            return None if self._inherited[1].grow() else self._make_room()
        except OSError as error:
            return TARGET, error.errno or 0
        self.moved += n
        self.moved_at = now
        if n >= self._inherited[1].size / 2:
            self._inherited[1].grow()
        self._start += n
        if self._start == self._end:
            self._start = self._end = 0
        return None

    def _make_room(self) -> tuple[int, int] | None:
        """Wait for the target and, on the way down, take more in until it has room."""
        eager = self._down and not self._ended and self._end < len(self._buffer)
        end = self._wait(eager, True)
        if end is None and self._read_ready and not self._write_ready:
            self._read()
        return end

    def _can_write(self) -> bool:
        return self._target in self._poll(False, True, 0)

    def _wait(self, source: bool, target: bool) -> tuple[int, int] | None:
        """Until one of the ends asked for is ready."""
        look = self._look
        if not target and any(pipe.is_large for pipe in self._inherited):
            look = REST if look is None else min(look, REST)
        ready = self._poll(source, target, look)
        self._read_ready = self._source in ready
        self._write_ready = self._target in ready
        if not ready:
            self._rest()
            return (IDLE, 0) if look == self._look else None
        if self._wake in ready:
            os.read(self._wake, 64)
        if self._write_ready and not target:  # POLLERR or POLLHUP: nobody reads it any more
            return TARGET, errno.EPIPE
        return None

    def _rest(self) -> None:
        for pipe in self._inherited:
            pipe.shrink()

    def _poll(self, source: bool, target: bool, timeout: int | None) -> dict[int, int]:
        poll = self._polls.get((source, target))
        if poll is None:
            poll = self._polls[source, target] = select.poll()
            poll.register(self._wake, select.POLLIN)
            if target or self._down:
                poll.register(self._target, select.POLLOUT if target else 0)
            if source:
                poll.register(self._source, select.POLLIN)
        return dict(poll.poll(timeout))


def queues(fd: int) -> tuple[int, int]:
    """The bytes in a socket's two queues: received and not read here, sent and not read there. A pipe has the first."""
    return _count(fd, termios.FIONREAD), _count(fd, termios.TIOCOUTQ)


def has_closed(fd: int, wake: int) -> bool:
    """Whether a Unix socket's peer has closed; with `wake` (not -1), wait until it has or until `wake` is readable."""
    poll = select.poll()
    poll.register(fd, 0)
    if wake >= 0:
        poll.register(wake, select.POLLIN)
    return fd in dict(poll.poll(None if wake >= 0 else 0))


def _count(fd: int, request: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, request, bytes(4)), byteorder)
    except OSError:
        return 0  # neither a socket nor a pipe


def _not_blocking(fd: int) -> tuple[int, int, bool]:
    """A descriptor to write to `fd` without blocking, the bytes a write (0: any), and whether it is ours to close."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK:
        return fd, 0, False
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return fd, SOCKET_PIECE, False
    if stat.S_ISFIFO(mode) or os.isatty(fd):
        try:
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # no /proc, or another user's terminal
            return fd, PIPE_PIECE, False
        return own, 0, True
    return fd, 0, False  # a file, or a device that does not block for long
