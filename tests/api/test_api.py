"""The Python interface: connecting, asyncio, relays and how to stop them, the errors, and loading on first use."""

import asyncio
import copy
import errno
import fcntl
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import fastvsock
from fastvsock import api, errors, handshake
from fastvsock.relaying import Relay
from support import HANG, Listener, descriptors, pattern, read_exactly, write_all

PORT = 5003


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Where the other side runs while the test blocks."""
    with ThreadPoolExecutor() as pool:
        yield pool


def no_thread_is_left() -> bool:
    """Whether this process has no thread that `threading` does not know, as a relay's; one that ends takes a moment."""
    deadline = time.monotonic() + HANG
    while len(os.listdir("/proc/self/task")) > threading.active_count():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def python(code: str, *arguments: str) -> list[str]:
    """The words that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# connect and open_connection


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
    with pytest.raises(fastvsock.DurationError, match="timeout is a number of seconds, more than 0") as caught:
        dial(listener.uds, PORT, timeout=timeout)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("wait", [float("nan"), -1, float("-inf"), None])
def test_a_wait_that_is_none_is_a_value_error(wait: Any, dial: Dial, listener: Listener) -> None:
    with pytest.raises(fastvsock.DurationError, match="wait is a number of seconds, 0 or more"):
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


@pytest.mark.parametrize("port", [-1, 2**32, True, 22.0, None, "ssh"])
def test_a_port_that_is_none_is_a_value_error(port: Any, dial: Dial, listener: Listener) -> None:
    with pytest.raises(ValueError, match="is no guest port"):
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


# relay


class Ends:
    """A relay's four ends: `sock` with `guest` behind it, `rfd` that `feed` fills, and `wfd` that goes to `out`."""

    def __init__(self) -> None:
        self.sock, self.guest = socket.socketpair()
        self.rfd, feed = os.pipe()
        out, self.wfd = os.pipe()
        self.feed = FileIO(feed, "wb")
        self.out = FileIO(out, "rb")
        self.guest.settimeout(HANG)

    def close(self) -> None:
        os.close(self.rfd)
        os.close(self.wfd)
        for end in (self.sock, self.guest, self.feed, self.out):
            end.close()

    def until_running(self) -> None:
        """Both pumps have moved something: they run."""
        self.feed.write(b"u")
        assert self.guest.recv(1) == b"u"
        self.guest.send(b"d")
        assert self.out.read(1) == b"d"


@pytest.fixture
def ends(pool: ThreadPoolExecutor) -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.guest.close()  # which ends a relay that a failed test has left behind, before its descriptors go
    pool.shutdown()
    ends.close()


Start = Callable[..., "Future[fastvsock.RelayResult]"]


@pytest.fixture
def start(ends: Ends, engine: str, pool: ThreadPoolExecutor) -> Start:
    """Begin relay() between the ends, in a thread that is not the main one."""

    def start(**options: Any) -> "Future[fastvsock.RelayResult]":
        arguments = {"rfd": ends.rfd, "wfd": ends.wfd, "engine": engine, **options}
        return pool.submit(lambda: fastvsock.api.relay(ends.sock, **arguments))

    return start


def test_a_relay_tells_what_it_did(ends: Ends, start: Start, engine: str) -> None:
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
    with pytest.raises(fastvsock.DurationError, match="linger is a number of seconds, 0 or more"):
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
@pytest.mark.parametrize(("end", "told"), [("rfd", "cannot read the input"), ("wfd", "cannot write the output")])
def test_a_descriptor_that_is_not_open_is_raised(end: str, told: str, number: int, ends: Ends, start: Start) -> None:
    with pytest.raises(fastvsock.StreamError, match=f"{told}: Bad file descriptor") as caught:
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


# Relay.stop


def settle(relay: Relay) -> None:
    """Until a relay whose guest does not read has filled all there is to fill."""
    before = -1
    while relay.sent != before or not before:
        before = relay.sent
        time.sleep(0.05)


