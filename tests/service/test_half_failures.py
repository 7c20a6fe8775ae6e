"""What fails halfway, or closes in two steps: it is ended, waited for, and its slot is free."""

import errno
import socket
from pathlib import Path

import pytest

from fastvsock import errors
from fastvsock.services import connection, handlers, peer_relay
from fastvsock.services.terms import Terms
from support import HANG
from support.services import FarEnd, ask, connect, eventually, receive, serving


def test_a_child_whose_relay_cannot_start_is_ended_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise errors.RelayError("cannot relay", errno.EIO)

    monkeypatch.setattr(handlers, "PeerRelay", fail)
    sock, guest = socket.socketpair()
    with guest:
        guest.sendall(b"what nobody reads")
        serve = handlers.ToCommand(["sleep", str(HANG)], Terms(), (1024, 1024))
        guest.shutdown(socket.SHUT_WR)
        with pytest.raises(errors.RelayError):
            serve(connection.Connection(sock, "it"))
        assert serve.status == 143
        assert receive(guest) == b""


@pytest.mark.parametrize("target", [("--tcp", "127.0.0.1:1"), ("--", "no-such-command")], ids=["--tcp", "COMMAND"])
def test_a_guest_that_cannot_be_served_gets_an_end_and_no_reset(tmp_path: Path, target: tuple[str, str]) -> None:
    with serving("listen", str(tmp_path / "v.sock"), "9", *target) as listener:
        with connect(listener.address) as guest:
            guest.sendall(b"what nobody reads")
            assert receive(guest) == b""
        assert listener.end()[0] == 0


def test_the_slot_of_a_client_that_has_closed_is_free_at_once(far_end: FarEnd, engine: str) -> None:
    options = ("--linger", str(2 * HANG), "--max-connections", "1")
    with serving("proxy", *options, far_end.uds, "7", engine=engine) as proxy:
        for _ in range(3):
            assert ask(proxy.address, b"x") == b"x"
        eventually(lambda: far_end.held, 0)
        assert far_end.heard == [b"x"] * 3


def test_one_that_closes_later_than_its_half_close_is_found_too(
    far_end: FarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_relay, "ASK_AGAIN", (0.1, 0.1))
    asked: list[int] = []

    def has_left() -> bool:
        asked.append(1)
        return len(asked) > 2

    guest, other = socket.socketpair()
    near, client = socket.socketpair()
    with guest, other, near, client:
        client.shutdown(socket.SHUT_WR)
        relay = peer_relay.PeerRelay(guest, near.fileno(), near.fileno(), linger=2 * HANG)
        relay.has_left = has_left
        assert relay.run().ended == "guest"
        relay.close()
    assert len(asked) == 3
