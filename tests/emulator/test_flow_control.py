"""A side that does not read: what is queued where, and what a real VMM cuts off."""

import socket
import threading
import time
from collections.abc import Callable

import pytest

from fastvsock.emulator import Emulator
from fastvsock.emulator import connection as connection_module
from fastvsock.engines import queues
from support import HANG, pattern
from support.channels import within
from support.guests import (
    GUEST,
    PACKET,
    SOON,
    UNUSED,
    Guest,
    accepted,
    connect,
    dial,
    drain,
    failing,
    queue_size,
    receive,
)


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline of 0.2 s for closed connections, so that no test waits for 2."""
    monkeypatch.setattr(connection_module, "CLOSE_DEADLINE", 0.2)


def stalled(emulator: Emulator, guest: Guest, size: int) -> socket.socket:
    """The host's end of a connection whose guest has written `size` bytes and closed, past the deadline."""
    host = connect(emulator.uds, GUEST)
    with guest.accept() as end:
        end.sendall(pattern(size))
    time.sleep(SOON)
    return host


def dial_unused(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        host.sendall(b"CONNECT %d\n" % UNUSED)
        assert not accepted(host)


def dial_echo(emulator: Emulator) -> None:
    connect(emulator.uds, 7).close()


def dial_from_the_guest(emulator: Emulator) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{emulator.uds}_99")
        listener.listen()
        emulator.connect_to_host(99).close()


def do_nothing(emulator: Emulator) -> None:
    pass


def dial_badly(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        host.sendall(b"CONNECT 4294967296\n")
        assert not accepted(host)


@pytest.mark.usefixtures("short_deadline")
@pytest.mark.parametrize("lost", [6_848, 26_848, 28_992])
@pytest.mark.parametrize("event", [dial_echo, dial_unused, dial_from_the_guest])
def test_the_next_connection_cuts_off_what_was_in_the_vmms_buffer(
    emulator: Emulator, guest: Guest, event: Callable[[Emulator], None], lost: int
) -> None:
    safe = queue_size()
    with stalled(emulator, guest, safe + lost) as host:
        event(emulator)
        assert drain(host) == pattern(safe)


@pytest.mark.usefixtures("short_deadline")
@pytest.mark.parametrize("event", [do_nothing, dial_badly])
def test_without_a_new_connection_nothing_is_lost(
    emulator: Emulator, guest: Guest, event: Callable[[Emulator], None]
) -> None:
    size = queue_size() + 26_848
    with stalled(emulator, guest, size) as host:
        event(emulator)
        assert drain(host) == pattern(size)


def test_a_new_connection_before_the_deadline_cuts_nothing_off(emulator: Emulator, guest: Guest) -> None:
    size = queue_size() + 26_848
    with stalled(emulator, guest, size) as host:
        dial_echo(emulator)
        assert drain(host) == pattern(size)


@pytest.mark.usefixtures("short_deadline")
def test_a_guest_that_had_half_closed_before_has_no_deadline(emulator: Emulator, guest: Guest) -> None:
    size = queue_size() + 26_848
    with connect(emulator.uds, GUEST) as host:
        with guest.accept() as end:
            end.sendall(pattern(size))
            end.shutdown(socket.SHUT_WR)
            time.sleep(SOON)
        time.sleep(SOON)
        dial_echo(emulator)
        assert drain(host) == pattern(size)


@pytest.mark.usefixtures("short_deadline")
def test_a_guest_with_more_than_its_credit_has_not_closed_and_loses_nothing(emulator: Emulator, guest: Guest) -> None:
    size = 4 * PACKET + 1
    with stalled(emulator, guest, size) as host:
        dial_echo(emulator)
        assert drain(host) == pattern(size)


def test_small_writes_to_a_host_that_does_not_read_arrive_in_order(emulator: Emulator, guest: Guest) -> None:
    size = queue_size()
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        for start in range(0, size - 1000, 1000):
            end.sendall(pattern(1000, start))
        end.shutdown(socket.SHUT_WR)
        assert receive(host, start + 1000) == pattern(start + 1000)


def test_a_few_bytes_pass_at_once_though_they_are_not_a_packet(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        for size in (1, 40_000, 65_535, 2):
            end.sendall(pattern(size))
            assert receive(host, size) == pattern(size)
            host.sendall(pattern(size))
            assert receive(end, size) == pattern(size)


def test_a_guest_that_does_not_read_stops_the_host_after_327680_bytes(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        host.settimeout(SOON)
        total = 0
        try:
            while True:
                total += host.send(pattern(PACKET, total))
                within(SOON, lambda: not queues(host.fileno())[1])  # a packet that is taken is taken whole
        except TimeoutError:
            pass
        # A queue that holds some 64 KiB is not writable for poll(), by which Python waits.
        assert total == 5 * PACKET
        assert receive(end, total) == pattern(total)


def test_a_guest_that_does_not_read_does_not_stop_the_other_direction(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        sender = threading.Thread(target=failing, args=(lambda: host.sendall(bytes(2_000_000)), []))
        sender.start()
        for start in range(0, 8_000_000, 100_000):
            end.sendall(pattern(100_000, start))
            assert receive(host, 100_000) == pattern(100_000, start)
        end.close()
        sender.join(HANG)
