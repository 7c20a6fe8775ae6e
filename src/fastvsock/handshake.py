"""The hybrid vsock handshake: `request` and `parse_reply` know the bytes, `connect` brings them to a socket.

``CONNECT <port>\\n`` must leave in one write: Firecracker reads it with one non-blocking read and refuses a line that
comes in two pieces. ``OK <n>\\n`` comes back, n being the host-side port that the VMM chose, ten digits at most.
Payload may lie right behind the newline, in the same segment: the reply is looked at with MSG_PEEK and only its own
bytes are taken off the socket. A refusal has no words: the VMM closes or resets.

Only what every start of the command needs is imported: `_socket` instead of `socket`, and no `select`.
"""

import _socket
import errno
import os
import stat
from time import monotonic, sleep

from . import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike
    from typing import TypeVar

    Path = str | bytes | PathLike[str] | PathLike[bytes]
    Socket = TypeVar("Socket", bound=_socket.socket)

MAX_PORT = 0xFFFFFFFF
MAX_REPLY = len(b"OK 4294967295\n")
FOREVER = 1e9  # seconds, 31 years; the clocks of sockets, locks and event loops take no infinity
LONGEST_WAIT = 1e6  # seconds; a socket's timeout has 31 bits for its milliseconds
RETRY_FIRST, RETRY_LAST = 0.02, 0.5  # seconds between the attempts of `wait`, doubling
SHORT_FIRST = 1.0  # seconds for the first attempt that may be made again, doubling with each
NOT_YET = (
    errors.SocketMissingError,
    errors.StaleSocketError,
    errors.GuestRefusedError,
    errors.HandshakeTimeoutError,
)


def parse_port(text: "str | int") -> int:
    """The guest port that `text` names. Raises `PortError` if it is not a number from 0 to 4294967295."""
    digits = str(text)
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) <= MAX_PORT):
        raise errors.PortError(text)
    return int(digits)


def check_port(port: int) -> int:
    """The guest port that a program gave. Raises `TypeError` for anything but an int, and `PortError`."""
    if isinstance(port, bool) or not hasattr(port, "__index__"):
        raise TypeError(f"invalid guest port {port!r}: expected an int from 0 to {MAX_PORT}")
    return parse_port(int(port))


def seconds(name: str, value: float, *, allow_zero: bool = True) -> float:
    """`value`, at most `FOREVER`. Raises `DurationError` if it is not a number of 0 or more, or of more than 0."""
    if not isinstance(value, (int, float)) or not (value > 0 or (allow_zero and value == 0)):  # neither holds for NaN
        raise errors.DurationError(name, value, "0 or more" if allow_zero else "more than 0")
    return float(min(value, FOREVER))


def limit(timeout: "float | None") -> float:
    """Seconds for an attempt; None means no limit, as for sockets. Raises `DurationError`."""
    return FOREVER if timeout is None else seconds("timeout", timeout, allow_zero=False)


def request(port: int) -> bytes:
    """The line that asks for `port`; it must be sent in one write."""
    return b"CONNECT %d\n" % port


def parse_reply(data: bytes) -> "int | None":
    """The length in bytes of the reply line that `data` begins with, or None while it is incomplete.

    Raises `ValueError` as soon as `data` cannot become ``OK <n>\\n`` any more.
    """
    line, newline, _ = data.partition(b"\n")
    word, digits = line[:3], line[3:]
    if not b"OK ".startswith(word) or (digits and not digits.isdigit()) or len(line) >= MAX_REPLY:
        raise ValueError("not a reply")
    if not newline:
        return None
    if not digits:
        raise ValueError("not a reply")
    return len(line) + 1


class Retry:
    """The attempts of `wait` seconds from now on: how long each may take, and the pauses in between.

    A guest that was just restored, or is between bind and listen, may leave an attempt without any answer, and answer
    the next one: so an attempt that can be repeated is short. Raises `DurationError`.
    """

    def __init__(self, wait: float, timeout: "float | None") -> None:
        self._timeout = limit(timeout)
        self._give_up = monotonic() + seconds("wait", wait)
        self._next, self._short = RETRY_FIRST, SHORT_FIRST

    def limit(self) -> float:
        """Seconds for the attempt that begins now: all of `timeout` if it is the last."""
        short = self._short
        self._short = 2 * short
        return self._timeout if self._give_up - monotonic() <= short else min(self._timeout, short)

    def pause(self) -> "float | None":
        """Seconds to pause before the next attempt, or None if the one that failed was the last."""
        left = self._give_up - monotonic()
        if left <= 0:
            return None
        pause = min(self._next, left)
        self._next = min(2 * self._next, RETRY_LAST)
        return pause


def connect(uds: "Path", port: int, timeout: "float | None" = 10.0, wait: float = 0.0) -> _socket.socket:
    """Connect to `port` of the guest behind the Unix socket `uds`; the socket returned carries payload only.

    `timeout` (seconds, more than 0; None is no limit) bounds each attempt, connecting and handshake together. For
    `wait` seconds an attempt that failed as one does while a guest boots (no socket yet, nobody listening on it,
    refused, reset, or no answer) is made again; one that can be repeated gets less than `timeout`. Raises `TypeError`,
    `PortError`, `DurationError`, or the subclass of `ConnectError` that names the cause.
    """
    path = os.fsdecode(uds)
    port = check_port(port)
    retry = Retry(wait, timeout)
    while True:
        try:
            return _attempt(path, port, retry.limit())
        except NOT_YET:
            pause = retry.pause()
            if pause is None:
                raise
        sleep(pause)


