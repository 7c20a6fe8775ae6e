"""Cloud Hypervisor's rule: each half-close is passed on to the other side, and only a full close ends a connection."""

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastvsock.emulator import Emulator, Exec, connection
from support import HANG, pattern
from support.guests import GUEST, Guest, connect, drain, is_silent, queue_size, receive, until

pytestmark = pytest.mark.parametrize("vmm", ["cloud-hypervisor"])


@contextmanager
def from_the_host(emulator: Emulator, guest: Guest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The host's and the guest's end of a connection that the host made."""
    with connect(emulator.uds, GUEST) as host, guest.accept() as end:
        yield host, end


@contextmanager
def from_the_guest(emulator: Emulator, guest: Guest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The host's and the guest's end of a connection that the guest made."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{emulator.uds}_5555")
        listener.listen()
        with emulator.connect_to_host(5555) as end, listener.accept()[0] as host:
            for sock in (host, end):
                sock.settimeout(HANG)
            yield host, end


@pytest.fixture(params=[from_the_host, from_the_guest])
def ends(request: pytest.FixtureRequest, emulator: Emulator, guest: Guest) -> Iterator[tuple[socket.socket, ...]]:
    with request.param(emulator, guest) as ends:
        yield ends


def hangs_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def test_after_a_half_close_of_the_host_the_guest_reads_the_end_and_answers(ends: tuple[socket.socket, ...]) -> None:
    host, end = ends
    host.sendall(b"a question")
    host.shutdown(socket.SHUT_WR)
    assert drain(end) == b"a question"
    assert not hangs_up(end)
    answer = pattern(1_000_000)
    sender = threading.Thread(target=end.sendall, args=(answer,))
    sender.start()
    assert receive(host, len(answer)) == answer
    sender.join(HANG)
    assert is_silent(host)
    end.close()
    assert host.recv(1) == b""


def test_after_a_half_close_of_the_guest_the_host_reads_the_end_and_goes_on(ends: tuple[socket.socket, ...]) -> None:
    host, end = ends
    end.sendall(b"all I say")
    end.shutdown(socket.SHUT_WR)
    assert drain(host) == b"all I say"
    assert not hangs_up(host)
    up = pattern(1_000_000)
    sender = threading.Thread(target=host.sendall, args=(up,))
    sender.start()
    assert receive(end, len(up)) == up
    sender.join(HANG)
    assert not hangs_up(host)
    end.close()
    until(lambda: hangs_up(host))


def test_a_half_close_of_the_guest_shows_only_behind_all_that_it_sent(ends: tuple[socket.socket, ...]) -> None:
    host, end = ends
    size = queue_size() + 40_000  # more than the host's queue holds, so that some waits in the VMM
    end.sendall(pattern(size))
    end.shutdown(socket.SHUT_WR)
    assert not hangs_up(host)
    assert drain(host) == pattern(size)
    host.sendall(b"heard")
    assert receive(end, 5) == b"heard"


@pytest.mark.parametrize("first", ["host", "guest"])
def test_half_closes_of_both_sides_are_a_close(ends: tuple[socket.socket, ...], first: str) -> None:
    host, end = ends
    one, other = (host, end) if first == "host" else (end, host)
    one.sendall(b"first")
    one.shutdown(socket.SHUT_WR)
    assert drain(other) == b"first"
    other.sendall(b"second")
    other.shutdown(socket.SHUT_WR)
    assert drain(one) == b"second"
    for side in (host, end):
        until(lambda side=side: hangs_up(side))  # type: ignore[misc]


def test_both_may_half_close_while_the_host_has_yet_to_read(ends: tuple[socket.socket, ...]) -> None:
    host, end = ends
    size = queue_size() + 40_000
    end.sendall(pattern(size))
    end.shutdown(socket.SHUT_WR)
    host.sendall(b"the last words")
    host.shutdown(socket.SHUT_WR)
    assert drain(end) == b"the last words"
    assert drain(host) == pattern(size)
    until(lambda: hangs_up(host))


def test_after_half_closes_of_both_the_next_connection_cuts_off_what_the_host_has_not_read(
    emulator: Emulator, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CLOSE_DEADLINE", 0.2)
    safe = queue_size()
    with from_the_host(emulator, guest) as (host, end):
        end.sendall(pattern(safe + 26_848))
        end.shutdown(socket.SHUT_WR)
        host.shutdown(socket.SHUT_WR)
        assert end.recv(1) == b""
        time.sleep(0.3)
        connect(emulator.uds, 7).close()
        assert drain(host) == pattern(safe)


@pytest.mark.parametrize("half_closed_before", [False, True])
def test_a_full_close_of_the_host_closes_both_directions(
    ends: tuple[socket.socket, ...], half_closed_before: bool
) -> None:
    host, end = ends
    host.sendall(b"bye")
    if half_closed_before:
        host.shutdown(socket.SHUT_WR)
        assert drain(end) == b"bye"
        end.sendall(b"not read")
    host.close()
    assert drain(end) == (b"" if half_closed_before else b"bye")
    until(lambda: hangs_up(end))
    with pytest.raises(BrokenPipeError):
        end.sendall(b"x")


def test_a_full_close_of_the_guest_after_a_half_close_of_the_host_shows_at_the_host(
    ends: tuple[socket.socket, ...],
) -> None:
    host, end = ends
    host.shutdown(socket.SHUT_WR)
    assert end.recv(1) == b""
    end.sendall(b"an answer")
    end.close()
    assert drain(host) == b"an answer"
    until(lambda: hangs_up(host))


def test_a_child_answers_after_the_end_of_its_stdin(tmp_path: Path, vmm: str) -> None:
    count = Exec(("sh", "-c", "wc -c"))
    with Emulator(tmp_path / "v.sock", {1: count}, vmm=vmm) as emulator, connect(emulator.uds, 1) as host:
        host.sendall(bytes(300_000))
        host.shutdown(socket.SHUT_WR)
        assert drain(host).strip() == b"300000"


def test_half_closed_connections_that_are_idle_cost_nothing(
    emulator: Emulator, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 0
    wait = emulator._poller.wait

    def counted(block: bool) -> list[tuple[int, int]]:
        nonlocal rounds
        rounds += 1
        return wait(block)

    with from_the_host(emulator, guest) as (host, end), from_the_host(emulator, guest) as (other, other_end):
        host.shutdown(socket.SHUT_WR)
        other_end.shutdown(socket.SHUT_WR)
        assert (end.recv(1), other.recv(1)) == (b"", b"")
        monkeypatch.setattr(emulator._poller, "wait", counted)
        assert is_silent(host)
        assert rounds < 5


def test_a_half_closed_connection_leaves_nothing_behind(emulator: Emulator, guest: Guest) -> None:
    for first in (0, 1):
        with from_the_host(emulator, guest) as ends:
            ends[first].shutdown(socket.SHUT_WR)
            assert ends[1 - first].recv(1) == b""
    until(lambda: not emulator._connections)
