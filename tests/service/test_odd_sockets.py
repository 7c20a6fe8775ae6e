"""Sockets that are not quite as expected, and small packets on all that are TCP's."""

import errno
import os
import re
import socket
import urllib.request
from pathlib import Path

import pytest

from fastvsock.host import addresses, listeners
from fastvsock.services import acceptor, announce, handlers
from fastvsock.services.terms import Terms
from support import HANG, started
from support.services import FarEnd, ask, connect, eventually, pass_as, receive, script_command, serving


def test_an_end_without_a_descriptor_to_spare_is_orderly(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setattr(socket, "socket", short)
    announce.notify("STOPPING=1")


@pytest.mark.parametrize("name", ["/no/such/socket", "@no-such-socket", "/" + "x" * 200, "relative"])
def test_a_service_manager_that_cannot_be_reached_is_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    announce.notify("READY=1\nSTATUS=\udcff")


class Odd(socket.socket):
    """A TCP socket without any options."""

    def setsockopt(self, *_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")


def test_options_that_a_socket_does_not_have_are_done_without() -> None:
    with Odd() as sock:
        assert acceptor._prepare(sock, ("192.0.2.1", 5)) == "192.0.2.1 port 5"


def test_an_inherited_multipath_socket_is_served(far_end: FarEnd) -> None:
    try:
        passed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, getattr(socket, "IPPROTO_MPTCP", 262))
    except OSError as error:
        pytest.skip(f"this machine: no MPTCP: {error}")
    with passed:
        passed.bind(("127.0.0.1", 0))
        passed.listen()
        before, environment = pass_as(passed.fileno(), 3), os.environ | {"LISTEN_FDS": "1"}
        with serving("proxy", far_end.uds, "7", before=before, pass_fds=[passed.fileno()], env=environment) as proxy:
            assert ask(proxy.address, b"x") == b"x"
            assert proxy.end() == (0, "")


def test_a_listening_socket_hands_its_clients_no_delay() -> None:
    # Nagle's algorithm (RFC 896) and delayed acknowledgements cost 40 ms for each small answer.
    listener = listeners.open_listener(addresses.parse("127.0.0.1:0"))
    listener.sock.setblocking(True)
    with socket.create_connection(listener.sock.getsockname()), listener.sock.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    listener.close()


def test_a_connection_to_a_target_has_no_delay() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        handlers.ToSocket(server.getsockname(), Terms())._connect() as near,
    ):
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_metrics_are_not_delayed_either(far_end: FarEnd) -> None:
    pytest.importorskip("prometheus_client", reason="the extra fastvsock[metrics] is not installed")
    bent = (
        "import socket, prometheus_client; start = prometheus_client.start_http_server\n"
        "def started(*words):\n"
        "    pair = start(*words); original = pair[0].get_request\n"
        "    def get_request():\n"
        "        sock, where = original(); print(sock.getsockopt(6, socket.TCP_NODELAY), flush=True)\n"
        "        return sock, where\n"
        "    pair[0].get_request = get_request; return pair\n"
        "prometheus_client.start_http_server = started"
    )
    with started(script_command(bent, "proxy", "--metrics", "127.0.0.1:0", far_end.uds, "7")) as proxy:
        url = re.search(r"http://127\.0\.0\.1:\d+/metrics", proxy.stderr.readline().decode())
        assert url
        proxy.stdout.readline()
        urllib.request.urlopen(url.group(), timeout=HANG).close()
        assert int(proxy.stdout.readline()) > 0


def test_over_its_limit_listen_closes_instead_of_letting_the_vmm_wait(tmp_path: Path) -> None:
    words = ("--max-connections", "2", str(tmp_path / "v.sock"), "9", "--", "cat")
    with serving("listen", *words) as service:
        guests = [connect(service.address) for _ in range(2)]
        for guest in guests:
            guest.sendall(b"x")
            assert receive(guest, 1) == b"x"
        for _ in range(20):
            with connect(service.address) as more:
                assert receive(more) == b""
        guests[0].close()
        eventually(lambda: serves(service.address), True)
        guests[1].sendall(b"y")
        assert receive(guests[1], 1) == b"y"
        guests[1].close()
        status, said = service.end()
    assert status == 0
    assert "rejected: all 2 connections are in use (--max-connections)" in said
    assert said.count("\n") < 10


def serves(address: str) -> bool:
    """Whether a new connection is served."""
    with connect(address) as sock:
        try:
            sock.sendall(b"x")
            return receive(sock, 1) == b"x"
        except OSError:
            return False  # closed with the byte unread
