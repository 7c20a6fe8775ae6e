"""`connect` and `open_connection`: what they take, what they raise, and what cancelling does."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import fastvsock
from fastvsock import handshake
from support import HANG, Listener, descriptors, pattern, read_exactly

PORT = 5003


def connect(uds: Any, port: int, **options: Any) -> bytes:
    """All that a guest says, by `connect`."""
    with fastvsock.connect(uds, port, **options) as sock:
        assert type(sock) is socket.socket
        assert sock.getblocking()
        sock.settimeout(HANG)
        sock.sendall(b"up")
        parts = []
        while part := sock.recv(1 << 16):
            parts.append(part)
        return b"".join(parts)


def open_connection(uds: Any, port: int, **options: Any) -> bytes:
    """All that a guest says, by `open_connection`."""

    async def main() -> bytes:
        reader, writer = await fastvsock.open_connection(uds, port, **options)
        assert type(reader) is asyncio.StreamReader
        assert type(writer) is asyncio.StreamWriter
        writer.write(b"up")
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
        return data

    return asyncio.run(main())


Dial = Callable[..., bytes]


@pytest.fixture(params=[connect, open_connection], ids=lambda dial: dial.__name__)
def dial(request: pytest.FixtureRequest) -> Iterator[Dial]:
    """Either way to connect; afterwards no descriptor may be left."""
    before = descriptors()
    yield request.param
    assert set(descriptors().values()) <= set(before.values())


def guest(listener: Listener, answer: bytes, refusals: int = 0) -> bytes:
    """The VMM's side: refuse some connections, answer one, and tell what it said first."""
    for _ in range(refusals):
        refuse(listener)
    with listener.accept(answer) as connection:
        connection.setblocking(True)
        return read_exactly(connection.fileno(), 2)


def refuse(listener: Listener) -> None:
    """The VMM's side: close without a word."""
    listener.accept(b"").close()


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_what_lies_behind_the_handshake_line_is_read_first(
    size: int, dial: Dial, listener: Listener, pool: ThreadPoolExecutor
) -> None:
    vmm = pool.submit(guest, listener, b"OK 1073741824\n" + pattern(size))
    assert dial(listener.uds, PORT) == pattern(size)
    assert vmm.result(HANG) == b"up"


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_a_path_may_be_text_bytes_or_path(
    kind: Callable[[str], Any], dial: Dial, listener: Listener, pool: ThreadPoolExecutor
) -> None:
    vmm = pool.submit(guest, listener, b"OK 1\ndown")
    assert dial(kind(listener.uds), PORT) == b"down"
    assert vmm.result(HANG) == b"up"


def test_wait_makes_refused_attempts_again(dial: Dial, listener: Listener, pool: ThreadPoolExecutor) -> None:
    vmm = pool.submit(guest, listener, b"OK 1\ndown", refusals=3)
    assert dial(listener.uds, PORT, wait=HANG) == b"down"
    assert vmm.result(HANG) == b"up"


def test_without_wait_a_refusal_is_final(dial: Dial, listener: Listener, pool: ThreadPoolExecutor) -> None:
    pool.submit(refuse, listener)
    with pytest.raises(fastvsock.GuestRefusedError) as caught:
        dial(listener.uds, PORT)
    assert isinstance(caught.value, ConnectionRefusedError)
    assert (caught.value.uds, caught.value.port) == (listener.uds, PORT)


def test_a_wait_that_is_over_raises_the_last_cause(dial: Dial, tmp_path: Path) -> None:
    before = time.monotonic()
    with pytest.raises(fastvsock.SocketMissingError):
        dial(tmp_path / "v.sock", PORT, wait=0.3)
    assert time.monotonic() - before >= 0.3


def test_no_answer_is_a_timeout(dial: Dial, listener: Listener) -> None:
    with pytest.raises(fastvsock.HandshakeTimeoutError, match=r"within 0\.2 s") as caught:
        dial(listener.uds, PORT, timeout=0.2)
    assert isinstance(caught.value, TimeoutError)


