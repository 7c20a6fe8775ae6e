"""What a relay decides, one decision at a time: relays that are not run, or whose time a test sets."""

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fastvsock import relaying
from fastvsock.engines import EOF, SOURCE, STOPPED, TARGET
from fastvsock.errors import EngineError, RelayError
from fastvsock.relaying import Relay
from support import HANG, descriptors
from support.relays import Ends


@pytest.fixture
def make(ends: Ends, engine: str) -> Iterator[Callable[..., Relay]]:
    """Makes a relay between the ends that nothing runs."""
    made: list[Relay] = []

    def make(**options: Any) -> Relay:
        made.append(Relay(ends.sock, ends.rfd, ends.wfd, engine=engine, **options))
        return made[-1]

    yield make
    for relay in made:
        relay.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a relay sees, in seconds."""
    now = [100.0]
    monkeypatch.setattr(relaying, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("number", [errno.EMFILE, None])
@pytest.mark.parametrize("short", ["socketpair", "eventfd"])
def test_a_relay_without_descriptors_says_so_and_closes_only_its_own(
    short: str, number: int | None, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(number, "too few") if number else OSError("too few")

    before = descriptors()
    monkeypatch.setattr("_socket.socketpair" if short == "socketpair" else "os.eventfd", fail)
    with pytest.raises(RelayError, match="cannot open a descriptor for the relay") as caught:
        Relay(ends.sock, ends.rfd, ends.wfd)
    assert caught.value.errno == (number or 0)
    assert descriptors() == before


def test_a_relay_whose_engine_is_unknown_leaves_no_descriptor(ends: Ends) -> None:
    before = descriptors()
    with pytest.raises(EngineError):
        Relay(ends.sock, ends.rfd, ends.wfd, engine="warp")
    assert descriptors() == before


def test_the_socket_of_a_relay_does_not_block(make: Callable[..., Relay], ends: Ends) -> None:
    ends.sock.setblocking(True)
    make()
    assert not ends.sock.getblocking()


def test_a_failure_in_the_thread_of_down_comes_out_of_run(make: Callable[..., Relay]) -> None:
    relay = make()

    def fail(look: int = -1) -> tuple[int, int]:
        raise ZeroDivisionError

    relay._down.run = fail  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        relay.run()


def test_a_thread_that_cannot_be_started_is_a_relay_error(make: Callable[..., Relay]) -> None:
    def refuse(function: object, arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.raises(RelayError, match="cannot relay: can't start new thread") as caught:
        make(start=refuse).run()
    assert caught.value.errno == errno.EAGAIN


def test_the_notice_about_an_input_that_ended_is_given_once(
    make: Callable[..., Relay], ends: Ends, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "NOTICE_AFTER", 0.1)
    notices: list[float] = []
    relay = pool.submit(make(linger=float("inf"), notice=lambda: notices.append(time.monotonic())).run)
    ends.until_running()
    ended = time.monotonic()
    ends.feed.close()
    time.sleep(1.0)
    ends.guest.close()
    assert relay.result(HANG).ended == "guest"
    assert len(notices) == 1
    assert notices[0] - ended >= 0.1


def test_no_notice_is_given_while_something_moves(
    make: Callable[..., Relay], ends: Ends, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "NOTICE_AFTER", 1.5)
    notices: list[None] = []
    relay = pool.submit(make(linger=float("inf"), notice=lambda: notices.append(None)).run)
    ends.until_running()
    ends.feed.close()
    for _ in range(10):
        time.sleep(0.2)
        ends.guest.sendall(b"x")
        assert ends.out.read(1) == b"x"
    ends.guest.close()
    assert relay.result(HANG).ended == "guest"
    assert notices == []


def test_time_in_which_the_process_was_stopped_counts_as_two_looks_at_most(
    make: Callable[..., Relay], clock: list[float]
) -> None:
    relay = make(idle_timeout=10.0)
    relay._looked = clock[0]
    assert not relay._is_idle()
    clock[0] += 1000.0
    assert not relay._is_idle()  # counts as 5
    clock[0] += 3.0
    assert not relay._is_idle()  # 8
    clock[0] += 1.9
    assert not relay._is_idle()
    clock[0] += 0.1
    assert relay._is_idle()


@pytest.mark.parametrize("moves", ["guest sends", "guest reads", "reader reads"])
def test_any_movement_begins_the_silence_again(
    moves: str, make: Callable[..., Relay], ends: Ends, clock: list[float]
) -> None:
    relay = make(idle_timeout=10.0)
    relay._looked = clock[0]
    ends.sock.send(b"up")
    os.write(ends.wfd, b"down")
    relay._is_idle()
    for _ in range(3):
        clock[0] += 3.0
        assert not relay._is_idle()
    if moves == "guest sends":
        ends.guest.send(b"x")
    elif moves == "guest reads":
        ends.guest.recv(2)
    else:
        ends.out.read(1)
    for _ in range(4):  # the first of these finds the movement
        clock[0] += 3.0
        assert not relay._is_idle()
    clock[0] += 1.0
    assert relay._is_idle()


@pytest.mark.parametrize(("idle_timeout", "look"), [(10.0, 2500), (1.0, 250), (0.001, 1), (1e9, 250_000_000)])
def test_with_an_idle_timeout_up_looks_four_times_in_it(
    idle_timeout: float, look: int, make: Callable[..., Relay]
) -> None:
    relay = make(idle_timeout=idle_timeout)
    looks: list[int] = []

    def run(look: int = -1) -> tuple[int, int]:
        looks.append(look)
        return EOF, 0

    relay._up.run = run  # type: ignore[method-assign]
    assert relay._run_up() == (EOF, 0)
    assert looks == [look]


@pytest.mark.parametrize(
    ("late", "waits"),
    [(0.0, [0.25] * 4), (0.2, [0.25, 0.25, 0.1]), (0.24985, [0.25, 0.25, 0.001])],
    ids=["on time", "late", "a moment before the end"],
)
def test_after_the_end_of_input_a_relay_looks_four_times_and_half_closes_when_linger_is_over(
    late: float, waits: list[float], make: Callable[..., Relay], clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = make()
    monkeypatch.setattr(Relay, "sent", 5)  # before the end of input, which is no movement now
    waited: list[float] = []

    class DownRuns:
        """The lock that down's thread holds, given back once the socket is half-closed; each wait takes longer."""

        def acquire(self, timeout: float) -> bool:
            waited.append(timeout)
            clock[0] += timeout + late
            return relay._has_half_closed

        def release(self) -> None:
            pass

    relay._down_running = DownRuns()  # type: ignore[assignment]
    relay._await_down(1.0)
    assert waited[:-1] == pytest.approx(waits)


