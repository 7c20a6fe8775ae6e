"""Pipes: none for an idle pump, large ones for a stream that fills them, within a share of what the user may have."""

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

import fastvsock
from fastvsock import engines
from support import HANG, descriptors, read_exactly, write_all
from support.faults import push
from support.relays import Ends, Start

MIB = 1 << 20
USUAL = 1 << 16  # bytes that a new pipe holds


def size(fd: int) -> int:
    """The bytes that a pipe holds."""
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what takes a while."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Iterator[engines.PipeBudget]:
    """The process' own, with a limit of 16 MiB and nothing taken."""
    monkeypatch.setattr(engines.budget, "_limit", 16 * MIB)
    assert engines.budget.taken == 0
    yield engines.budget
    assert engines.budget.taken == 0


def stream_up(ends: Ends, amount: int = 8 * MIB) -> None:
    """Bytes through the input, as fast as they go."""
    feeding = threading.Thread(target=write_all, args=(ends.feed.fileno(), bytes(amount)))
    feeding.start()
    while amount:
        amount -= len(ends.guest.recv(MIB))
    feeding.join(HANG)


def stream_down(ends: Ends, amount: int = 8 * MIB) -> None:
    """Bytes through the output."""
    feeding = threading.Thread(target=ends.guest.sendall, args=(bytes(amount),))
    feeding.start()
    read_exactly(ends.out.fileno(), amount)
    feeding.join(HANG)


def test_a_relay_that_moves_little_leaves_the_pipes_as_they_are(
    ends: Ends, start: Start, budget: engines.PipeBudget
) -> None:
    relay = start()
    for _ in range(50):
        ends.until_running()
    assert (size(ends.rfd), size(ends.wfd), budget.taken) == (USUAL, USUAL, 0)
    ends.guest.close()
    relay.result(HANG)


@pytest.mark.parametrize(("way", "other"), [("rfd", "wfd"), ("wfd", "rfd")])
def test_a_stream_gets_a_pipe_of_a_mib_and_gives_it_back_when_it_rests(
    way: str, other: str, ends: Ends, start: Start, budget: engines.PipeBudget
) -> None:
    relay = start()
    for _ in range(2):  # what rested grows again
        (stream_up if way == "rfd" else stream_down)(ends)
        assert (size(getattr(ends, way)), size(getattr(ends, other))) == (MIB, USUAL)
        until(lambda: size(getattr(ends, way)) == USUAL)
        assert budget.taken == 0
    ends.guest.close()
    relay.result(HANG)


def test_at_the_end_a_pipe_has_its_size_again(ends: Ends, start: Start, budget: engines.PipeBudget) -> None:
    relay = start()
    stream_down(ends)
    stream_up(ends)
    assert (size(ends.rfd), size(ends.wfd)) == (MIB, MIB)
    ends.guest.close()
    relay.result(HANG)
    assert (size(ends.rfd), size(ends.wfd)) == (USUAL, USUAL)


