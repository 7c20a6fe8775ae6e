"""The attempts to connect: how long each may take, and what one leaves behind."""

import errno
import inspect
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

import fastvsock
from fastvsock import errors, handshake
from support import Listener, descriptors

PORT = 5003


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the handshake sees, in seconds; a test may set it."""
    now = [1000.0]
    monkeypatch.setattr(handshake, "monotonic", lambda: now[0])
    return now


def test_by_default_the_only_attempt_has_ten_seconds() -> None:
    for connect in handshake.connect, fastvsock.connect, fastvsock.open_connection:
        parameters = inspect.signature(connect).parameters
        assert (parameters["timeout"].default, parameters["wait"].default) == (10.0, 0.0)


def test_each_attempt_of_wait_gets_twice_the_time_of_the_last_and_never_more_than_timeout(clock: list[float]) -> None:
    retry = handshake.Retry(1000.0, 20.0)
    assert [retry.limit() for _ in range(7)] == [1, 2, 4, 8, 16, 20, 20]


@pytest.mark.parametrize(("wait", "first"), [(0.0, 20.0), (1.0, 20.0), (1.5, 1.0)])
def test_an_attempt_that_fills_the_rest_of_the_wait_gets_all_of_timeout(
    wait: float, first: float, clock: list[float]
) -> None:
    assert handshake.Retry(wait, 20.0).limit() == first


def test_a_timeout_of_none_is_longer_than_any_wait(clock: list[float]) -> None:
    assert handshake.Retry(0.0, None).limit() == handshake.FOREVER


def test_a_duration_may_be_zero_unless_the_caller_says_otherwise() -> None:
    assert handshake.seconds("wait", 0) == 0.0
    with pytest.raises(fastvsock.DurationError, match="more than 0"):
        handshake.seconds("timeout", 0, allow_zero=False)


def test_a_port_has_fewer_than_twenty_digits() -> None:
    assert handshake.parse_port(f"{PORT:019}") == PORT
    with pytest.raises(fastvsock.PortError):
        handshake.parse_port(f"{PORT:020}")


def long_path(folder: Path) -> Path:
    """A path that does not fit into the address of a Unix socket."""
    deep = folder / ("d" * 120)
    deep.mkdir()
    return deep / "v.sock"


def test_a_long_path_costs_no_descriptor(tmp_path: Path) -> None:
    path = long_path(tmp_path)
    inside = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{inside}/v.sock")
    os.close(inside)
    before = descriptors()
    with pytest.raises(fastvsock.StaleSocketError):
        handshake.connect(path, PORT)
    assert descriptors() == before


def test_a_long_path_without_proc_costs_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = long_path(tmp_path)
    path.touch()
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    before = descriptors()
    with pytest.raises(fastvsock.PathTooLongError):
        handshake.connect(path, PORT)
    assert descriptors() == before


def test_a_guest_that_closes_before_it_is_asked_refuses() -> None:
    class Closed:
        """A socket whose peer accepts, and is gone when the request is sent."""

        def connect(self, address: object) -> None:
            pass

        def send(self, data: bytes) -> int:
            raise BrokenPipeError

    shaking = handshake.shake(cast(socket.socket, Closed()), "v.sock", PORT)
    with pytest.raises(fastvsock.GuestRefusedError):
        next(shaking)


def test_a_stale_socket_that_is_removed_meanwhile_is_stale_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))

    def removed(path: object) -> os.stat_result:
        raise FileNotFoundError

    monkeypatch.setattr(os, "stat", removed)
    with pytest.raises(fastvsock.StaleSocketError):
        handshake.connect(path, PORT)


def test_a_shortage_of_descriptors_is_a_connect_error_with_its_errno() -> None:
    class Short(socket.socket):
        def __init__(self, *kind: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.raises(fastvsock.ConnectError, match="Too many open files") as caught:
        handshake.open_socket(Short, "v.sock", PORT)
    assert caught.value.errno == errno.EMFILE


@pytest.mark.parametrize(
    ("error", "says"), [(OSError(errno.EIO, "Input/output error"), "error"), (OSError("odd"), "odd")]
)
def test_a_failure_without_a_class_of_its_own_has_the_systems_words_alone(error: OSError, says: str) -> None:
    with pytest.raises(fastvsock.ConnectError, match=f"{says}$") as caught:
        next(handshake.shake(Failing(error), "v.sock", PORT))
    assert "Errno" not in str(caught.value)


class Failing(socket.socket):
    """A socket that cannot connect."""

    def __init__(self, error: OSError) -> None:
        super().__init__(socket.AF_UNIX)
        self._error = error

    def connect(self, address: object) -> None:
        self.close()
        raise self._error


def test_a_path_below_a_file_is_a_missing_socket_and_one_without_permission_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(fastvsock.SocketMissingError):
        handshake.connect(tmp_path / "file" / "v.sock", PORT)
    with pytest.raises(fastvsock.SocketPermissionError):
        next(handshake.shake(Failing(PermissionError(errno.EACCES, "Permission denied")), "v.sock", PORT))


def test_a_datagram_socket_is_not_one_of_a_vmm(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(tmp_path / "v.sock"))
        with pytest.raises(fastvsock.NotASocketError, match="datagram"):
            handshake.connect(tmp_path / "v.sock", PORT)


def test_the_longest_path_that_fits_is_used_as_it_is() -> None:
    path = "p" * errors.SUN_PATH_MAX
    assert handshake.shortened(path, PORT) == (path.encode(), None)


def test_a_socket_that_is_connected_blocks(listener: Listener, pool: ThreadPoolExecutor) -> None:
    far = pool.submit(listener.accept)
    with closing(handshake.connect(listener.uds, PORT)) as sock, far.result():
        assert sock.getblocking()


def test_a_guest_that_resets_while_its_answer_is_waited_for_refuses(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = handshake._await_data

    def reset(sock: socket.socket, timeout: float) -> None:
        listener._socket.accept()[0].close()  # with the request unread, so that the peer gets ECONNRESET: unix(7)
        wait(sock, timeout)

    monkeypatch.setattr(handshake, "_await_data", reset)
    with pytest.raises(fastvsock.GuestRefusedError):
        handshake.connect(listener.uds, PORT)


def test_an_attempt_is_over_in_the_moment_in_which_its_time_is(
    listener: Listener, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(sock: socket.socket, timeout: float) -> None:
        waits.append(timeout)
        clock[0] += timeout

    waits: list[float] = []
    monkeypatch.setattr(handshake, "_await_data", wait)
    with pytest.raises(fastvsock.HandshakeTimeoutError, match="8"):
        handshake.connect(listener.uds, PORT, timeout=8.0)
    assert waits == [8.0]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the handshake has looked at the time, which it does each time round a loop."""
    times: list[float] = []

    def look() -> float:
        times.append(time.monotonic())
        return times[-1]

    monkeypatch.setattr(handshake, "monotonic", look)
    return times


def test_a_wait_for_a_socket_that_is_missing_sleeps(tmp_path: Path, looks: list[float]) -> None:
    with pytest.raises(fastvsock.SocketMissingError):
        handshake.connect(tmp_path / "v.sock", PORT, wait=0.5)
    assert len(looks) < 100


def test_an_attempt_that_waits_for_the_answer_sleeps(listener: Listener, looks: list[float]) -> None:
    with pytest.raises(fastvsock.HandshakeTimeoutError):
        handshake.connect(listener.uds, PORT, timeout=0.5)
    assert len(looks) < 100


def test_an_attempt_that_waits_for_room_in_the_backlog_sleeps(tmp_path: Path, looks: list[float]) -> None:
    path = tmp_path / "v.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        with pytest.raises(fastvsock.HandshakeTimeoutError):
            handshake.connect(path, PORT, timeout=0.5)
    assert len(looks) < 100
