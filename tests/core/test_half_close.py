"""A guest that half-closes, which is not a guest that closes; and a half-close of ours that may have cost an answer."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import fastvsock
from support import HANG, pattern, write_all
from support.faults import push
from support.guests import drain
from support.relays import Ends, Start

PAYLOAD = pattern(3_000_000)  # more than the buffers on the way take


def feed(ends: Ends) -> None:
    """The whole input, and its end."""
    write_all(ends.feed.fileno(), PAYLOAD)
    ends.feed.close()


def test_a_guest_that_sends_no_more_still_gets_everything(ends: Ends, start: Start, pool: ThreadPoolExecutor) -> None:
    ends.guest.shutdown(socket.SHUT_WR)
    relay = start()
    feeding = pool.submit(feed, ends)
    time.sleep(0.2)  # by now the relay has seen the half-close, with most of the input ahead
    result = relay_ends_after_input(ends, relay)
    feeding.result(HANG)
    assert (result.sent, result.received, result.ended, result.cut_off) == (len(PAYLOAD), 0, "guest", False)


def relay_ends_after_input(ends: Ends, relay: Any) -> fastvsock.RelayResult:
    """The guest reads to its end of file, which the relay brings by closing, not after a linger."""
    arrived = b""
    while len(arrived) < len(PAYLOAD) and (part := ends.guest.recv(1 << 20)):
        arrived += part
    assert arrived == PAYLOAD
    result: fastvsock.RelayResult = relay.result(HANG)
    return result


def test_a_guest_that_answers_and_then_sends_no_more_still_gets_everything(
    ends: Ends, start: Start, pool: ThreadPoolExecutor
) -> None:
    relay = start()
    ends.until_running()
    ends.guest.sendall(b"last words")
    ends.guest.shutdown(socket.SHUT_WR)
    assert ends.out.read(10) == b"last words"
    feeding = pool.submit(feed, ends)
    result = relay_ends_after_input(ends, relay)
    feeding.result(HANG)
    assert (result.sent, result.received) == (len(PAYLOAD) + 1, 11)


def test_a_half_closed_guest_that_closes_ends_the_relay(ends: Ends, start: Start) -> None:
    relay = start()
    ends.until_running()
    ends.guest.shutdown(socket.SHUT_WR)
    time.sleep(0.2)
    assert not relay.done()
    ends.guest.close()
    assert relay.result(HANG).ended == "guest"


def test_after_the_end_of_input_a_half_close_of_the_guest_ends_the_relay(ends: Ends, start: Start) -> None:
    relay = start(linger=float("inf"))
    ends.until_running()
    ends.feed.close()
    time.sleep(0.2)
    ends.guest.shutdown(socket.SHUT_WR)
    result = relay.result(HANG)
    assert (result.ended, result.cut_off) == ("guest", False)


def test_a_half_close_reaches_an_output_that_is_a_socket(ends: Ends, start: Start) -> None:
    near, reader = socket.socketpair()
    with near, reader:
        reader.settimeout(HANG)
        relay = start(rfd=near.fileno(), wfd=near.fileno())
        ends.guest.sendall(b"all")
        ends.guest.shutdown(socket.SHUT_WR)
        assert drain(reader) == b"all"
        reader.sendall(b"and still")
        assert ends.guest.recv(9) == b"and still"
        reader.shutdown(socket.SHUT_WR)
        assert relay.result(HANG).ended == "guest"


def test_a_reader_that_leaves_after_the_guests_last_byte_does_not_end_what_goes_up(
    ends: Ends, start: Start, pool: ThreadPoolExecutor
) -> None:
    relay = start()
    ends.until_running()
    ends.guest.shutdown(socket.SHUT_WR)
    time.sleep(0.2)
    ends.out.close()
    feeding = pool.submit(feed, ends)
    relay_ends_after_input(ends, relay)
    feeding.result(HANG)


def test_a_half_closed_guest_in_which_nothing_moves_is_given_up(ends: Ends, start: Start) -> None:
    relay = start(idle_timeout=0.5)
    ends.guest.shutdown(socket.SHUT_WR)
    with pytest.raises(fastvsock.IdleTimeoutError):
        relay.result(HANG)


def test_a_guest_that_no_longer_reads_can_still_say_megabytes(
    ends: Ends, start: Start, pool: ThreadPoolExecutor
) -> None:
    relay = start()
    ends.until_running()
    ends.guest.shutdown(socket.SHUT_RD)
    push(ends.feed.fileno(), b"nobody reads this")
    time.sleep(0.2)  # up has ended; down has everything ahead
    sending = pool.submit(ends.guest.sendall, PAYLOAD)
    arrived = b""
    while len(arrived) < len(PAYLOAD):
        arrived += os.read(ends.out.fileno(), 1 << 20)
    sending.result(HANG)
    ends.guest.close()
    assert arrived == PAYLOAD
    with pytest.raises(fastvsock.ConnectionBrokenError):
        relay.result(HANG)  # what it did not read is lost


@pytest.mark.parametrize("greeting", [b"", b"220 hello"])
def test_a_guest_that_ends_without_an_answer_after_our_half_close_may_have_been_cut_off(
    greeting: bytes, ends: Ends, start: Start
) -> None:
    relay = start(linger=0.2)
    ends.guest.sendall(greeting)
    assert ends.out.read(len(greeting)) == greeting
    ends.feed.write(b"a question")
    ends.feed.close()
    assert drain(ends.guest) == b"a question"
    ends.guest.close()
    assert relay.result(HANG).cut_off


def test_a_guest_that_was_sent_nothing_may_have_been_cut_off_too(ends: Ends, start: Start) -> None:
    relay = start(linger=0.2)
    ends.feed.close()
    assert drain(ends.guest) == b""
    ends.guest.close()
    assert relay.result(HANG).cut_off


def test_a_guest_that_has_answered_was_not_cut_off(ends: Ends, start: Start) -> None:
    relay = start(linger=0.2)
    ends.feed.write(b"a question")
    ends.feed.close()
    assert ends.guest.recv(20) == b"a question"
    ends.guest.sendall(b"an answer")
    assert drain(ends.guest) == b""
    ends.guest.close()
    assert not relay.result(HANG).cut_off


def test_a_guest_that_answers_after_our_half_close_was_not_cut_off(ends: Ends, start: Start) -> None:
    relay = start(linger=0.2)
    ends.feed.write(b"a question")
    ends.feed.close()
    assert drain(ends.guest) == b"a question"
    ends.guest.sendall(b"an answer")
    ends.guest.close()
    result = relay.result(HANG)
    assert (result.received, result.cut_off) == (9, False)


def test_linger_0_asks_for_no_answer(ends: Ends, start: Start) -> None:
    relay = start(linger=0)
    ends.feed.write(b"the end")
    ends.feed.close()
    assert drain(ends.guest) == b"the end"
    ends.guest.close()
    assert not relay.result(HANG).cut_off