def test_a_socket_whose_buffer_is_large_enough_keeps_it(make: Callable[..., Relay], ends: Ends) -> None:
    ends.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, relaying.SEND_BUFFER // 2)  # which the kernel doubles
    before = ends.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if before < relaying.SEND_BUFFER:
        pytest.skip("this machine: net.core.wmem_max allows no such buffer")
    make()
    assert ends.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before


@pytest.mark.parametrize("waits", ["for the guest", "for the reader", "nowhere"])
def test_a_byte_that_waits_in_the_socket_is_no_silence(waits: str, make: Callable[..., Relay], ends: Ends) -> None:
    relay = make()
    if waits == "for the guest":
        ends.sock.send(b"x")
    elif waits == "for the reader":
        ends.guest.send(b"x")
    for _ in range(2):
        assert relay._has_moved() == (waits != "nowhere")


@pytest.mark.parametrize(
    ("up", "down", "ended", "number", "says"),
    [
        ((STOPPED, 0), (EOF, 0), "guest", None, ""),
        ((EOF, 0), (EOF, 0), "guest", None, ""),
        ((EOF, 0), (TARGET, errno.EPIPE), "reader", None, ""),
        ((EOF, 0), (TARGET, errno.ECONNRESET), "reader", None, ""),
        ((EOF, 0), (TARGET, errno.ENOSPC), "error", errno.ENOSPC, "cannot write the output: No space left"),
        ((SOURCE, errno.EIO), (EOF, 0), "error", errno.EIO, "cannot read the input: Input/output error"),
        ((SOURCE, errno.EPIPE), (EOF, 0), "error", errno.EPIPE, "cannot read the input"),
        ((EOF, 0), (SOURCE, errno.ECONNRESET), "error", errno.ECONNRESET, "the connection to the guest broke"),
        ((TARGET, errno.EPIPE), (EOF, 0), "error", errno.EPIPE, "the connection to the guest broke"),
        ((TARGET, errno.EPIPE), (SOURCE, errno.EIO), "error", errno.EIO, "the connection to the guest broke"),
    ],
)
def test_how_the_pumps_ended_decides_what_a_relay_reports(
    up: tuple[int, int],
    down: tuple[int, int],
    ended: str,
    number: int | None,
    says: str,
    make: Callable[..., Relay],
) -> None:
    result, error = make()._verdict(*up, *down)
    assert result == ended
    assert (error and error.errno) == number
    assert says in str(error or "")


def test_of_one_socket_for_input_and_output_a_broken_input_is_a_reader_that_left(ends: Ends) -> None:
    near, far = socket.socketpair()
    with near, far:
        relay = Relay(ends.sock, near.fileno(), near.fileno())
        assert relay._verdict(SOURCE, errno.ECONNRESET, STOPPED, 0) == ("reader", None)
        result, error = relay._verdict(SOURCE, errno.EIO, STOPPED, 0)
        assert (result, error and error.errno) == ("error", errno.EIO)
        relay.close()


@pytest.mark.parametrize(
    ("linger", "end", "sent", "patience"),
    [
        (None, EOF, True, 0.5),
        (None, EOF, False, float("inf")),
        (2.0, EOF, False, 2.0),
        (0.0, EOF, True, 0.0),
        (2.0, TARGET, True, float("inf")),
    ],
)
def test_the_patience_after_the_end_of_input(
    linger: float | None,
    end: int,
    sent: bool,
    patience: float,
    make: Callable[..., Relay],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Relay, "sent", int(sent))
    assert make(linger=linger)._patience(end) == patience


def test_the_send_buffer_is_made_large_for_what_is_spliced(make: Callable[..., Relay], ends: Ends, engine: str) -> None:
    size = relaying.SEND_BUFFER if engine == "splice" else relaying.COPIED_SEND_BUFFER
    before = ends.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    make()
    raised = ends.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert raised > before
    most = int(Path("/proc/sys/net/core/wmem_max").read_text())  # without CAP_NET_ADMIN; the kernel doubles it
    assert min(size, 2 * most) <= raised <= 2 * size
    make()
    assert ends.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == raised


def test_a_result_shows_all_its_facts() -> None:
    result = relaying.RelayResult(1, 2, 0.5, "splice", "copy", "guest")
    assert (result.error, result.cut_off) == (None, False)
    for fact in ("sent=1", "received=2", "seconds=0.5", "up='splice'", "down='copy'", "ended='guest'", "cut_off=False"):
        assert fact in repr(result)
