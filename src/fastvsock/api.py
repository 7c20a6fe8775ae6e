"""The Python interface: `connect`, `open_connection` and `relay`, with the standard library's own socket types."""

import asyncio
import os
import socket

from . import errors, handshake
from .relaying import Relay, RelayResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .handshake import Path


def connect(uds: "Path", port: int, *, timeout: float = 10.0, wait: float = 0.0) -> socket.socket:
    """Connect to guest port `port` through the VMM's Unix socket `uds`.

    The socket returned is blocking and carries payload only, from its first byte. `timeout` (seconds) bounds
    connecting and handshake together; for `wait` seconds an attempt that failed as one does while the guest boots is
    made again. Raises `PortError` (a `ValueError`) or a subclass of `ConnectError` (an `OSError`).
    """
    return socket.socket(fileno=handshake.connect(uds, port, timeout, wait).detach())


async def open_connection(
    uds: "Path", port: int, *, timeout: float = 10.0, wait: float = 0.0
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`connect` for asyncio: a reader and a writer for guest port `port`, as `asyncio.open_unix_connection` has them.

    Parameters and errors are those of `connect`. Cancelling it closes the connection.
    """
    path = os.fsdecode(uds)
    port = handshake.parse_port(port)
    retry = handshake.Retry(wait)
    while True:
        sock = handshake.open_socket(socket.socket, path, port)
        try:
            async with asyncio.timeout(timeout):
                await _shake(sock, path, port)
            return await asyncio.open_unix_connection(sock=sock)
        except BaseException as error:
            sock.close()
            if type(error) is TimeoutError:
                raise errors.HandshakeTimeoutError(path, port, f"{timeout:g}") from None
            pause = retry.pause() if isinstance(error, handshake.NOT_YET) else None
            if pause is None:
                raise
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
    engine: str | None = None,
) -> RelayResult:
    """Move bytes between the connected stream socket `sock` and two descriptors until the guest closes.

    `rfd` is read until its end and `wfd` written; both, and `sock`, stay open, and their modes are as before when it
    returns. `linger` (seconds, default 0.5): how long nothing may move after the end of `rfd` before `sock` is
    half-closed, which makes a VMM close it; 0 at once, infinity never. If `rfd` gives nothing at all, the default is
    never. `engine` is ``auto``, ``splice`` or ``copy``; the default is FASTVSOCK_ENGINE's, or ``auto``.

    It also returns when nobody reads `wfd` any more; `RelayResult.ended` tells. Raises `ConnectionBrokenError` when
    the socket breaks, `StreamError` when reading `rfd` or writing `wfd` fails, `EngineError` for an engine that is
    not there.
    """
    timeout = sock.gettimeout()
    try:
        result = Relay(sock, rfd, wfd, linger=linger, engine=engine).run()
    finally:
        sock.settimeout(timeout)
    if result.error is not None:
        raise result.error
    return result
