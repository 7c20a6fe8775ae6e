"""A TCP peer that resets its connection is gone, whatever went before; one that only half-closes is not."""

import socket
from pathlib import Path

import pytest

from support import HANG, Listener
from support.faults import await_end, push, reset
from support.listen import PORT
from support.services import connect, receive, serving

BEFORE = ["nothing", "a half-close", "more than the other side reads"]


def prepare_reset(peer: socket.socket, guest: socket.socket, before: str) -> None:
    """What a peer has done when it resets."""
    peer.sendall(b"hello")
    assert receive(guest, 5) == b"hello"
    if before == "a half-close":
        peer.shutdown(socket.SHUT_WR)
        guest.sendall(b"answer")
        assert receive(peer, 6) == b"answer"
    elif before == "more than the other side reads":
        push(peer.fileno(), bytes(20 << 20))


@pytest.mark.parametrize("before", BEFORE)
def test_a_client_of_the_proxy_that_resets_loses_its_slot(listener: Listener, engine: str, before: str) -> None:
    options = ("--linger", "inf")
    with serving("proxy", *options, listener.uds, "7", engine=engine) as proxy:
        client = proxy.connect()
        with listener.accept() as guest:
            prepare_reset(client, guest, before)
            reset(client)
            await_end(guest)


@pytest.mark.parametrize("before", BEFORE)
def test_a_server_of_the_host_that_resets_ends_the_guests_connection(tmp_path: Path, engine: str, before: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        options = ("--linger", "inf", "--tcp", address, str(tmp_path / "v.sock"), str(PORT))
        with serving("listen", *options, engine=engine) as listening, connect(listening.address) as guest:
            server.settimeout(HANG)
            peer, _ = server.accept()
            peer.settimeout(HANG)
            prepare_reset(peer, guest, before)
            reset(peer)
            await_end(guest)
