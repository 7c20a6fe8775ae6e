"""A peer that reads no more: when it is asked whether it has left, and what happens to what the guest sends."""

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from fastvsock.engines import EOF, SOURCE, TARGET
from fastvsock.services import peer_relay
from fastvsock.services.peer_relay import PeerRelay
from support import HANG


class Ends:
    """A relay between a guest and a peer that is not run: a test calls what the relay would."""

    def __init__(self) -> None:
        self.sock, self.guest = socket.socketpair()
        self.near, self.far = socket.socketpair()
        self.relay = PeerRelay(self.sock, self.near.fileno(), self.near.fileno())

    def close(self) -> None:
        self.relay.close()
        for end in self.sock, self.guest, self.near, self.far:
            end.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


class Peer:
    """A peer that leaves at a given time, and notes when it is asked."""

    def __init__(self, leaves: float) -> None:
        self.now, self.leaves = 50.0, leaves
        self.asked: list[float] = []

    def has_left(self) -> bool:
        self.asked.append(self.now)
        return self.now >= self.leaves


def ask_until(end: float, ends: Ends, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Ask four times a second, as a relay does after the end of input."""
    monkeypatch.setattr(peer_relay, "monotonic", lambda: peer.now)
    ends.relay.has_left = peer.has_left
    deserted = ends.relay._is_deserted()
    while peer.now < end:
        peer.now += 0.25
        deserted = ends.relay._is_deserted()
    return deserted


def test_a_peer_is_asked_again_after_ever_longer_times_up_to_16_seconds(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Peer(leaves=float("inf"))
    assert not ask_until(120.0, ends, peer, monkeypatch)
    pauses = [later - earlier for earlier, later in zip(peer.asked, peer.asked[1:], strict=False)]
    assert peer.asked[0] == 50.0
    assert pauses == [1, 2, 4, 8, 16, 16, 16]


def test_a_peer_that_has_left_is_not_asked_again(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(leaves=52.0)
    assert ask_until(120.0, ends, peer, monkeypatch)
    assert peer.asked == [50.0, 51.0, 53.0]


def test_a_peer_that_nobody_can_ask_has_not_left(ends: Ends) -> None:
    assert not ends.relay._is_deserted()


@pytest.mark.parametrize("error", [errno.EPIPE, errno.ECONNRESET])
def test_what_the_guest_sends_to_a_peer_that_is_gone_is_dropped_until_its_end(error: int, ends: Ends) -> None:
    ends.guest.sendall(b"for nobody" * 10_000)
    ends.guest.close()
    ends.relay._after_down(TARGET, error)
    assert ends.sock.recv(1) == b""
    assert ends.relay._is_deserted()


def test_dropping_ends_when_the_relay_is_woken(ends: Ends) -> None:
    dropping = threading.Thread(target=ends.relay._after_down, args=(TARGET, errno.EPIPE))
    dropping.start()
    ends.guest.sendall(b"for nobody")
    dropping.join(0.2)
    assert dropping.is_alive()
    os.eventfd_write(ends.relay._down_woken, 1)
    dropping.join(HANG)
    assert not dropping.is_alive()


def test_dropping_goes_on_after_a_readiness_without_bytes(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    class Early:
        """The socket, whose first read finds nothing: poll(2) may say so and be wrong."""

        reads = 0

        def fileno(self) -> int:
            return ends.sock.fileno()

        def recv(self, size: int) -> bytes:
            self.reads += 1
            if self.reads == 1:
                raise BlockingIOError
            return ends.sock.recv(size)

    monkeypatch.setattr(ends.relay, "_sock", Early())
    ends.guest.sendall(b"for nobody")
    ends.guest.close()
    ends.relay._after_down(TARGET, errno.EPIPE)
    assert ends.sock.recv(1) == b""


def test_dropping_ends_when_the_guest_resets(ends: Ends) -> None:
    ends.sock.sendall(b"unread")
    ends.guest.close()
    ends.relay._after_down(TARGET, errno.EPIPE)
    assert ends.relay._is_deserted()


@pytest.mark.parametrize(("end", "error"), [(EOF, 0), (SOURCE, errno.ECONNRESET), (TARGET, errno.ENOSPC)])
def test_any_other_end_says_nothing_about_the_peer(end: int, error: int, ends: Ends) -> None:
    ends.relay._after_down(end, error)
    assert not ends.relay._is_deserted()


def test_after_the_end_of_input_nothing_is_dropped_since_the_relay_is_over(ends: Ends) -> None:
    ends.relay._up_is_over = True  # and what woke the pump has been read by it
    ends.guest.sendall(b"unread")
    ends.relay._after_down(TARGET, errno.EPIPE)  # returns, although the guest goes on
    assert ends.sock.recv(10) == b"unread"
    assert ends.relay._is_deserted()
