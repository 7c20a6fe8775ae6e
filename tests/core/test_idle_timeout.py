"""`idle_timeout`: what counts as movement, what does not, and how a relay ends in which nothing moves."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import fastvsock
from support import HANG, write_all
from support.faults import push
from support.relays import Ends, Start

MIB = 1 << 20
LIMIT = 0.8  # seconds; what moves in these tests moves every eighth of it


def ended(relay: Any) -> fastvsock.IdleTimeoutError:
    """The error with which the relay ends."""
    with pytest.raises(fastvsock.IdleTimeoutError) as caught:
        relay.result(HANG)
    return caught.value


def silent(ends: Ends) -> None:
    """Nothing happens."""


def guest_never_reads(ends: Ends) -> None:
    """Up is full."""
    push(ends.feed.fileno(), bytes(30 * MIB))


def reader_never_reads(ends: Ends) -> None:
    """Down is full."""
    push(ends.guest.fileno(), bytes(30 * MIB))


def stopped_in_mid_stream(ends: Ends) -> None:
    """Both are full, as with a VMM that was paused."""
    guest_never_reads(ends)
    reader_never_reads(ends)


def input_ended(ends: Ends) -> None:
    """The guest has read everything and says nothing."""
    ends.feed.close()


def input_ended_unread(ends: Ends) -> None:
    """The end of input waits behind what the guest never reads."""
    guest_never_reads(ends)
    ends.feed.close()


@pytest.mark.parametrize(
    "state",
    [silent, guest_never_reads, reader_never_reads, stopped_in_mid_stream, input_ended, input_ended_unread],
)
def test_a_relay_in_which_nothing_moves_is_given_up(state: Callable[[Ends], None], ends: Ends, start: Start) -> None:
    relay = start(idle_timeout=LIMIT, linger=float("inf"))
    ends.until_running()
    state(ends)
    before = time.monotonic()
    error = ended(relay)
    assert str(error).startswith("nothing moved for 0.8 s, after ")
    assert isinstance(error, TimeoutError)
    assert "--idle-timeout SECONDS" in error.hint
    assert time.monotonic() - before >= LIMIT / 2, "what the state needs to settle counts, and no more"


def test_it_is_not_given_up_before_its_time(ends: Ends, start: Start) -> None:
    before = time.monotonic()
    ended(start(idle_timeout=LIMIT))
    assert time.monotonic() - before >= LIMIT


def test_a_half_close_does_not_end_the_count(ends: Ends, start: Start) -> None:
    relay = start(idle_timeout=LIMIT, linger=0)
    ends.until_running()
    ends.feed.close()
    assert ends.guest.recv(1) == b""
    ended(relay)


def say(ends: Ends) -> None:
    ends.feed.write(b"u")


def answer(ends: Ends) -> None:
    ends.guest.send(b"d")


@pytest.mark.parametrize("move", [say, answer])
def test_a_byte_in_one_direction_is_enough(move: Callable[[Ends], None], ends: Ends, start: Start) -> None:
    relay = start(idle_timeout=LIMIT)
    for _ in range(24):
        move(ends)
        time.sleep(LIMIT / 8)
    assert not relay.done()
    ended(relay)


def test_a_guest_that_reads_slowly_what_the_socket_holds_is_at_work(ends: Ends, start: Start) -> None:
    relay = start(idle_timeout=LIMIT, linger=float("inf"))
    write_all(ends.feed.fileno(), bytes(24 << 14))
    ends.feed.close()  # all of it is in the socket now
    for _ in range(24):
        assert ends.guest.recv(1 << 14)
        time.sleep(LIMIT / 8)
    assert not relay.done()
    ended(relay)


def test_a_reader_that_takes_slowly_what_the_output_holds_is_at_work(ends: Ends, start: Start) -> None:
    relay = start(idle_timeout=LIMIT)
    ends.guest.sendall(bytes(24 << 10))
    for _ in range(24):
        assert os.read(ends.out.fileno(), 1 << 10)
        time.sleep(LIMIT / 8)
    assert not relay.done()
    ended(relay)


def test_without_a_limit_silence_ends_nothing(ends: Ends, start: Start) -> None:
    relay = start()
    ends.until_running()
    time.sleep(1)
    assert not relay.done()
    ends.guest.close()
    assert relay.result(HANG).ended == "guest"


@pytest.mark.parametrize("value", [0, -1, float("nan"), "1"])
def test_a_limit_that_is_not_a_time_is_a_value_error(
    value: Any, ends: Ends, start: Start, pool: ThreadPoolExecutor
) -> None:
    with pytest.raises(fastvsock.DurationError, match=r"invalid idle_timeout .*: expected seconds, more than 0"):
        start(idle_timeout=value).result(HANG)


def test_the_longest_limit_does_not_overflow(ends: Ends, start: Start) -> None:
    relay = start(idle_timeout=float("inf"))
    ends.until_running()
    ends.guest.close()
    assert relay.result(HANG).ended == "guest"
