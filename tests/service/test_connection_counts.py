"""What a service counts and reports of its connections, and what it sets on their sockets, one decision at a time."""

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastvsock import errors
from fastvsock.services import acceptor
from fastvsock.services.acceptor import Rejections, Service
from fastvsock.services.connection import Connection
from fastvsock.services.handlers import ToSocket
from fastvsock.services.terms import Terms
from support.acceptors import Policy, Stage, failing
from support.services import connected


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(tmp_path, monkeypatch)
    yield stage
    stage.close()


def counts(service: Service) -> dict[str, int]:
    """All of a service's counts but those that are 0."""
    names = "taken", "rejected", "unidentified", "ended", "failed"
    return {name: getattr(service, name) for name in names if getattr(service, name)}


def test_a_new_service_has_counted_nothing(stage: Stage) -> None:
    service = stage.service()
    assert (counts(service), service.moved, service.last_error) == ({}, (0, 0), None)


@pytest.mark.parametrize("unidentified", [False, True])
def test_a_connection_that_is_rejected_at_accept_has_no_slot(unidentified: bool, stage: Stage) -> None:
    service = stage.service(policy=Policy("rejected: a stranger", unidentified=unidentified))
    client = stage.client(service)
    service.step(0)
    assert client.recv(1) == b""
    assert (stage.served, service.open) == ([], set())
    assert (service.rejected, service.unidentified, service.taken) == (1, unidentified, 0)
    assert stage.said == ["a connection: rejected: a stranger"]


def test_a_connection_that_is_rejected_later_is_not_served_and_not_taken(stage: Stage) -> None:
    service = stage.service(failing(AssertionError("served")), policy=Policy(later="rejected: a stranger"))
    client = stage.client(service)
    service.step(0)
    stage.end()
    assert client.recv(1) == b""
    assert counts(service) == {"rejected": 1}
    assert stage.served[0].admitted is False
    assert stage.said == ["a connection: rejected: a stranger"]


def test_a_connection_that_fails_is_reported_with_its_name_and_the_hint(stage: Stage) -> None:
    error = errors.GuestRefusedError("/v.sock", 7)
    service = stage.service(failing(error))
    client = stage.client(service)
    service.step(0)
    stage.end()
    assert client.recv(1) == b""
    assert counts(service) == {"taken": 1, "ended": 1, "failed": 1}
    assert service.last_error is error
    assert stage.said == [f"a connection: {error} ({error.hint})"]


def test_an_unexpected_failure_is_reported_in_a_sentence(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTVSOCK_DEBUG", raising=False)
    service = stage.service(failing(ZeroDivisionError("by zero")))
    stage.client(service)
    service.step(0)
    stage.end()
    assert stage.said == ["a connection: unexpected ZeroDivisionError: by zero"]
    assert counts(service) == {"taken": 1, "ended": 1, "failed": 1}
    assert isinstance(service.last_error, errors.FastvsockError)


def test_an_unexpected_failure_is_raised_where_debugging_is_asked_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTVSOCK_DEBUG", "1")
    service = stage.service(failing(ZeroDivisionError("by zero")))
    stage.client(service)
    service.step(0)
    with pytest.raises(ZeroDivisionError):
        stage.end()
    assert counts(service) == {"taken": 1, "ended": 1}, "and the connection is closed all the same"


def test_bytes_are_counted_while_they_move_and_when_the_connection_has_ended(stage: Stage) -> None:
    def serve(connection: Connection) -> None:
        connection.moved = 10, 20

    service = stage.service(serve)
    for _ in range(3):
        stage.client(service)
        service.step(0)
    stage.end(0)
    stage.end(1)
    assert service.moved == (20, 40)
    stage.served[2]._relay = SimpleNamespace(sent=1, received=2)  # type: ignore[assignment]
    assert service.moved == (21, 42)


def test_all_that_is_open_is_cut_off(stage: Stage) -> None:
    service = stage.service()
    clients = [stage.client(service) for _ in range(2)]
    for _ in clients:
        service.step(0)
    assert service.cut()
    assert [client.recv(1) for client in clients] == [b"", b""]


def test_children_of_what_was_cut_off_have_the_same_time_to_end(stage: Stage) -> None:
    service = stage.service()
    deadlines: list[float] = []
    for _ in range(3):
        stage.client(service)
        service.step(0)
    for connection in stage.served[1:]:
        connection.child = SimpleNamespace(end=deadlines.append)  # type: ignore[assignment]
    service.end_children(2.5)
    assert deadlines == [102.5] * 2


# Lines about rejected connections


def test_rejections_are_one_line_a_second_with_the_number_of_those_without_one(stage: Stage) -> None:
    rejections = Rejections()
    for now in (100.0, 100.5, 100.75, 101.0, 101.5, 102.0, 103.0):
        stage.now = now
        rejections.log("somebody", f"rejected at {now}")
    assert stage.said == [
        "somebody: rejected at 100.0",
        "2 more connections were rejected",
        "somebody: rejected at 101.0",
        "1 more connection was rejected",
        "somebody: rejected at 102.0",
        "somebody: rejected at 103.0",
    ]


def test_those_without_a_line_are_counted_at_the_end(stage: Stage) -> None:
    service = stage.service(policy=Policy("rejected"))
    for _ in range(3):
        stage.client(service)
        service.step(0)
    service.flush_log()
    service.flush_log()
    assert stage.said == ["a connection: rejected", "2 more connections were rejected"]


def test_on_a_machine_that_has_just_started_the_first_rejection_has_a_line(stage: Stage) -> None:
    stage.now = 0.0
    Rejections().log("somebody", "rejected")
    assert stage.said == ["somebody: rejected"]


# Sockets


OPTIONS = {  # where there is no delay, and a peer is asked every 15 seconds whether it is there
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 15,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 15,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 4,
}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_tcp_client_is_named_and_has_its_options_set(host: str) -> None:
    with connected(host) as (client, accepted):
        accepted.setblocking(False)
        assert acceptor._prepare(accepted, client.getsockname()) == f"{host} port {client.getsockname()[1]}"
        assert accepted.getblocking()
        assert {option: accepted.getsockopt(*option) for option in OPTIONS} == OPTIONS


def test_a_connection_to_a_tcp_server_of_the_host_has_them_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ToSocket(server.getsockname(), Terms())._connect() as near:
        assert {option: near.getsockopt(*option) for option in OPTIONS} == OPTIONS


@pytest.mark.parametrize("missing", OPTIONS)
def test_an_option_that_a_socket_does_not_have_is_left_out_and_the_others_are_set(missing: tuple[int, int]) -> None:
    class Sctp(SimpleNamespace):
        family = socket.AF_INET

        def setblocking(self, blocks: bool) -> None:
            pass

        def setsockopt(self, level: int, option: int, value: int) -> None:
            if (level, option) == missing:
                raise OSError(errno.ENOPROTOOPT, "Protocol not available")
            seen[level, option] = value

    seen: dict[tuple[int, int], int] = {}
    assert acceptor._prepare(Sctp(), ("192.0.2.1", 9)) == "192.0.2.1 port 9"  # type: ignore[arg-type]
    assert seen == {option: value for option, value in OPTIONS.items() if option != missing}


@pytest.mark.parametrize("address", ["", b"", "/run/client"])
def test_a_client_at_a_unix_socket_has_no_name(address: object) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        assert acceptor._prepare(ours, address) == "a connection"
        assert ours.getblocking()