def test_a_full_backlog_is_a_timeout(dial: Dial, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as only:
        full.bind(str(tmp_path / "full.sock"))
        full.listen(0)
        only.connect(full.getsockname())
        with pytest.raises(fastvsock.HandshakeTimeoutError):
            dial(full.getsockname(), PORT, timeout=0.2)


@pytest.mark.parametrize(
    "timeout", [None, float("inf"), 1e30, 10**400, 5e6], ids=["None", "inf", "1e30", "1e400", "5e6"]
)
def test_a_timeout_may_be_as_long_as_one_likes(
    timeout: Any, dial: Dial, listener: Listener, pool: ThreadPoolExecutor
) -> None:
    vmm = pool.submit(guest, listener, b"OK 1\ndown")
    assert dial(listener.uds, PORT, timeout=timeout) == b"down"
    assert vmm.result(HANG) == b"up"


def test_a_timeout_longer_than_a_socket_can_wait_is_waited_for_in_parts(
    listener: Listener, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "LONGEST_WAIT", 0.01)

    def late() -> bytes:
        connection = listener.accept(b"")
        time.sleep(0.3)
        with connection:
            connection.sendall(b"OK 1\n")
            return connection.recv(2)

    vmm = pool.submit(late)
    assert connect(listener.uds, PORT, timeout=None) == b""
    assert vmm.result(HANG) == b"up"


@pytest.mark.parametrize("timeout", [float("nan"), 0, -1, float("-inf"), "5"])
def test_a_timeout_that_is_none_is_a_value_error(timeout: Any, dial: Dial, listener: Listener) -> None:
    with pytest.raises(fastvsock.DurationError, match=r"invalid timeout .*: expected seconds, more than 0") as caught:
        dial(listener.uds, PORT, timeout=timeout)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("wait", [float("nan"), -1, float("-inf"), None])
def test_a_wait_that_is_none_is_a_value_error(wait: Any, dial: Dial, listener: Listener) -> None:
    with pytest.raises(fastvsock.DurationError, match=r"invalid wait .*: expected seconds, 0 or more"):
        dial(listener.uds, PORT, wait=wait)


@pytest.mark.parametrize("wait", [float("inf"), 1e30])
def test_a_wait_may_be_endless(wait: float, dial: Dial, listener: Listener, pool: ThreadPoolExecutor) -> None:
    vmm = pool.submit(guest, listener, b"OK 1\ndown", refusals=2)
    assert dial(listener.uds, PORT, wait=wait) == b"down"
    assert vmm.result(HANG) == b"up"


def test_an_empty_path_is_told_as_such_and_not_waited_for(dial: Dial) -> None:
    with pytest.raises(fastvsock.EmptyPathError, match="path of the UDS is empty") as caught:
        dial("", PORT, wait=HANG)
    assert isinstance(caught.value, FileNotFoundError)  # as of open("")


def test_an_answer_that_is_not_ok_is_a_bad_reply(dial: Dial, listener: Listener, pool: ThreadPoolExecutor) -> None:
    vmm = pool.submit(listener.accept, b"SSH-2.0-dropbear\r\n")
    with pytest.raises(fastvsock.BadReplyError, match="SSH-2"):
        dial(listener.uds, PORT)
    vmm.result(HANG).close()


def test_what_is_at_the_path_has_its_own_error(dial: Dial, listener: Listener, tmp_path: Path) -> None:
    with pytest.raises(fastvsock.SocketMissingError) as missing:
        dial(tmp_path / "none", PORT)
    assert isinstance(missing.value, FileNotFoundError)
    with pytest.raises(fastvsock.NotASocketError, match="a directory") as directory:
        dial(tmp_path, PORT)
    assert isinstance(directory.value, OSError)
    listener.close()
    with pytest.raises(fastvsock.StaleSocketError) as stale:
        dial(listener.uds, PORT)
    assert isinstance(stale.value, ConnectionRefusedError)


@pytest.mark.parametrize("port", ["22", b"22", 22.0, True, None])
def test_a_port_that_is_not_an_int_is_a_type_error(port: Any, dial: Dial, listener: Listener) -> None:
    with pytest.raises(TypeError, match=r"invalid guest port .*: expected an int from 0 to 4294967295"):
        dial(listener.uds, port)


@pytest.mark.parametrize("port", [-1, 2**32])
def test_a_port_out_of_range_is_a_value_error(port: Any, dial: Dial, listener: Listener) -> None:
    with pytest.raises(ValueError, match="invalid guest port"):
        dial(listener.uds, port)


def test_cancelling_open_connection_closes_it(listener: Listener, pool: ThreadPoolExecutor) -> None:
    async def main() -> socket.socket:
        task = asyncio.create_task(fastvsock.open_connection(listener.uds, PORT, timeout=HANG))
        connection = await asyncio.wrap_future(pool.submit(listener.accept, b""))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return connection

    before = descriptors()
    with asyncio.run(main()) as connection:
        assert connection.recv(1) == b""
    assert set(descriptors().values()) <= set(before.values())


def test_a_timeout_around_open_connection_keeps_its_own_meaning(listener: Listener) -> None:
    async def main() -> None:
        async with asyncio.timeout(0.2):
            await fastvsock.open_connection(listener.uds, PORT, timeout=HANG)

    with pytest.raises(TimeoutError) as caught:
        asyncio.run(main())
    assert type(caught.value) is TimeoutError


def test_the_loop_runs_while_open_connection_waits(tmp_path: Path) -> None:
    async def main() -> int:
        attempt = asyncio.create_task(fastvsock.open_connection(tmp_path / "v.sock", PORT, wait=0.3))
        turns = 0
        while not attempt.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert isinstance(attempt.exception(), fastvsock.SocketMissingError)
        return turns

    assert asyncio.run(main()) > 5
