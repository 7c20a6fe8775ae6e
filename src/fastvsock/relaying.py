"""A relay: two pumps between a connected socket and a pair of descriptors. What ends a relay is decided here.

Up (near end to guest) runs in the calling thread, down (guest to near end) in one of its own, so that a side which
stops reading one way never holds up the other.

The end of *down* ends the relay where the guest has closed, or nobody reads what it says. A guest that has only
half-closed still reads: then the output gets its end of file, and up goes on to the end of input. Firecracker hides a
guest's half-close; Cloud Hypervisor passes it on from 53.0, and so does every ordinary Unix socket. The socket's poll
tells the two apart (see `has_closed`). A TCP socket cannot: its peer's end of file counts as a half-close.

The end of *up* does not end the relay, since the answer may still be on its way; but the guest may be waiting for an
end of its input. A VMM of the Firecracker family takes a half-close for a close of both directions and drops what the
guest had yet to send (vsock/csm/connection.rs), so the relay half-closes only after `linger` seconds in which nothing
moved, neither here nor in the socket's queues. Nothing in the protocol says how a VMM takes a half-close, and neither
does the name of its program (Cloud Hypervisor before 53.0 is of that family), so the relay never assumes the better.

(The module is not called relay, because importing it would put it in the place of the function `fastvsock.relay`.)

To stop a relay is to flag both pumps and to wake each with a descriptor that is in all its polls.
"""

import _socket
import _thread
import errno
import os
import stat
from time import monotonic

from . import errors
from .engines import EOF, IDLE, SOURCE, STOPPED, TARGET, Pump, has_closed, queues
from .stdio import open_null

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    import socket
    from collections.abc import Callable
    from typing import Literal
else:
    import _signal  # signal itself imports enum


NEVER = float("inf")
GONE = (errno.EPIPE, errno.ECONNRESET)  # nobody reads what we write
UNUSABLE = (errno.EBADF, errno.EINVAL, errno.EISDIR)  # what was never an input, in contrast to one that broke
LINGER = 0.5  # seconds
LOOKS = 4  # at what moves, in a time that ends with silence
LONGEST_LOOK = 1e6  # seconds; poll(2) takes 31 bits of milliseconds
LOOK_AGAIN = 1.0  # seconds; a signal that comes just before a wait does not interrupt it
PIECE = 1 << 16  # bytes
NOTICE_AFTER = 3.0  # seconds of silence after end of input that a person at a terminal should have explained
SEND_BUFFER = 1 << 22  # bytes; with 4 MiB a splice up takes a third of the CPU time that it takes with the default
# The same for bytes that are copied, each of which is charged to the process' memory cgroup, twice: 20 stalled uploads
# took 160 MiB with 4 MiB. 1 MiB costs a tenth more CPU time (0.24 to 0.27 s/GiB).
COPIED_SEND_BUFFER = 1 << 20
SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h; SO_SNDBUF where CAP_NET_ADMIN is missing


class RelayResult:
    """What a relay did. Counts are in bytes, times in seconds.

    `sent` and `received` count what was handed to the socket and to the near end's output, `up` and `down` name the
    engine that moved them. `ended` is the reason: ``guest`` (it closed) or ``reader`` (nothing reads the output any
    more).
    Inside this package it may also be ``stopped``, or ``error``: `relay()` raises that `error` instead of returning.
    `cut_off` is True where an answer may be lost: the relay half-closed the socket `linger` seconds after the end of
    input, and the guest ended without a word since, with the last that it was sent unanswered.
    """

    __slots__ = ("cut_off", "down", "ended", "error", "received", "seconds", "sent", "up")

    def __init__(
        self,
        sent: int,
        received: int,
        seconds: float,
        up: str,
        down: str,
        ended: str,
        error: errors.RelayError | None = None,
        cut_off: bool = False,
    ) -> None:
        self.sent, self.received, self.seconds = sent, received, seconds
        self.up, self.down, self.ended, self.error, self.cut_off = up, down, ended, error, cut_off

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"RelayResult({facts})"


