"""Closing, half and whole, from either side: what the other sees, and what is lost."""

import socket
import threading

import pytest

from fastvsock.emulator import Emulator
from support import HANG, pattern
from support.guests import GUEST, PACKET, Guest, connect, drain, failing, is_silent, queue_size, receive, until


def test_a_half_close_of_the_host_closes_both_directions(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        host.sendall(b"the last words")
        host.shutdown(socket.SHUT_WR)
        assert drain(end) == b"the last words"
        with pytest.raises(BrokenPipeError):
            end.sendall(b"x")
        assert drain(host) == b""


def test_a_half_close_of_the_host_drops_what_the_guest_had_yet_to_send(emulator: Emulator, guest: Guest) -> None:
    size = 1_000_000
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        failures: list[BaseException] = []
        sender = threading.Thread(target=failing, args=(lambda: end.sendall(pattern(size)), failures))
        sender.start()
        until(lambda: len(host.recv(size, socket.MSG_PEEK)) >= PACKET)
        host.shutdown(socket.SHUT_WR)
        sender.join(HANG)
        assert [type(failure) for failure in failures] == [BrokenPipeError]
        got = drain(host)
        assert got == pattern(len(got))
        assert len(got) < size


def test_after_a_half_close_the_host_sees_the_end_once_the_guest_has_read_all(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        host.sendall(bytes(200_000))
        host.shutdown(socket.SHUT_WR)
        assert is_silent(host)
        assert len(drain(end)) == 200_000
        assert host.recv(1) == b""


def test_the_guest_reads_an_end_and_no_error_though_not_all_that_it_sent_was_taken(
    emulator: Emulator, guest: Guest
) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        end.sendall(bytes(4 * PACKET + 10_000))  # more than its credit while the host does not read
        until(lambda: len(host.recv(4 * PACKET, socket.MSG_PEEK)) == queue_size())
        host.shutdown(socket.SHUT_WR)
        assert end.recv(1) == b""


def test_a_half_close_of_the_guest_shows_nothing_to_the_host(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        end.sendall(b"all I say")
        end.shutdown(socket.SHUT_WR)
        assert receive(host, 9) == b"all I say"
        assert is_silent(host)
        host.sendall(b"all I hear")
        assert receive(end, 10) == b"all I hear"
        end.close()
        assert host.recv(1) == b""


def test_when_the_guest_closes_the_host_reads_what_is_queued_and_the_end(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host:
        with guest.accept() as end:
            end.sendall(pattern(100_000))
        assert drain(host) == pattern(100_000)


def test_when_the_host_closes_the_guest_reads_what_was_sent_and_the_end(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host:
        host.sendall(pattern(400_000)[:200_000])
    with guest.accept() as end:
        assert drain(end) == pattern(200_000)


def test_when_the_host_is_gone_the_guest_cannot_write(emulator: Emulator, guest: Guest) -> None:
    with guest_of(emulator, guest) as end:
        with pytest.raises(BrokenPipeError):
            end.sendall(bytes(4_000_000))
        assert end.recv(1) == b""


def guest_of(emulator: Emulator, guest: Guest) -> socket.socket:
    """The guest's end of a connection whose host has gone."""
    connect(emulator.uds, GUEST).close()
    return guest.accept()


def test_what_the_guest_did_not_read_before_it_closed_is_harmless(emulator: Emulator, guest: Guest) -> None:
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        host.sendall(b"unread")
        until(lambda: end.recv(9, socket.MSG_PEEK) == b"unread")
        end.sendall(b"but answered")
        end.close()
        assert drain(host) == b"but answered"
