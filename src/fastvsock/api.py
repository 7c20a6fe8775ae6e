"""The Python interface: `connect`, `open_connection` and `relay`, with the standard library's own socket types."""

import asyncio
import errno
import os
import socket

from . import errors, handshake
from .relaying import Relay, RelayResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .handshake import Path


def connect(uds: "Path", port: int, *, timeout: float | None = 10.0, wait: float = 0.0) -> socket.socket:
    """Connect to guest port `port` through the VMM's Unix socket `uds`.

    `uds` (str, bytes or os.PathLike) is the VMM's ``uds_path``, `port` (int) a number from 0 to 4294967295. `timeout`
    (seconds, more than 0; None and infinity are no limit) bounds an attempt, connecting and handshake together. For
    `wait` (seconds, 0 or more; infinity is for ever) an attempt that failed as one does while the guest boots (no
    socket yet, nobody listening on it, refused, reset, or no answer) is made again. An attempt that can be repeated
    gets less than `timeout`: 1 s at first, doubling each time.

    Returns a blocking stream socket, which carries payload only, from its first byte.

    Raises `TypeError` for a port that is not an int, and, each of them a `FastvsockError`:

    - `PortError`, `DurationError` (both a `ValueError`) for a port or time out of range.
    - `SocketMissingError`, `EmptyPathError` (`FileNotFoundError`): nothing is at the path; the path is empty.
    - `NotASocketError` (`OSError`): something else is there.
    - `SocketPermissionError` (`PermissionError`): the socket may not be used by this user.
    - `StaleSocketError` (`ConnectionRefusedError`): nobody listens on it any more.
    - `PathTooLongError` (`OSError`, `ValueError`): over 107 bytes, where there is no /proc.
    - `GuestRefusedError` (`ConnectionRefusedError`): the VMM closed without an answer; nothing listens on the port.
    - `HandshakeTimeoutError` (`TimeoutError`): no answer in time.
    - `BadReplyError` (`OSError`): an answer that is not hybrid vsock's.
    - `ConnectError` (`OSError`), of which all but the first two are: anything else, such as too many open files.
    """
    return socket.socket(fileno=handshake.connect(uds, port, timeout, wait).detach())


async def open_connection(
    uds: "Path", port: int, *, timeout: float | None = 10.0, wait: float = 0.0
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`connect` for asyncio: a reader and a writer for guest port `port`, as `asyncio.open_unix_connection` has them.

    Parameters and errors are those of `connect`. Cancelling it closes the connection.
    """
    path = os.fsdecode(uds)
    port = handshake.check_port(port)
    retry = handshake.Retry(wait, timeout)
    while True:
        longest = retry.limit()
        sock = handshake.open_socket(socket.socket, path, port)
        try:
            async with asyncio.timeout(longest):
                await _shake(sock, path, port)
            return await asyncio.open_unix_connection(sock=sock)
        except BaseException as error:
            sock.close()
            failure = error
            if type(error) is TimeoutError:
                failure = errors.HandshakeTimeoutError(path, port, f"{longest:g}")
            pause = retry.pause() if isinstance(failure, handshake.NOT_YET) else None
            if pause is None:
                raise failure from None
        await asyncio.sleep(pause)


async def _shake(sock: socket.socket, uds: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    for pause in handshake.shake(sock, uds, port):
        if pause is not None:
            await asyncio.sleep(pause)
            continue
        readable = asyncio.Event()
        loop.add_reader(sock, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(sock)


def relay(
    sock: socket.socket,
    rfd: int,
    wfd: int,
    *,
    linger: float | None = None,
    idle_timeout: float | None = None,
    engine: str | None = None,
) -> RelayResult:
    """Move bytes between the connected stream socket `sock` and two descriptors until the guest closes.

    `rfd` (int) is read until its end and `wfd` (int) written; both, and `sock`, stay open, and their modes are as
    before when it returns. `linger` (seconds, 0 or more; default 0.5): how long nothing may move after the end of `rfd`
    before `sock` is half-closed, which makes Firecracker close it; 0 immediately, infinity never. If `rfd` gives
    nothing at all, the default is never. `idle_timeout` (seconds, more than 0; None is no limit): how long nothing may
    move in either direction, not even in the socket's queues, before the relay is given up. `engine` is ``auto``,
    ``splice`` or ``copy``; the default is FASTVSOCK_ENGINE's, or ``auto``.

    It also returns when nobody reads `wfd` any more; `RelayResult.ended` says which.

    Raises, each of them a `FastvsockError`:

    - `DurationError` (a `ValueError`) for an invalid `linger` or `idle_timeout`.
    - `EngineError` for an engine that is not installed.
    - `ConnectionBrokenError` (`ConnectionError`): the socket broke.
    - `IdleTimeoutError` (`TimeoutError`): nothing moved for `idle_timeout` seconds.
    - `StreamError` (`OSError`): reading `rfd` or writing `wfd` failed, because they are not open for instance.
    - `RelayError` (`OSError`), of which the last three are: the socket is closed, or there is no descriptor or no
      thread left for a relay.
    """
    if linger is not None:
        linger = handshake.seconds("linger", linger)
    if idle_timeout is not None:
        idle_timeout = handshake.seconds("idle_timeout", idle_timeout, allow_zero=False)
    _check_open(sock.fileno(), rfd, wfd)
    timeout = sock.gettimeout()
    try:
        result = Relay(sock, rfd, wfd, linger=linger, idle_timeout=idle_timeout, engine=engine).run()
    finally:
        sock.settimeout(timeout)
    if result.error is not None:
        raise result.error
    return result


def _check_open(sock: int, rfd: int, wfd: int) -> None:
    """Check what poll(2) would wait on for ever: numbers that are not open. Raises `RelayError`."""
    for number, kind, what in (
        (sock, errors.RelayError, "use the socket"),
        (rfd, errors.StreamError, "read the input"),
        (wfd, errors.StreamError, "write the output"),
    ):
        try:
            os.fstat(number)
        except (OSError, OverflowError):
            raise kind(f"cannot {what}: {os.strerror(errno.EBADF)}", errno.EBADF) from None
