"""How the kernel is asked who has the other end of a connection."""

import os
import socket

import pytest

from fastvsock.host import sock_diag
from support.services import connected


@pytest.fixture(params=["netlink", "proc"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to ask, the other one being out of order."""

    def broken(_: object) -> None:
        raise PermissionError(1, "not here")

    monkeypatch.setattr(sock_diag, "_look_up" if request.param == "netlink" else "_ask", broken)
    return str(request.param)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_other_end_is_found_with_its_user_and_inode(way: str, host: str) -> None:
    with connected(host) as (client, accepted):
        inode = os.fstat(client.fileno()).st_ino
        assert sock_diag.other_end(accepted) == (1, os.getuid(), inode)
        client.shutdown(socket.SHUT_WR)
        found = sock_diag.other_end(accepted)
        assert found
        assert found[1:] == (os.getuid(), inode), "a half-close is no close"
        assert not sock_diag.is_closed(accepted)
        client.close()
        assert sock_diag.is_closed(accepted)


def test_an_ipv4_client_of_a_socket_for_both_is_found(way: str) -> None:
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server,
        socket.create_connection(("127.0.0.1", server.getsockname()[1])) as client,
        server.accept()[0] as accepted,
    ):
        assert sock_diag.other_end(accepted) == (1, os.getuid(), os.fstat(client.fileno()).st_ino)


def test_a_kernel_that_knows_not_even_our_own_end_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock_diag, "_ask", lambda _: None)  # as without the module tcp_diag
    with connected() as (client, accepted):
        assert sock_diag.other_end(accepted) == (1, os.getuid(), os.fstat(client.fileno()).st_ino)


def test_the_question_costs_the_same_however_many_connections_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_them(_: object) -> None:
        raise AssertionError("the whole table was read")

    monkeypatch.setattr(sock_diag, "_look_up", all_of_them)
    with connected() as (_, accepted):
        try:
            sock_diag._ask(sock_diag._ends(accepted, other=True))
        except OSError as error:
            pytest.skip(f"this machine: netlink may not be used: {error}")
        assert sock_diag.other_end(accepted)


def test_of_two_connections_from_one_port_the_right_one_is_found(way: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as other_server,
        socket.socket() as client,
        socket.socket() as other,
    ):
        for sock in (client, other):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        client.bind(("127.0.0.1", 0))
        other.bind(client.getsockname())
        client.connect(server.getsockname())
        other.connect(other_server.getsockname())
        for one, its_server in ((client, server), (other, other_server)):
            with its_server.accept()[0] as accepted:
                assert sock_diag.other_end(accepted) == (1, os.getuid(), os.fstat(one.fileno()).st_ino)
