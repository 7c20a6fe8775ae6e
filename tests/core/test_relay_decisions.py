"""What a relay decides, one decision at a time: relays that are not run, or whose time a test sets."""

import errno
import os
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from fastvsock import relaying
from fastvsock.engines import EOF, SOURCE, STOPPED, TARGET
from fastvsock.errors import RelayError
from fastvsock.relaying import Relay
from support.relays import Ends
from support.services import connected


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


def test_a_result_shows_all_its_facts() -> None:
    result = relaying.RelayResult(1, 2, 0.5, "splice", "copy", "guest")
    assert (result.error, result.cut_off) == (None, False)
    for fact in ("sent=1", "received=2", "seconds=0.5", "up='splice'", "down='copy'", "ended='guest'", "cut_off=False"):
        assert fact in repr(result)


def test_a_relays_seconds_are_those_from_its_start_to_its_end(
    make: Callable[..., Relay], ends: Ends, clock: list[float]
) -> None:
    relay = make()

    def run(look: int = -1) -> tuple[int, int]:
        clock[0] += 2.5
        return STOPPED, 0

    relay._up.run = run  # type: ignore[method-assign]
    assert relay.run().seconds == 2.5


@pytest.mark.parametrize(
    ("sent_at", "received_at", "linger", "ended", "half_closed", "cut_off"),
    [
        (7.0, 0.0, None, "guest", True, True),
        (7.0, 6.0, None, "guest", True, True),
        (7.0, 7.0, None, "guest", True, False),
        (7.0, 8.0, 2.0, "guest", True, False),
        (7.0, 6.0, None, "guest", False, False),
        (7.0, 6.0, None, "reader", True, False),
        (7.0, 6.0, 0.0, "guest", True, False),
        (7.0, 6.0, 1.0, "guest", True, True),
    ],
)
def test_an_answer_may_be_lost_where_the_guest_ended_after_a_half_close_with_the_last_word_ours(
    sent_at: float,
    received_at: float,
    linger: float | None,
    ended: str,
    half_closed: bool,
    cut_off: bool,
    make: Callable[..., Relay],
) -> None:
    relay = make(linger=linger)
    relay._has_half_closed = half_closed
    relay._up = SimpleNamespace(moved=1, moved_at=sent_at)  # type: ignore[assignment]
    relay._down = SimpleNamespace(moved=bool(received_at), moved_at=received_at)  # type: ignore[assignment]
    assert relay._is_cut_off(ended) is cut_off


@pytest.mark.parametrize(
    ("end", "error", "one_socket", "gone"),
    [
        (SOURCE, errno.EBADF, False, True),
        (SOURCE, errno.EINVAL, False, True),
        (SOURCE, errno.EISDIR, False, True),
        (SOURCE, errno.EIO, False, False),
        (SOURCE, errno.EIO, True, True),
        (TARGET, errno.EBADF, True, False),
        (EOF, 0, True, False),
    ],
)
def test_a_near_end_is_gone_where_its_input_was_never_one_or_breaks_and_is_the_output_too(
    end: int, error: int, one_socket: bool, gone: bool, make: Callable[..., Relay], ends: Ends
) -> None:
    relay = make()
    if one_socket:
        relay._near = ends.rfd, ends.rfd
    assert relay._is_near_end_gone(end, error) is gone


@pytest.mark.parametrize(
    ("end", "guest", "silent"),
    [(EOF, "open", True), (EOF, "closed", False), (TARGET, "open", False), (STOPPED, "open", False)],
)
def test_a_guest_is_only_silent_where_down_met_its_end_of_file_and_it_has_not_closed(
    end: int, guest: str, silent: bool, make: Callable[..., Relay], ends: Ends
) -> None:
    relay = make()
    reported: list[tuple[int, int]] = []
    relay._after_down = lambda *end: reported.append(end)  # type: ignore[method-assign]
    relay._up_is_over = True
    relay._down.run = lambda look=-1: (end, 0)  # type: ignore[method-assign]
    if guest == "closed":
        ends.guest.close()
    relay._down_running.acquire()
    relay._run_down()
    assert relay._guest_is_silent is silent
    assert [relay._down_end] == reported == [(end, 0)]
    assert not relay._down_running.locked()


def test_of_a_tcp_client_that_half_closed_the_kernel_is_asked_whether_it_has_closed(ends: Ends) -> None:
    with connected() as (client, near):
        relay = Relay(ends.sock, near.fileno(), near.fileno())
        client.shutdown(socket.SHUT_WR)
        assert not relay._is_deserted()
        assert not relay._is_deserted()
        client.close()
        assert relay._is_deserted()
        assert relay._verdict(EOF, 0, STOPPED, 0) == ("reader", None)
        relay.close()
        assert relay._near_tcp
        relay._near_tcp.close()


def test_of_any_other_near_end_it_is_not(make: Callable[..., Relay]) -> None:
    assert not make()._is_deserted()


def test_a_relay_is_over_when_both_pumps_are(make: Callable[..., Relay]) -> None:
    def run(look: int = -1) -> tuple[int, int]:
        time.sleep(0.1)
        ended.append("down")
        return STOPPED, 0

    ended: list[str] = []
    relay = make()
    relay._up.run = lambda look=-1: (STOPPED, 0)  # type: ignore[method-assign]
    relay._down.run = run  # type: ignore[method-assign]
    relay.run()
    assert ended == ["down"]