@pytest.mark.parametrize("phase", ["before", "idle", "flowing", "guest stalled", "reader stalled", "input ended"])
def test_stop_from_another_thread_ends_a_relay_in_each_phase(
    phase: str, ends: Ends, engine: str, pool: ThreadPoolExecutor
) -> None:
    with open("/dev/zero", "rb") as zero:
        rfd = zero.fileno() if phase in ("flowing", "guest stalled") else ends.rfd
        relay = Relay(ends.sock, rfd, ends.wfd, linger=float("inf"), engine=engine)
        if phase == "before":
            relay.stop()
        running = pool.submit(relay.run)
        if phase in ("idle", "input ended"):
            ends.until_running()
        if phase == "input ended":
            ends.feed.close()
            time.sleep(0.1)
        if phase == "flowing":
            ends.guest.settimeout(HANG)
            for _ in range(1000):
                assert ends.guest.recv(1 << 16)
        if phase == "guest stalled":
            settle(relay)
        if phase == "reader stalled":
            ends.guest.settimeout(0.2)
            with pytest.raises(TimeoutError):
                ends.guest.sendall(bytes(1 << 24))
        relay.stop()
        relay.stop()
        result = running.result(HANG)
    assert (result.ended, result.error) == ("stopped", None)
    assert (result.sent, result.received) == (relay.sent, relay.received)


def test_stop_after_the_end_touches_no_descriptor_that_has_the_old_number(ends: Ends, engine: str) -> None:
    relay = Relay(ends.sock, ends.rfd, ends.wfd, engine=engine)
    number = relay._wakeup
    ends.guest.close()
    assert relay.run().ended == "guest"
    relay.close()
    first, writing = os.pipe()
    reading = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, number + 1)
    os.close(first)
    os.dup2(writing, number)
    relay.stop()
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError):
        os.read(reading, 1)
    for fd in {reading, writing, number}:
        os.close(fd)


def test_a_hundred_relays_leave_no_descriptor_and_no_thread(engine: str) -> None:
    def one() -> None:
        ends = Ends()
        ends.guest.sendall(b"payload")
        ends.guest.close()
        assert api.relay(ends.sock, ends.rfd, ends.wfd, engine=engine).received == 7
        ends.close()

    one()
    before = len(descriptors())
    for _ in range(100):
        one()
    assert len(descriptors()) == before
    assert no_thread_is_left()


# The errors

EXAMPLES: list[fastvsock.FastvsockError] = [
    fastvsock.FastvsockError("text"),
    fastvsock.UsageError("text"),
    fastvsock.EngineError("text"),
    fastvsock.BenchmarkError("text"),
    fastvsock.PortError("ssh"),
    fastvsock.DurationError("timeout", -1, "more than 0"),
    fastvsock.CommandError("dbclient", FileNotFoundError(2, "No such file or directory")),
    fastvsock.RelayError("text", 32),
    fastvsock.ConnectionBrokenError("text", 104),
    fastvsock.StreamError("text", 28),
    fastvsock.EmulatorError("text", 98),
    fastvsock.ConnectError("/run/v.sock", 5003, "detail"),
    fastvsock.SocketMissingError("/run/v.sock", 5003),
    fastvsock.EmptyPathError("", 5003),
    fastvsock.NotASocketError("/run/v.sock", 5003, "a FIFO"),
    fastvsock.SocketPermissionError("/run/v.sock", 5003),
    fastvsock.StaleSocketError("/run/v.sock", 5003),
    fastvsock.PathTooLongError("/run/v.sock", 5003),
    fastvsock.HandshakeError("/run/v.sock", 5003, "detail"),
    fastvsock.HandshakeTimeoutError("/run/v.sock", 5003, "10"),
    fastvsock.GuestRefusedError("/run/v.sock", 5003),
    fastvsock.BadReplyError("/run/v.sock", 5003, "'SSH'"),
]


