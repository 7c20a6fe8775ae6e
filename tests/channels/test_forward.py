"""`fastvsock forward`: connections here reach what listens in the guest, both half-closes intact."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import HANG, started
from support.channels import Guest, umbrella, within
from support.services import Running, connect, receive, service_command


class Server:
    """A TCP server in the guest, which here is this machine: it reads to the end, and then answers in reverse."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.held = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        self.held += 1
        try:
            with sock:
                sock.sendall(receive(sock)[::-1])
        except OSError:
            pass
        finally:
            self.held -= 1


@pytest.fixture
def server() -> Iterator[Server]:
    listener = socket.create_server(("127.0.0.1", 0))
    yield Server(listener)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def port(server: Server) -> int:
    return int(server.listener.getsockname()[1])


@contextmanager
def forwarding(guest: Guest, *forwards: str, engine: str) -> Iterator[list[Running]]:
    """The service, once for each of its addresses."""
    with started(service_command("forward", guest.uds, *forwards, engine=engine)) as child:
        count = sum(
            not (word.startswith("--") or forwards[max(at - 1, 0)].startswith("--")) for at, word in enumerate(forwards)
        )
        lines = [child.stdout.readline().decode() for _ in range(count)]
        assert all(line.startswith("listening on ") for line in lines), child.stderr.read()
        yield [Running(child, line.removeprefix("listening on ").strip()) for line in lines]


def exchange(address: str, data: bytes) -> bytes:
    with connect(address) as sock:
        threading.Thread(target=send, args=(sock, data), daemon=True).start()
        return receive(sock)


def send(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_every_kind_of_forward(guest: Guest, engine: str, server: Server, port: int, tmp_path: Path) -> None:
    there = socket.socket(socket.AF_UNIX)
    there.bind(str(tmp_path / "there"))
    there.listen()
    Server(there)
    here = tmp_path / "here"
    forwards = (
        f":{port}",
        f"127.0.0.1:0:{port}",
        f"[::1]:0:{port}",
        f"unix:{here}:{port}",
        f":unix:{tmp_path}/there",
        f"unix:{here}2:unix:{tmp_path}/there",
    )
    data = os.urandom(1_000_000)
    with forwarding(guest, *forwards, engine=engine) as services:
        for service in services:
            assert exchange(service.address, data) == data[::-1]
        assert [service.address for service in services][3:] == [
            f"unix:{here}",
            services[4].address,
            f"unix:{here}2",
        ]
        assert services[0].end() == (0, "")
    there.close()


def test_many_connections_at_the_same_time(guest: Guest, engine: str, port: int) -> None:
    with forwarding(guest, f":{port}", engine=engine) as (service,):
        socks = [connect(service.address) for _ in range(50)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%d" % number)
            sock.shutdown(socket.SHUT_WR)
        assert [receive(sock) for sock in socks] == [(b"%d" % number)[::-1] for number in range(50)]
        for sock in socks:
            sock.close()


def test_a_port_that_nobody_listens_on_is_one_line(guest: Guest, engine: str) -> None:
    with forwarding(guest, ":1", engine=engine) as (service,):
        with connect(service.address) as sock:
            assert receive(sock) == b""
        status, said = service.end()
    assert status == 0
    assert "cannot connect to tcp:127.0.0.1:1 in the guest: Connection refused" in said
    assert said.count("\n") == 1


def test_one_connection_that_fails_is_status_1(guest: Guest, engine: str) -> None:
    with started(service_command("forward", "--once", guest.uds, ":1", engine=engine)) as child:
        running = Running(child, child.stdout.readline().decode().split()[-1])
        with connect(running.address) as sock:
            assert receive(sock) == b""
        status, said = running.outcome()
    assert (status, said.count("\n")) == (1, 1)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_client_that_goes_is_gone_in_the_guest_too(
    guest: Guest, engine: str, server: Server, port: int, kind: str, tmp_path: Path
) -> None:
    forward = f":{port}" if kind == "tcp" else f"unix:{tmp_path}/here:{port}"
    with forwarding(guest, forward, engine=engine) as (service,):
        with connect(service.address) as sock:
            sock.sendall(b"some bytes")
            assert within(HANG, lambda: server.held == 1)
        assert within(HANG, lambda: server.held == 0)


def test_a_client_that_resets_is_its_own_affair(guest: Guest, engine: str, server: Server, port: int) -> None:
    with forwarding(guest, f":{port}", engine=engine) as (service,):
        sock = connect(service.address)
        sock.sendall(b"some bytes")
        assert within(HANG, lambda: server.held == 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        assert within(HANG, lambda: server.held == 0)
        assert service.end() == (0, "")


def test_an_idle_connection_is_given_up_where_that_is_asked_for(guest: Guest, engine: str, port: int) -> None:
    with forwarding(guest, "--idle-timeout", "0.3", f":{port}", engine=engine) as (service,):
        with connect(service.address) as sock:
            sock.sendall(b"some bytes")
            assert receive(sock) == b""
        _, said = service.end()
    assert "nothing moved for 0.3 s, after 10 bytes up and 0 down: " in said


def test_an_end_with_open_connections_says_so(guest: Guest, engine: str, port: int) -> None:
    command = service_command("forward", "--grace", "0.1", guest.uds, f":{port}", engine=engine)
    with started(command) as child:
        running = Running(child, child.stdout.readline().decode().split()[-1])
        with connect(running.address) as sock:
            sock.sendall(b"x")
            assert within(HANG, lambda: len(os.listdir(f"/proc/{child.pid}/task")) > 2)
            status, said = running.end(signal.SIGTERM)
    assert status == 0
    assert "--grace expired: closed 1 open connection" in said


@pytest.mark.parametrize(
    "forward", ["x", "1:x", "1:0", "1:65536", "99999:1", "nope:1:2", "1:unix:", "unix::1", "a:b:c:1", ""]
)
def test_a_forward_that_is_none_is_refused_by_its_name(guest: Guest, forward: str) -> None:
    said = refusal(guest.uds, forward)
    assert said.startswith(f"fastvsock: invalid FORWARD {forward!r}")
    assert said.count("\n") == 1


def test_a_forward_from_other_machines_takes_an_option(guest: Guest) -> None:
    said = refusal(guest.uds, "1.2.3.4:1:2")
    assert said.startswith("fastvsock: 1.2.3.4:1 is reachable from other machines")


def test_a_mode_takes_a_unix_socket_to_listen_on(guest: Guest, engine: str, port: int, tmp_path: Path) -> None:
    assert "invalid --mode for 127.0.0.1:0: expected an address unix:PATH" in refusal("--mode", "644", guest.uds, ":1")
    forwards = (f":{port}", f"unix:{tmp_path}/here:{port}")
    with forwarding(guest, "--mode", "644", *forwards, engine=engine):
        assert (tmp_path / "here").stat().st_mode & 0o777 == 0o644


def refusal(*arguments: str) -> str:
    """What the command says of its wrong usage."""
    with started(umbrella("forward", *arguments)) as child:
        assert child.wait(HANG) == 2
        return child.stderr.read().decode()
