"""`Relay.stop`, in each phase and after the end, and what a hundred relays leave behind."""

import fcntl
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastvsock import api
from fastvsock.relaying import Relay
from support import HANG, descriptors
from support.relays import Ends


def threads() -> int:
    """How many threads of this process `threading` does not know: a relay's are such."""
    return len(os.listdir("/proc/self/task")) - threading.active_count()


def has_come_down_to(count: int) -> bool:
    """Whether no more than `count` such threads are left; one that ends takes a moment."""
    deadline = time.monotonic() + HANG
    while threads() > count:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


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

    threads_before = threads()  # pytest's own
    one()
    before = len(descriptors())
    for _ in range(100):
        one()
    assert len(descriptors()) == before
    assert has_come_down_to(threads_before)
