"""What a relay does to descriptors: to its own, and to those that it was given."""

import errno
import os
import signal
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from fastvsock import relaying
from fastvsock.engines import STOPPED
from fastvsock.errors import EngineError, RelayError
from fastvsock.relaying import Relay
from support import descriptors
from support.faults import push
from support.relays import Ends
from support.services import connected


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


def test_a_relays_own_descriptors_neither_block_nor_reach_a_child(make: Callable[..., Relay]) -> None:
    relay = make()
    for own in relay._woken, relay._wakeup, relay._down_woken:
        assert (os.get_blocking(own), os.get_inheritable(own)) == (False, False)


def test_a_relay_closes_each_of_its_own_once_whatever_its_number(
    make: Callable[..., Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = make()
    own = relay._woken, relay._wakeup, relay._down_woken
    closed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", closed.append)
        relay._woken, relay._wakeup, relay._down_woken = 0, 1, 2
        relay.close()
        relay.close()
    assert closed == [0, 1, 2]
    for number in own:
        os.close(number)


def test_a_programs_own_use_of_the_wakeup_descriptor_stays(make: Callable[..., Relay], ends: Ends) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        try:
            ends.guest.close()
            assert make(linger=0.0).run().ended == "guest"
        finally:
            assert signal.set_wakeup_fd(-1) == theirs.fileno()


def test_a_program_without_a_use_of_it_has_the_relay_woken_by_signals() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        assert relaying._wake_on_signals(theirs.fileno())
        assert signal.set_wakeup_fd(-1) == theirs.fileno()


def test_more_signals_than_fit_are_not_reported(capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = socket.socketpair()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    with ours, theirs:
        theirs.setblocking(False)
        push(theirs.fileno(), bytes(1 << 20))
        relaying._wake_on_signals(theirs.fileno())
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGUSR1, before)
    assert capfd.readouterr().err == ""


def test_a_relay_can_be_stopped_although_more_signals_came_than_fit(make: Callable[..., Relay]) -> None:
    relay = make()
    push(relay._wakeup, bytes(1 << 20))
    relay.stop()
    assert relay._verdict(STOPPED, 0, STOPPED, 0) == ("stopped", None)


def test_the_pump_to_the_near_end_watches_for_its_reader(make: Callable[..., Relay]) -> None:
    relay = make()
    assert [pump._ends[3] for pump in (relay._up, relay._down)] == [False, True]


def test_a_relay_that_is_closed_can_still_be_stopped(make: Callable[..., Relay]) -> None:
    relay = make()
    relay.close()
    relay.stop()


def test_a_relay_is_woken_whatever_the_number_of_its_descriptor(
    make: Callable[..., Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = make()
    own, written = relay._wakeup, []
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: written.append(fd))
        relay._wakeup = 0
        relay.stop()
        relay._wakeup = own
    assert written == [0]


def test_a_relay_leaves_no_wakeup_descriptor_behind(make: Callable[..., Relay], ends: Ends) -> None:
    ends.feed.close()
    ends.guest.close()
    make(linger=0.0).run()
    assert signal.set_wakeup_fd(-1) == -1


def test_what_is_closed_already_cannot_be_half_closed_and_need_not_be(make: Callable[..., Relay], ends: Ends) -> None:
    relay = make()
    with socket.socket() as never_connected:
        relay._sock = never_connected
        relay._half_close()
        relaying.half_close(never_connected.fileno())
    relaying.half_close(ends.wfd)  # a pipe
    assert relay._has_half_closed


def test_to_half_close_a_socket_leaves_its_descriptor_open_and_its_input_alone(ends: Ends) -> None:
    relaying.half_close(ends.sock.fileno())
    assert ends.guest.recv(1) == b""
    ends.guest.sendall(b"x")
    assert ends.sock.recv(1) == b"x"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_of_one_tcp_socket_for_input_and_output_the_kernel_can_be_asked(host: str) -> None:
    with connected(host) as (_, near), connected(host) as (_, other):
        found = relaying._tcp_socket(near.fileno(), near.fileno())
        assert found
        with found:
            assert found.getpeername() == near.getpeername()
        assert relaying._tcp_socket(near.fileno(), other.fileno()) is False


def test_of_no_other_pair_of_descriptors_it_can(ends: Ends) -> None:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    before = descriptors()
    with udp:
        assert relaying._tcp_socket(udp.fileno(), udp.fileno()) is False
        assert relaying._tcp_socket(ends.sock.fileno(), ends.sock.fileno()) is False
        assert relaying._tcp_socket(ends.rfd, ends.wfd) is False
        assert descriptors() == before


# The send buffer


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


def test_a_socket_whose_buffer_is_large_enough_keeps_it(make: Callable[..., Relay], ends: Ends) -> None:
    ends.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, relaying.SEND_BUFFER // 2)  # which the kernel doubles
    before = ends.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if before < relaying.SEND_BUFFER:
        pytest.skip("this machine: net.core.wmem_max allows no such buffer")
    make()
    assert ends.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_without_the_right_to_force_it_the_send_buffer_is_asked_for(refused: int) -> None:
    class Refusing(socket.socket):
        def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]
            asked.append(option)
            if len(asked) <= refused:
                raise PermissionError(errno.EPERM, "Operation not permitted")

    asked: list[int] = []
    with Refusing(socket.AF_UNIX) as sock:
        relaying.raise_send_buffer(sock, 1 << 30)
    so_sndbufforce = 32  # include/uapi/asm-generic/socket.h
    assert asked == [so_sndbufforce, socket.SO_SNDBUF][: refused + 1]


def test_the_send_buffer_is_4_mib_for_what_is_spliced_and_1_mib_for_what_is_copied() -> None:
    assert (relaying.SEND_BUFFER, relaying.COPIED_SEND_BUFFER) == (4 << 20, 1 << 20)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_an_output_that_is_ended_keeps_its_number_and_its_reader_reads_an_end_of_file(kind: str, ends: Ends) -> None:
    fd, reader = (ends.wfd, ends.out.fileno()) if kind == "pipe" else (ends.sock.fileno(), ends.guest.fileno())
    with socket.socket(fileno=os.dup(fd)) if kind == "socket" else nullcontext():  # as where stdin is the same socket
        relaying.end_output(fd)
        assert os.read(reader, 1) == b""
    assert not os.get_inheritable(fd)
    if kind == "pipe":
        assert os.write(fd, b"late") == 4, "it goes nowhere"