class Relay:
    """A relay that can be watched and stopped; `relay()` is the plain function.

    `sock` is a connected stream socket, which the relay sets non-blocking; `rfd` is read until its end, `wfd` written.
    None of them is closed. `linger` is the time in seconds after which silence at the end of input becomes a
    half-close: 0 at once, infinity never; None is `LINGER`, or never if `rfd` had nothing at all to give. After
    `idle_timeout` seconds in which nothing moves the relay ends with `IdleTimeoutError`; None is no limit. `notice` is
    called once if, after the end of input, nothing moves for `NOTICE_AFTER` seconds. `end_output` is called, in down's
    thread, when a guest that still reads has sent its last byte; without it a socket `wfd` is half-closed, and a pipe
    left as it is. `start` starts a thread in place of `_thread.start_new_thread`. Raises `EngineError`, and
    `RelayError` where descriptors are short.
    """

    def __init__(
        self,
        sock: _socket.socket,
        rfd: int,
        wfd: int,
        *,
        linger: float | None = None,
        idle_timeout: float | None = None,
        engine: str | None = None,
        notice: "Callable[[], object] | None" = None,
        end_output: "Callable[[], object] | None" = None,
        start: "Callable[[Callable[[], object], tuple[()]], object] | None" = None,
    ) -> None:
        self._sock, self._linger, self._notice = sock, linger, notice
        self._idle_timeout = NEVER if idle_timeout is None else idle_timeout
        self._start = start or _thread.start_new_thread
        self._near, self._engine = (rfd, wfd), engine
        self._end_output = end_output or (lambda: half_close(wfd))
        self._up_is_over = self._guest_is_silent = self._stopped = False
        self._has_half_closed = self._is_reader_gone = False
        self._near_tcp: socket.socket | Literal[False] | None = None  # None: not looked at yet
        self._woken = self._wakeup = self._down_woken = -1
        sock.setblocking(False)
        try:
            # Not a pipe, whose pages every idle relay would take from its user's budget; nor an eventfd, since Python
            # writes the numbers of signals as single bytes.
            self._woken, self._wakeup = map(_not_blocking, _socket.socketpair())
            self._down_woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            self.close()
            raise errors.RelayError(
                f"cannot open a descriptor for the relay: {error.strerror}", error.errno or 0
            ) from None
        try:
            self._up = Pump(rfd, sock.fileno(), self._woken, engine=engine)
            self._down = Pump(sock.fileno(), wfd, self._down_woken, down=True, engine=engine)
        except BaseException:
            self.close()
            raise
        raise_send_buffer(sock, SEND_BUFFER if self._up.engine == "splice" else COPIED_SEND_BUFFER)
        self._down_running = _thread.allocate_lock()
        self._down_end: tuple[int, int] = STOPPED, 0
        self._down_failure: BaseException | None = None
        self._seen = 0, 0
        self._looked_at: tuple[int, ...] = ()
        self._looked = self._still = 0.0
        self._idle = False

    @property
    def sent(self) -> int:
        """Bytes handed to the socket so far."""
        return self._up.moved

    @property
    def received(self) -> int:
        """Bytes handed to the near end's output so far."""
        return self._down.moved

    def stop(self) -> None:
        """End run() soon, from any thread or from a signal handler."""
        self._stopped = True
        self._wake()

    def run(self) -> RelayResult:
        """Relay until the guest closes, nobody reads `wfd`, an end fails, or `stop`. To be called once."""
        started = self._looked = monotonic()
        self._down_running.acquire()
        try:
            self._start(self._run_down, ())
        except RuntimeError as error:
            raise errors.RelayError(f"cannot relay: {error}", errno.EAGAIN) from None
        for_signals = _wake_on_signals(self._wakeup)
        try:
            try:
                up = self._run_up()
            finally:
                self._up_is_over = True  # said before the other thread is woken, also where a signal's handler raised
            if up[0] != STOPPED and not (self._guest_is_silent or self._is_near_end_gone(*up)):
                self._await_down(self._patience(up[0]))
        finally:
            if for_signals:
                _signal.set_wakeup_fd(-1)
            self._wake()
            self._down_running.acquire()
        if self._down_failure is not None:
            raise self._down_failure
        ended, failure = self._verdict(*up, *self._down_end)
        seconds = monotonic() - started
        engines = self._up.engine, self._down.engine
        return RelayResult(self.sent, self.received, seconds, *engines, ended, failure, self._is_cut_off(ended))

    def close(self) -> None:
        """Close the relay's own descriptors, not those that it was given. Also done when the last reference goes."""
        numbers = self._woken, self._wakeup, self._down_woken
        self._woken = self._wakeup = self._down_woken = -1
        for number in numbers:
            if number >= 0:
                os.close(number)

    __del__ = close

    def _run_up(self) -> tuple[int, int]:
        if self._idle_timeout == NEVER:
            return self._up.run()
        look = max(int(min(self._idle_timeout, LONGEST_LOOK) * 1000 / LOOKS), 1)
        while (up := self._up.run(look))[0] == IDLE:
            if self._is_idle():
                self._up.stop()
                return self._up.run()  # it ends, and gives back what it has taken of the pipes' budget
        return up

    def _is_idle(self) -> bool:
        """Whether nothing has moved for `idle_timeout`; to be asked often, since it compares with the last look.

        A change in the queue of the socket or of the output is movement too: the guest, or the reader, takes what it
        was given. A queue that stands still is not, however full. Time in which this process itself was stopped does
        not count, as far as it goes beyond the time between two looks.
        """
        now = monotonic()
        found = (self.sent, self.received, *queues(self._sock.fileno(), self._engine), self._unread_output())
        if found == self._looked_at:
            self._still += min(now - self._looked, 2 * self._idle_timeout / LOOKS)
        else:
            self._still = 0.0
        self._looked_at, self._looked = found, now
        self._idle = self._still >= self._idle_timeout
        return self._idle

    def _unread_output(self) -> int:
        """The bytes in `wfd` that its reader has yet to take, where the kernel counts them: in sockets and pipes."""
        wfd = self._near[1]
        unread, unsent = queues(wfd, self._engine)
        return unsent if stat.S_ISSOCK(os.fstat(wfd).st_mode) else unread

    def _run_down(self) -> None:
        try:
            self._down_end = self._down.run()
            if self._down_end[0] == EOF and not has_closed(self._sock.fileno(), engine=self._engine):
                self._outlive_half_close()
            self._after_down(*self._down_end)
        except BaseException as failure:
            self._down_failure = failure
        finally:
            self._wake()
            self._down_running.release()

    def _outlive_half_close(self) -> None:
        """The guest sends no more, and still reads: wait until it closes, or until up is over as well."""
        self._guest_is_silent = True
        self._end_output()
        if not self._up_is_over:
            self._await_close()

    def _await_close(self) -> None:
        """Wait until a guest that has half-closed closes, or until the relay is woken."""
        has_closed(self._sock.fileno(), self._down_woken, self._engine)

    def _is_near_end_gone(self, end: int, error: int) -> bool:
        """Whether up ended in a way that leaves nobody to read an answer, or that shows wrong use."""
        return end == SOURCE and (error in UNUSABLE or os.path.sameopenfile(*self._near))

    def _patience(self, end: int) -> float:
        """Seconds of silence from the end of input to the half-close."""
        if end == TARGET:
            return NEVER  # nothing can be sent any more, so a half-close would change nothing
        if self._linger is None:
            return LINGER if self.sent else NEVER
        return self._linger

    def _await_down(self, linger: float) -> None:
        """Wait for the end of down; half-close once nothing has moved for `linger` seconds."""
        self._has_moved()
        since = monotonic()
        while not self._is_deserted():
            silence = monotonic() - since
            if self._idle_timeout != NEVER and self._is_idle():
                return
            if silence >= linger:
                self._half_close()
                linger = NEVER
            if self._notice and silence >= NOTICE_AFTER:
                self._notice()
                self._notice = None
            due = min(linger, NOTICE_AFTER if self._notice else NEVER)
            # To look several times finds what moves through the socket's queues, where no pump sees it.
            timeout = max(min(due / LOOKS, due - silence, self._idle_timeout / LOOKS, LOOK_AGAIN), 0.001)
            if self._down_running.acquire(timeout=timeout):
                return self._down_running.release()
            if self._has_moved():
                since = monotonic()

    def _after_down(self, end: int, error: int) -> None:
        """Called in down's thread when its pump has ended, before the relay learns of it."""

    def _is_deserted(self) -> bool:
        """Whether what the guest has yet to say is for nobody, asked after the end of input.

        Of a TCP socket, since its peer sends no more when it closes than when it half-closes; every other kind of
        output shows that its reader has gone.
        """
        if self._near_tcp is None:
            self._near_tcp = _tcp_socket(*self._near)
        if not self._near_tcp:
            return False
        from .host.sock_diag import is_closed

        self._is_reader_gone = is_closed(self._near_tcp)
        return self._is_reader_gone

    def _has_moved(self) -> bool:
        """Whether anything has moved since the last look, or waits in the socket's queues, which counts as activity.

        What waits there for the near end's reader, the guest has sent. What waits for the guest, it has yet to read,
        and could not see a half-close before.
        """
        unread, unsent = queues(self._sock.fileno(), self._engine)
        before, self._seen = self._seen, (self.sent, self.received)
        return unread > 0 or unsent > 0 or before != self._seen

    def _is_cut_off(self, ended: str) -> bool:
        """See `RelayResult`. Not where `linger` is 0, which asks for a half-close that waits for no answer."""
        unanswered = not self.received or self._down.moved_at < self._up.moved_at
        return ended == "guest" and self._has_half_closed and self._linger != 0 and unanswered

    def _half_close(self) -> None:
        self._has_half_closed = True
        try:
            self._sock.shutdown(_socket.SHUT_WR)
        except OSError:
            pass  # it is closed already, and down will see that

    def _verdict(self, up: int, up_error: int, down: int, down_error: int) -> "tuple[str, errors.RelayError | None]":
        """Why the relay ended, from how its pumps did."""
        if self._stopped:
            return "stopped", None
        if self._idle:
            return "error", errors.IdleTimeoutError(
                f"nothing moved for {self._idle_timeout:g} s, after {self.sent} bytes up and {self.received} down: "
                "the VMM may be paused, or one side has stopped reading",
                errno.ETIMEDOUT,
            )
        if self._is_reader_gone or (down == TARGET and down_error in GONE):
            return "reader", None
        if down == TARGET:
            return "error", errors.StreamError(f"cannot write the output: {os.strerror(down_error)}", down_error)
        if up == SOURCE and up_error in GONE and os.path.sameopenfile(*self._near):
            return "reader", None  # one socket for both: who reads it wrote it too
        if up == SOURCE:
            return "error", errors.StreamError(f"cannot read the input: {os.strerror(up_error)}", up_error)
        if down == SOURCE or up == TARGET:
            number = down_error if down == SOURCE else up_error
            return "error", errors.ConnectionBrokenError(
                f"the connection to the guest broke ({os.strerror(number)}) after {self.sent} bytes up and "
                f"{self.received} down: its other end was closed, or killed, before it had read everything",
                number,
            )
        return "guest", None

    def _wake(self) -> None:
        self._up.stop()
        self._down.stop()
        if self._wakeup < 0:
            return  # it has ended
        try:
            os.eventfd_write(self._down_woken, 1)
            os.write(self._wakeup, b"\0")
        except BlockingIOError:
            pass  # full of signals, and so readable


