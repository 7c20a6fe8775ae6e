"""Frames over the socket of a copy: small ones by the hundred in one call, content inside the kernel where that pays.

The socket does not block. Whoever waits to send takes in what comes meanwhile, so two ends never wait for each other.
"""

import errno
import os
import select

from .. import errors
from .entries import DATA, MAX_DATA, MAX_MESSAGE, header, parse_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    Piece = bytes | memoryview

HEADER = 8
FLUSH = 1 << 17  # bytes of frames that are sent together
PIECES = 1000  # and their number: below IOV_MAX
RECEIVE = MAX_MESSAGE + HEADER
LEAST = 1 << 15  # bytes of content that are worth a splice
PIECE = 1 << 18  # bytes of content that are copied at a time
MSG_MORE = 0x8000
SHUT_RDWR = 2


class BrokenWire(Exception):  # the two ends have errors of their own for it
    """The connection has ended: the argument is an errno, or 0."""


class Wire:
    """`splices` says that the socket is one that content is better spliced through: see engines/exchange.py."""

    def __init__(self, sock: "_socket.socket", *, splices: bool) -> None:
        sock.setblocking(False)
        self._sock, self._fd, self._splices = sock, sock.fileno(), splices
        self._out: list[Piece] = []
        self._held = 0  # bytes of it
        self._buffer = memoryview(bytearray(RECEIVE))
        self._start = self._end = 0
        self._pipe: tuple[int, int] | None = None
        self._piece = memoryview(bytearray(PIECE))
        self._splicing = False  # content is under way, which is better left in the socket
        self.sent = self.received = 0
        self.on_frame: Callable[[int, bytes], None] | None = None  # for what comes while this end sends
        self.before_wait: Callable[[], None] = lambda: None  # before this end waits for more

    def close(self) -> None:
        """Close the pipe, and the socket."""
        self._drop_pipe()
        self._sock.close()

    def cut(self) -> None:
        """End the connection, from another thread."""
        try:
            self._sock.shutdown(SHUT_RDWR)
        except OSError:
            pass  # it has ended

    def _drop_pipe(self) -> None:
        for fd in self._pipe or ():
            os.close(fd)
        self._pipe = None

    # Sending

    def put(self, data: bytes) -> None:
        """Send these frames soon."""
        self._out.append(data)
        self._held += len(data)
        if self._held >= FLUSH or len(self._out) >= PIECES:
            self.flush()

    def flush(self, more: bool = False) -> None:
        """Send them now; `more` follows in a moment."""
        out, self._out, self._held = self._out, [], 0
        self._send(out, MSG_MORE if more else 0)

    def _send(self, pieces: "list[Piece]", flags: int = 0) -> None:
        while pieces:
            try:
                count = self._sock.sendmsg(pieces, (), flags)
            except BlockingIOError:
                self._wait_to_send()
                continue
            except OSError as error:
                raise self._broken(error) from None
            self.sent += count
            pieces = _behind(pieces, count)

    def _broken(self, error: OSError) -> Exception:
        """What the failure to send means: what the other end said last may say more, and is read first."""
        if self.on_frame:
            try:
                while True:
                    self._receive()
                    self._take()
            except (BrokenWire, BlockingIOError):
                pass
        return BrokenWire(error.errno if error.errno != errno.EPIPE else 0)

    def _wait_to_send(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT | (select.POLLIN if self.on_frame else 0))
        if poll.poll()[0][1] & select.POLLIN:
            self.take_answers()

    def take_answers(self) -> None:
        """Deal with what has come, by `on_frame`, without waiting for more."""
        try:
            self._receive()
        except BlockingIOError:
            return
        self._take()

    def wait_for_answers(self) -> None:
        """Send what is to be sent, and wait for more to come, unless a frame came before or meanwhile.

        It may be the last one before the other end waits too, so callers look at what they have after each.
        """
        before = self._dealt_with
        self.flush()
        self._take()  # what came together with a frame that `next` returned
        if self._dealt_with == before:
            self._wait()
            self.take_answers()

    @property
    def _dealt_with(self) -> int:
        return self.received - (self._end - self._start)

    def wait_for_input(self, fd: int) -> None:
        """Wait until the descriptor `fd` has something to read, and deal with answers meanwhile."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if poll.poll(0):
            return
        self.flush()
        poll.register(self._fd, select.POLLIN)
        while fd not in [ready for ready, _ in poll.poll()]:
            self.take_answers()

    def _take(self) -> None:
        assert self.on_frame
        while self._end - self._start >= HEADER:
            kind, length = parse_header(self._buffer, self._start)
            if self._end - self._start < HEADER + length:
                break
            at = self._start + HEADER
            self._start = at + length
            self.on_frame(kind, bytes(self._buffer[at : self._start]))

    def send_content(self, fd: int, offset: int, count: int) -> tuple[int, int]:
        """Send `count` bytes of a file from `offset` on as DATA frames: the bytes that are in frames, and an errno.

        The errno is 0 where all went well, and -1 where the file had no more.

        A frame that has begun is whole: what is missing is sent as zeros, and CLOSE will say that they mean nothing.
        """
        end = offset + count
        begun = 0
        while offset < end:
            size = min(end - offset, MAX_DATA)
            begun += size
            self._out.append(header(DATA, size))
            sent, number = (
                self._spliced_from(fd, offset, size) if self._splices else self._copied_from(fd, offset, size)
            )
            if sent < size:
                self._send([bytes(size - sent)])
                return begun, number or -1
            offset += size
        return begun, 0

    def _spliced_from(self, fd: int, offset: int, size: int) -> tuple[int, int]:
        """Send one frame's content by sendfile(2): how much there was, and an errno."""
        self.flush(more=True)
        sent = 0
        while sent < size:
            try:
                count = os.sendfile(self._fd, fd, offset + sent, size - sent)
            except BlockingIOError:
                self._wait_to_send()
                continue
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                    raise self._broken(error) from None
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                    return sent, error.errno or errno.EIO
                self._splices = False  # this file system, or this sandbox, has no sendfile
                more, number = self._copied_from(fd, offset + sent, size - sent)
                return sent + more, number
            if not count:
                break
            self.sent += count
            sent += count
        return sent, 0

    def _copied_from(self, fd: int, offset: int, size: int) -> tuple[int, int]:
        sent = 0
        while sent < size:
            try:
                count = os.preadv(fd, [self._piece[: size - sent]], offset + sent)
            except OSError as error:
                self.flush()
                return sent, error.errno or errno.EIO
            if not count:
                break
            self.flush(more=True)
            self._send([self._piece[:count]])
            sent += count
        self.flush()
        return sent, 0

    # Receiving

    def _receive(self) -> None:
        """Read what is there. Raises `BlockingIOError` and `BrokenWire`."""
        if self._start:
            left = self._end - self._start
            self._buffer[:left] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, left
        try:
            room = HEADER if self._splicing else RECEIVE - self._end
            count = self._sock.recv_into(self._buffer[self._end : self._end + room])
        except BlockingIOError:
            raise
        except OSError as error:
            raise BrokenWire(error.errno) from None
        if not count:
            raise BrokenWire(0)
        self.received += count
        self._end += count

    def _wait(self, timeout: float | None = None) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            raise TimeoutError

    def _need(self, count: int, timeout: float | None = None) -> None:
        while self._end - self._start < count:
            try:
                self._receive()
            except BlockingIOError:
                self.before_wait()
                self.flush()
                self._wait(timeout)

    def next(self, timeout: float | None = None) -> tuple[int, bytes | int]:
        """The next frame: its type and its bytes; of DATA their number, for `deliver` or `discard` to take them.

        Raises `BrokenWire`, `ProtocolError`, and `TimeoutError` where `timeout` seconds pass without a byte.
        """
        if self._end - self._start < HEADER:
            self._need(HEADER, timeout)
        kind, length = parse_header(self._buffer, self._start)
        self._start += HEADER
        self._splicing = kind == DATA and self._splices and length >= LEAST
        if kind == DATA:
            return kind, length
        if self._end - self._start < length:
            self._need(length, timeout)
        at = self._start
        self._start += length
        return kind, bytes(self._buffer[at : self._start])

    def deliver(self, count: int, fd: int) -> int:
        """Write `count` bytes of content to a file, at its position. An errno, or 0; all of them are taken anyway."""
        while count:
            held = min(count, self._end - self._start)
            if held:
                part = self._buffer[self._start : self._start + held]
                self._start += held
                count -= held
                number = _write(fd, part)
            elif self._splices and count >= LEAST:
                moved, number = self._splice_to(fd, count)
                count -= moved
            else:
                moved = self._receive_content(count)
                count -= moved
                number = _write(fd, self._piece[:moved])
            if number:
                self.discard(count)
                return number
        return 0

    def discard(self, count: int) -> None:
        """Take `count` bytes of content, and drop them."""
        held = min(count, self._end - self._start)
        self._start += held
        count -= held
        while count:
            count -= self._receive_content(count)

    def _receive_content(self, count: int) -> int:
        while True:
            try:
                moved = self._sock.recv_into(self._piece[:count])
            except BlockingIOError:
                self.before_wait()
                self.flush()
                self._wait()
                continue
            except OSError as error:
                raise BrokenWire(error.errno) from None
            if not moved:
                raise BrokenWire(0)
            self.received += moved
            return moved

    def _splice_to(self, fd: int, count: int) -> tuple[int, int]:
        """Move up to `count` bytes from the socket to a file, through a pipe: how many, and an errno."""
        read_end, write_end = self._pipe or self._open_pipe()
        while True:
            try:
                moved = os.splice(self._fd, write_end, count, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
                break
            except BlockingIOError:
                self.before_wait()
                self.flush()
                self._wait()
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP):
                    self._splices = False
                    return 0, 0
                raise BrokenWire(error.errno) from None
        if not moved:
            raise BrokenWire(0)
        self.received += moved
        return moved, self._empty_pipe(read_end, fd, moved)

    def _open_pipe(self) -> tuple[int, int]:
        import fcntl

        self._pipe = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, MAX_DATA)
        except OSError:
            pass  # a user's pipes may only hold so much together
        return self._pipe

    def _empty_pipe(self, read_end: int, fd: int, count: int) -> int:
        while count:
            try:
                count -= os.splice(read_end, fd, count, flags=os.SPLICE_F_MOVE)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP) and self._splices:
                    self._splices = False  # this file system takes no splice
                    return _write(fd, memoryview(os.read(read_end, count)))
                self._drop_pipe()
                return error.errno or errno.EIO
        return 0


def _behind(pieces: "list[Piece]", count: int) -> "list[Piece]":
    """What is left once `count` bytes are sent."""
    for number, piece in enumerate(pieces):
        if count < len(piece):
            return [memoryview(piece)[count:], *pieces[number + 1 :]]
        count -= len(piece)
    return []


def _write(fd: int, data: memoryview) -> int:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def unexpected(kind: int, payload: "bytes | int") -> errors.ProtocolError:
    """The error for a frame that does not belong here."""
    length = payload if isinstance(payload, int) else len(payload)
    return errors.ProtocolError(f"an unexpected message of type {kind} and {length} bytes")