def test_every_error_is_among_the_examples() -> None:
    classes = {value for name, value in vars(errors).items() if isinstance(value, type) and not name.startswith("_")}
    assert {type(example) for example in EXAMPLES} == classes
    assert {cls.__name__ for cls in classes} == {name for name in fastvsock.__all__ if name.endswith("Error")}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_and_copying(error: fastvsock.FastvsockError) -> None:
    others = [copy.copy(error), *(pickle.loads(pickle.dumps(error, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1))]
    for other in others:
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert repr(other.args) == repr(error.args)  # an exception among them equals nothing but itself
        assert vars(other) == vars(error)
        assert getattr(other, "errno", None) == getattr(error, "errno", None)


@pytest.mark.parametrize(
    ("error", "builtin", "code"),
    [
        (fastvsock.SocketMissingError, FileNotFoundError, 1),
        (fastvsock.SocketPermissionError, PermissionError, 1),
        (fastvsock.StaleSocketError, ConnectionRefusedError, 1),
        (fastvsock.GuestRefusedError, ConnectionRefusedError, 1),
        (fastvsock.HandshakeTimeoutError, TimeoutError, 1),
        (fastvsock.PathTooLongError, ValueError, 1),
        (fastvsock.PortError, ValueError, 1),
        (fastvsock.DurationError, ValueError, 1),
        (fastvsock.EmptyPathError, FileNotFoundError, 1),
        (fastvsock.EmulatorError, OSError, 1),
        (fastvsock.NotASocketError, OSError, 1),
        (fastvsock.BadReplyError, OSError, 1),
        (fastvsock.ConnectionBrokenError, ConnectionError, 1),
        (fastvsock.StreamError, OSError, 1),
        (fastvsock.EngineError, Exception, 1),
        (fastvsock.UsageError, Exception, 2),
    ],
)
def test_an_error_is_the_built_in_one_that_a_caller_expects(
    error: type[fastvsock.FastvsockError], builtin: type[Exception], code: int
) -> None:
    assert issubclass(error, builtin)
    assert issubclass(error, fastvsock.FastvsockError)
    assert error.exit_code == code


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_that_is_an_os_error_has_its_number(error: fastvsock.FastvsockError) -> None:
    if isinstance(error, ConnectionRefusedError | FileNotFoundError | PermissionError | TimeoutError):
        built_in = OSError(error.errno, "")  # which picks its class by the number
        assert isinstance(error, type(built_in))
    if isinstance(error, fastvsock.ConnectError):
        assert str(error.port) in str(error)
        assert error.uds in str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_tells_a_caller_nothing_of_command_lines(error: fastvsock.FastvsockError) -> None:
    assert "--" not in str(error)
    assert bool(error.hint) == ("--" in error.hint)


def test_every_error_of_the_package_is_at_home_in_one_place() -> None:
    from fastvsock import benchmark, emulator

    assert emulator.EmulatorError is errors.EmulatorError
    assert benchmark.BenchmarkError is errors.BenchmarkError


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/run/v.sock", "/run/v.sock"),
        ("/run/\u00fc.sock", "/run/\u00fc.sock"),
        (os.fsdecode(b"/run/\xff\x80.sock"), r"/run/\xff\x80.sock"),
        ("two\nlines\x1b[31m", r"two\nlines\x1b[31m"),
        ("\ud800", r"\ud800"),
    ],
)
def test_a_path_is_shown_on_one_line_and_as_it_was_typed(path: str, shown: str) -> None:
    assert errors.shown(path) == shown


# Loading on first use


LOADED = "print(*(name for name in sys.modules if name == 'fastvsock' or name.startswith('fastvsock.')))"


def test_importing_the_package_loads_nothing_of_the_rest() -> None:
    assert python(f"import sys, fastvsock; {LOADED}") == ["fastvsock"]
    assert python(f"import sys, fastvsock; dir(fastvsock); {LOADED}") == ["fastvsock"]
    assert set(python(f"import sys, fastvsock; fastvsock.PortError; {LOADED}")) == {"fastvsock", "fastvsock.errors"}


def test_everything_public_is_listed_and_there() -> None:
    listed = python("import fastvsock; print(*dir(fastvsock))")
    assert set(fastvsock.__all__) <= set(listed)
    assert "__version__" in listed
    assert listed == sorted(listed)
    for name in fastvsock.__all__:
        assert getattr(fastvsock, name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'fastvsock' has no attribute 'teleport'"):
        fastvsock.teleport  # noqa: B018
    assert not hasattr(fastvsock, "teleport")


@pytest.mark.parametrize("order", [*permutations(["connect", "relay", "RelayResult"])], ids=" ".join)
def test_the_functions_are_functions_in_whatever_order_they_are_first_used(order: tuple[str, ...]) -> None:
    used = "; ".join(f"fastvsock.{name}" for name in order * 2)
    code = f"import fastvsock; {used}; print(*(type(getattr(fastvsock, name)).__name__ for name in {order}))"
    kinds = dict(zip(order, python(code), strict=True))
    assert kinds == {"connect": "function", "relay": "function", "RelayResult": "type"}


def test_relay_is_a_function_however_it_is_imported() -> None:
    first, second = "from fastvsock import connect, relay", "from fastvsock import relay"
    assert python(f"{first}; print(type(relay).__name__)") == ["function"]
    assert python(f"{second}\n{second}\nprint(type(relay).__name__)") == ["function"]
    assert python(f"import fastvsock.entry; {second}; print(type(relay).__name__)") == ["function"]


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