def test_a_pipe_that_is_still_full_at_the_end_keeps_what_it_holds(
    ends: Ends, start: Start, budget: engines.PipeBudget
) -> None:
    relay = start()
    push(ends.guest.fileno(), bytes(MIB))
    ends.guest.close()
    until(lambda: size(ends.wfd) > USUAL)
    taken = read_exactly(ends.out.fileno(), MIB // 2)
    relay.result(HANG)
    assert USUAL < size(ends.wfd) <= MIB
    assert len(taken + read_exactly(ends.out.fileno(), MIB // 2)) == MIB


def test_a_relay_that_is_given_up_returns_its_share(ends: Ends, start: Start, budget: engines.PipeBudget) -> None:
    relay = start(idle_timeout=0.3)
    stream_up(ends)
    push(ends.feed.fileno(), bytes(30 * MIB))
    with pytest.raises(fastvsock.IdleTimeoutError):
        relay.result(HANG)


def test_a_size_that_somebody_else_chose_meanwhile_stays(ends: Ends, start: Start, budget: engines.PipeBudget) -> None:
    relay = start()
    stream_down(ends)
    fcntl.fcntl(ends.wfd, fcntl.F_SETPIPE_SZ, 4 * USUAL)
    ends.guest.close()
    relay.result(HANG)
    assert size(ends.wfd) == 4 * USUAL


def test_an_interrupted_pump_gives_the_size_back(
    ends: Ends, engine: str, budget: engines.PipeBudget, pool: ThreadPoolExecutor
) -> None:
    wake = os.eventfd(0)
    pump = engines.Pump(ends.rfd, ends.sock.fileno(), wake, engine=engine)
    running = pool.submit(pump.run)
    stream_up(ends)
    pump.stop()
    os.eventfd_write(wake, 1)
    running.result(HANG)
    os.close(wake)
    assert size(ends.rfd) == USUAL


@contextmanager
def joined() -> Iterator[tuple[socket.socket, socket.socket]]:
    """What is written to the first socket goes by splice to the second, through a pipe of the pump's own."""
    (feed, source), (target, out) = socket.socketpair(), socket.socketpair()
    source.setblocking(False)
    target.setblocking(False)
    wake = os.eventfd(0)
    pump = engines.Pump(source.fileno(), target.fileno(), wake, down=True, engine="splice")
    thread = threading.Thread(target=pump.run)
    thread.start()
    out.settimeout(HANG)
    try:
        yield feed, out
    finally:
        feed.close()
        out.close()
        thread.join(HANG)
        source.close()
        target.close()
        os.close(wake)


def pipes() -> list[int]:
    """The sizes of the pipes that this process has open, each once."""
    found = {link: int(number) for number, link in descriptors().items() if link.startswith("pipe:")}
    return [size(fd) for fd in found.values()]


def stream(feed: socket.socket, out: socket.socket) -> None:
    """A few MiB."""
    feeding = threading.Thread(target=feed.sendall, args=(bytes(8 * MIB),))
    feeding.start()
    left = 8 * MIB
    while left:
        left -= len(out.recv(MIB))
    feeding.join(HANG)


def test_between_sockets_an_idle_pump_has_no_pipe_and_a_stream_a_large_one(budget: engines.PipeBudget) -> None:
    before = pipes()
    with joined() as (feed, out):
        time.sleep(0.1)
        assert pipes() == before
        feed.sendall(b"a word")
        assert out.recv(10) == b"a word"
        assert sorted(pipes()) == sorted([*before, USUAL])
        stream(feed, out)
        assert sorted(pipes()) == sorted([*before, MIB])
        until(lambda: pipes() == before)
        assert budget.taken == 0
        feed.sendall(b"again")
        assert out.recv(10) == b"again"


def test_what_makes_pipes_larger_leaves_half_of_the_share(budget: engines.PipeBudget) -> None:
    assert budget.take(8 * MIB, True)
    assert not budget.take(4096, True)
    assert budget.take(8 * MIB, False)
    assert not budget.take(4096, False)
    budget.give_back(16 * MIB)


def test_where_the_share_is_used_up_streams_still_come_through(budget: engines.PipeBudget) -> None:
    before = pipes()
    assert budget.take(16 * MIB, False)
    with joined() as (feed, out):
        stream(feed, out)
        assert sorted(pipes()) == sorted([*before, os.sysconf("SC_PAGE_SIZE")])
    budget.give_back(16 * MIB)


def test_an_inherited_pipe_takes_no_more_than_the_share(ends: Ends, start: Start, budget: engines.PipeBudget) -> None:
    assert budget.take(8 * MIB - (1 << 18), True)
    relay = start()
    stream_down(ends)
    assert size(ends.wfd) == 1 << 18  # the next smaller
    ends.guest.close()
    relay.result(HANG)
    budget.give_back(8 * MIB - (1 << 18))


def test_the_share_is_a_quarter_of_what_the_kernel_lets_a_user_have() -> None:
    with open("/proc/sys/fs/pipe-user-pages-soft") as limit:
        pages = int(limit.read())
    share = pages * os.sysconf("SC_PAGE_SIZE") // 4
    fresh = engines.PipeBudget()
    assert fresh.take(share or MIB, False)
    assert fresh.take(1, False) == (not pages)
