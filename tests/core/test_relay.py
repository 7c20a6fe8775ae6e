"""`relay`: what it says of its end, what it raises, how long it lingers, and that descriptors stay as they were."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import fastvsock
from support import HANG, descriptors, pattern, python, read_exactly, write_all
from support.relays import Ends, Start


def test_a_result_says_what_the_relay_did(ends: Ends, start: Start, engine: str) -> None:
    relay = start()
    ends.feed.write(b"12345")
    assert ends.guest.recv(100) == b"12345"
    ends.guest.sendall(b"1234567")
    assert ends.out.read(7) == b"1234567"
    ends.guest.close()
    result = relay.result(HANG)
    assert (result.sent, result.received, result.ended, result.error) == (5, 7, "guest", None)
    assert (result.up, result.down) == (engine, engine)
    assert result.seconds > 0
    assert repr(result).startswith("RelayResult(")
    assert "sent=5" in repr(result)


def test_a_relay_whose_output_nobody_reads_ends_as_such(ends: Ends, start: Start) -> None:
    relay = start()
    ends.until_running()
    ends.out.close()
    assert relay.result(HANG).ended == "reader"


def test_a_socket_that_breaks_is_raised_after_what_had_arrived(ends: Ends, start: Start) -> None:
    relay = start()
    ends.until_running()
    ends.feed.write(b"what the guest never reads")
    while not ends.guest.recv(1, socket.MSG_PEEK):
        pass
    ends.guest.sendall(b"tail")
    ends.guest.close()  # with bytes unread: a reset
    with pytest.raises(fastvsock.ConnectionBrokenError, match="broke") as caught:
        relay.result(HANG)
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.errno
    assert ends.out.read(4) == b"tail"


def test_an_input_that_cannot_be_read_is_raised(ends: Ends, start: Start, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(fastvsock.StreamError, match="cannot read the input: Is a directory") as caught:
        start(rfd=folder).result(HANG)
    os.close(folder)
    assert isinstance(caught.value, OSError)


def test_an_output_that_has_no_room_is_raised(ends: Ends, start: Start) -> None:
    ends.guest.sendall(b"payload")
    with (
        open("/dev/full", "wb") as full,
        pytest.raises(fastvsock.StreamError, match="cannot write the output: No space left"),
    ):
        start(wfd=full.fileno()).result(HANG)


def test_an_engine_that_does_not_exist_is_raised(ends: Ends, start: Start) -> None:
    with pytest.raises(fastvsock.EngineError, match="warp"):
        start(engine="warp").result(HANG)


@pytest.mark.parametrize("linger", [float("nan"), -1, "1"])
def test_a_linger_that_is_none_is_a_value_error(linger: Any, ends: Ends, start: Start) -> None:
    ends.guest.close()
    with pytest.raises(fastvsock.DurationError, match=r"invalid linger .*: expected seconds, 0 or more"):
        start(linger=linger).result(HANG)


@pytest.mark.parametrize("closed", [socket.socket.close, lambda sock: os.close(sock.fileno())], ids=["close", "behind"])
def test_a_socket_that_is_closed_is_raised(closed: Callable[[socket.socket], None], ends: Ends, start: Start) -> None:
    before = descriptors()
    sock = ends.sock
    closed(sock)
    try:
        with pytest.raises(fastvsock.RelayError, match="cannot use the socket: Bad file descriptor") as caught:
            start().result(HANG)
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == errno.EBADF
    finally:
        sock.detach()
    assert set(descriptors()) < set(before)


@pytest.mark.parametrize("number", [-1, 999, 1 << 40])
@pytest.mark.parametrize(("end", "said"), [("rfd", "cannot read the input"), ("wfd", "cannot write the output")])
def test_a_descriptor_that_is_not_open_is_raised(end: str, said: str, number: int, ends: Ends, start: Start) -> None:
    with pytest.raises(fastvsock.StreamError, match=f"{said}: Bad file descriptor") as caught:
        start(**{end: number}).result(HANG)
    assert caught.value.errno == errno.EBADF
    assert ends.sock.getblocking()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
def test_the_modes_of_all_descriptors_are_as_before(
    timeout: float | None, fails: bool, ends: Ends, start: Start
) -> None:
    ends.sock.settimeout(timeout)
    os.set_blocking(ends.rfd, timeout is None)
    os.set_blocking(ends.wfd, timeout is not None)
    numbers = (ends.rfd, ends.wfd, ends.sock.fileno())
    before = [fcntl.fcntl(number, fcntl.F_GETFL) for number in numbers]
    if fails:
        with pytest.raises(fastvsock.EngineError):
            start(engine="warp").result(HANG)
    else:
        relay = start()
        ends.until_running()
        for number, flags in zip(numbers[:2], before, strict=False):  # others share them meanwhile
            assert fcntl.fcntl(number, fcntl.F_GETFL) == flags
        ends.guest.close()
        relay.result(HANG)
    assert ends.sock.gettimeout() == timeout
    assert [fcntl.fcntl(number, fcntl.F_GETFL) for number in numbers] == before


INTERRUPTED = """
import faulthandler, os, signal, socket, sys, threading, time
from fastvsock import api