def _not_blocking(sock: _socket.socket) -> int:
    sock.setblocking(False)
    return sock.detach()


def _tcp_socket(rfd: int, wfd: int) -> "socket.socket | Literal[False]":
    """The TCP socket that both descriptors are, or False."""
    if not (stat.S_ISSOCK(os.fstat(wfd).st_mode) and os.path.sameopenfile(rfd, wfd)):
        return False
    import socket

    sock = socket.socket(fileno=os.dup(wfd))
    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
        return sock
    sock.close()
    return False


def half_close(fd: int) -> None:
    """Half-close `fd` if it is a socket: its peer reads an end of file, whoever else has the socket open."""
    try:
        sock = _socket.socket(fileno=os.dup(fd))
    except OSError:
        return  # not a socket
    try:
        sock.shutdown(_socket.SHUT_WR)
    except OSError:
        pass  # its peer has gone
    finally:
        sock.close()


def end_output(fd: int) -> None:
    """Let the reader of `fd` read an end of file, while the number stays taken: the relay still has it."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        return half_close(fd)  # closing it would do nothing where another descriptor is the same socket
    null = open_null(write=True)
    os.dup2(null, fd, inheritable=False)
    os.close(null)


def _wake_on_signals(fd: int) -> bool:
    """Let Python's signals write to `fd`, so that a signal just before a poll ends that poll.

    Not so in another thread than the main one, which handles no signals, and where a program has a use of its own for
    what its signals write.
    """
    try:
        before = _signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    except ValueError:
        return False
    if before != -1:
        _signal.set_wakeup_fd(before)
    return before == -1


def raise_send_buffer(sock: _socket.socket, size: int = SEND_BUFFER) -> None:
    """Let `sock` hold `size` bytes for a guest that has yet to read them, best effort."""
    if sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF) >= size:
        return
    for option in (SO_SNDBUFFORCE, _socket.SO_SNDBUF):
        try:
            return sock.setsockopt(_socket.SOL_SOCKET, option, size)
        except OSError:
            continue