def _attempt(uds: str, port: int, timeout: float) -> _socket.socket:
    sock = open_socket(_socket.socket, uds, port)
    deadline = monotonic() + timeout
    try:
        for pause in shake(sock, uds, port):
            left = deadline - monotonic()
            if left <= 0:
                raise TimeoutError
            if pause is None:
                _await_data(sock, left)
            else:
                sleep(min(pause, left))
        sock.setblocking(True)
    except BaseException as error:
        sock.close()
        if type(error) is TimeoutError:
            raise errors.HandshakeTimeoutError(uds, port, f"{timeout:g}") from None
        raise
    return sock


def _await_data(sock: _socket.socket, timeout: float) -> None:
    sock.settimeout(min(timeout, LONGEST_WAIT))
    try:
        sock.recv(1, _socket.MSG_PEEK)
    except (ConnectionError, TimeoutError):
        pass  # the next recv meets the end of the stream, which says as much; and the caller has the clock
    sock.setblocking(False)


def open_socket(kind: "type[Socket]", uds: str, port: int) -> "Socket":
    """A Unix stream socket that does not block, of the class `kind`, to reach `uds` with. Raises `ConnectError`."""
    if not uds:  # an empty address would mean another thing: unix(7), autobind
        raise errors.EmptyPathError(uds, port)
    try:
        sock = kind(_socket.AF_UNIX, _socket.SOCK_STREAM)
    except OSError as error:
        raise _unnamed(uds, port, error) from None
    sock.setblocking(False)
    return sock


def _unnamed(uds: str, port: int, error: OSError) -> errors.ConnectError:
    """A failure without a class of its own; its errno distinguishes a passing shortage from a lasting cause."""
    failure = errors.ConnectError(uds, port, error.strerror or str(error))
    failure.errno = error.errno
    return failure


def shake(sock: _socket.socket, uds: str, port: int) -> "Iterator[float | None]":
    """Connect `sock`, which does not block, to the UDS and ask for `port`.

    Yields whenever there is nothing to do but wait: None until `sock` is readable, or the seconds to pause. Raises a
    subclass of `ConnectError`. The caller keeps the time.
    """
    try:
        yield from _reach(sock, uds, port)
        sock.send(request(port))
        yield from _read_reply(sock, uds, port)
    except (ConnectionResetError, BrokenPipeError):
        raise errors.GuestRefusedError(uds, port) from None
    except OSError as error:
        if isinstance(error, errors.ConnectError):
            raise
        raise _unnamed(uds, port, error) from None


def _reach(sock: _socket.socket, uds: str, port: int) -> "Iterator[float]":
    held = None
    try:
        address, held = shortened(uds, port)
        while True:
            try:
                return sock.connect(address)
            except BlockingIOError:
                yield RETRY_FIRST  # the listener's backlog is full: unix_stream_connect() says EAGAIN
    except (FileNotFoundError, NotADirectoryError):
        raise errors.SocketMissingError(uds, port) from None
    except PermissionError:
        raise errors.SocketPermissionError(uds, port) from None
    except ConnectionRefusedError:
        kind = _kind(uds)
        if kind:  # connect(2) refuses a regular file with the same errno
            raise errors.NotASocketError(uds, port, kind) from None
        raise errors.StaleSocketError(uds, port) from None
    except OSError as error:
        if error.errno == errno.EPROTOTYPE:
            raise errors.NotASocketError(uds, port, "a datagram or sequenced-packet socket") from None
        raise
    finally:
        if held is not None:
            os.close(held)


def shortened(uds: str, port: int) -> "tuple[bytes, int | None]":
    """An address for connect(2) that fits, and a descriptor to keep open until then: a long path goes through /proc."""
    path = os.fsencode(uds)
    if len(path) <= errors.SUN_PATH_MAX:
        return path, None
    held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    link = b"/proc/self/fd/%d" % held
    if not os.path.lexists(link):
        os.close(held)
        raise errors.PathTooLongError(uds, port)
    return link, held


def _kind(uds: str) -> str:
    """Describe what is at the path if it is not a socket; empty for a socket."""
    try:
        mode = os.stat(uds).st_mode
    except OSError:
        return ""
    names = {stat.S_IFREG: "a regular file", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO"}
    return "" if stat.S_ISSOCK(mode) else names.get(stat.S_IFMT(mode), "a device")


def _read_reply(sock: _socket.socket, uds: str, port: int) -> "Iterator[None]":
    """Take the reply off `sock`, and not a byte of what lies behind it."""
    seen = b""
    while True:
        yield None
        try:
            ahead = sock.recv(MAX_REPLY, _socket.MSG_PEEK)
        except BlockingIOError:
            continue
        if not ahead:
            raise errors.GuestRefusedError(uds, port)
        try:
            length = parse_reply(seen + ahead)
        except ValueError:
            raise errors.BadReplyError(uds, port, repr((seen + ahead).decode("latin-1"))) from None
        seen += sock.recv(len(ahead) if length is None else length - len(seen))
        if len(seen) == length:
            return