def interrupt():
    os.write(feed, b"u"), guest.recv(1), guest.send(b"d"), os.read(out, 1)  # both pumps run
    if input_ends:
        os.close(feed)
        time.sleep(0.1)  # for the relay to see it; too short, and this is the other phase once more
    os.kill(os.getpid(), signal.SIGINT)

engine, input_ends, rounds = sys.argv[1], sys.argv[2] == "input ended", int(sys.argv[3])
faulthandler.dump_traceback_later(30, exit=True)
before = os.listdir("/proc/self/fd")
for _ in range(rounds):
    sock, guest = socket.socketpair()
    (rfd, feed), (out, wfd) = os.pipe(), os.pipe()
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        print(api.relay(sock, rfd, wfd, linger=float("inf"), engine=engine))
    except KeyboardInterrupt:
        pass
    thread.join()
    assert sock.getblocking()
    sock.close(), guest.close()
    for fd in (rfd, out, wfd) if input_ends else (rfd, feed, out, wfd):
        os.close(fd)
assert os.listdir("/proc/self/fd") == before
while len(os.listdir("/proc/self/task")) > 2:  # this one and the watchdog
    time.sleep(0.01)
"""


@pytest.mark.parametrize(("phase", "rounds"), [("both directions open", 300), ("input ended", 3)])
def test_ctrl_c_comes_out_of_a_relay_and_leaves_nothing_behind(phase: str, rounds: int, engine: str) -> None:
    # So many rounds because the signal may find a pump in poll(2), or still on its way there.
    assert python(INTERRUPTED, engine, phase, str(rounds)) == []


@pytest.mark.parametrize("given", [None, 0.0])
def test_an_input_that_had_nothing_half_closes_only_where_linger_was_given(
    given: float | None, ends: Ends, start: Start
) -> None:
    relay = start(linger=given)
    ends.feed.close()
    if given is None:
        ends.guest.settimeout(1)
        with pytest.raises(TimeoutError):
            ends.guest.recv(1)
    else:
        assert ends.guest.recv(1) == b""
    ends.guest.sendall(b"answer")
    assert ends.out.read(6) == b"answer"
    ends.guest.close()
    assert relay.result(HANG).ended == "guest"


@pytest.mark.parametrize(("given", "least"), [(None, 0.5), (0.0, 0.0), (0.2, 0.2)])
def test_after_linger_seconds_of_silence_the_socket_is_half_closed(
    given: float | None, least: float, ends: Ends, start: Start
) -> None:
    relay = start(linger=given)
    ends.until_running()
    before = time.monotonic()
    ends.feed.close()
    assert ends.guest.recv(1) == b""
    assert time.monotonic() - before >= least
    ends.guest.sendall(b"answer")
    assert ends.out.read(6) == b"answer"
    ends.guest.close()
    assert relay.result(HANG).ended == "guest"


def test_linger_infinity_never_half_closes(ends: Ends, start: Start) -> None:
    relay = start(linger=float("inf"))
    ends.until_running()
    ends.feed.close()
    ends.guest.settimeout(1)
    with pytest.raises(TimeoutError):
        ends.guest.recv(1)
    ends.guest.close()
    assert relay.result(HANG).ended == "guest"


def test_write_all_of_a_relay_larger_than_every_buffer_comes_through(
    ends: Ends, start: Start, pool: ThreadPoolExecutor
) -> None:
    payload = pattern(5_000_000)
    relay = start(linger=0)
    collected = pool.submit(read_exactly, ends.out.fileno(), len(payload))

    def echo() -> None:
        while data := ends.guest.recv(1 << 16):
            ends.guest.sendall(data)
        ends.guest.close()

    echoed = pool.submit(echo)
    write_all(ends.feed.fileno(), payload)
    ends.feed.close()
    assert collected.result(HANG) == payload
    echoed.result(HANG)
    result = relay.result(HANG)
    assert (result.sent, result.received, result.ended) == (len(payload), len(payload), "guest")
