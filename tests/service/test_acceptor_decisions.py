"""Which connections a service accepts and when, and what it waits for, one decision at a time."""

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastvsock.host.listeners import Listener
from fastvsock.services import acceptor
from fastvsock.services.connection import Connection
from support.acceptors import Policy, Stage, failing, is_woken


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(tmp_path, monkeypatch)
    yield stage
    stage.close()


# Waiting


@pytest.mark.parametrize(("seconds", "milliseconds"), [(2.5, 2500), (float("inf"), 3600_000), (-1.0, 0)])
def test_a_step_waits_for_as_long_as_asked_and_an_hour_at_most(
    seconds: float, milliseconds: float, stage: Stage
) -> None:
    stage.service().step(seconds)
    assert stage.polls.timeouts == [milliseconds]


def test_a_step_ends_when_another_thread_wakes_it_once(stage: Stage) -> None:
    service = stage.service()
    service.wake()
    assert is_woken(service)
    service.step(0)
    assert not is_woken(service)


def test_a_service_that_was_woken_more_often_than_a_pipe_holds_is_just_woken(stage: Stage) -> None:
    service = stage.service()
    for _ in range((1 << 16) + 1):
        service.wake()
    assert is_woken(service)


# Accepting


def test_a_connection_is_accepted_and_gets_a_thread(stage: Stage) -> None:
    seen: list[Connection] = []
    service = stage.service(seen.append)
    client = stage.client(service)
    service.step(0)
    (connection,) = stage.served
    assert (connection.name, connection.sock.getblocking()) == ("a connection", True)
    assert service.connections() == [connection]
    assert service.taken == 0, "it may be rejected yet"
    stage.end()
    assert seen == [connection]
    assert client.recv(1) == b""
    assert (service.taken, service.ended, service.failed, service.rejected) == (1, 1, 0, 0)
    assert service.connections() == []


def test_the_accepting_thread_is_woken_when_a_connection_is_admitted_and_when_it_ends(stage: Stage) -> None:
    service = stage.service(lambda _: admitted.append(is_woken(service)))
    admitted: list[bool] = []
    stage.client(service)
    service.step(0)
    assert not is_woken(service)
    stage.end()
    assert admitted == [True], "which a service of one connection waits for"
    service.step(0)
    service._policy = Policy(later="rejected")
    stage.client(service)
    service.step(0)
    assert not is_woken(service)
    stage.end(1)
    assert is_woken(service), "a slot is free"


def test_over_the_limit_clients_wait_in_the_backlog(stage: Stage) -> None:
    service = stage.service(limit=2)
    for _ in range(3):
        stage.client(service)
        service.step(0)
    assert len(stage.served) == 2
    assert stage.polls.watched == {service._woken}
    stage.end()
    service.step(0)
    assert len(stage.served) == 3


def test_of_two_clients_at_two_sockets_the_last_slot_is_for_one(stage: Stage) -> None:
    service, other = stage.service(limit=1), stage.service()
    service.listeners += other.listeners
    for listener in (0, 1):
        stage.client(service, listener)
    service.step(0)
    assert len(stage.served) == 1
    stage.end()
    service.step(0)
    assert len(stage.served) == 2


def test_without_a_queue_what_is_over_the_limit_is_closed_and_reported(stage: Stage) -> None:
    service = stage.service(limit=1, queue=False)
    clients = [stage.client(service) for _ in range(2)]
    for _ in clients:
        service.step(0)
    assert clients[1].recv(1) == b""
    assert stage.said == ["a connection: rejected: all 1 connections are in use (--max-connections)"]
    assert (len(service.open), service.rejected, service.unidentified) == (1, 1, 0)
    clients[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        clients[0].recv(1)


@pytest.mark.parametrize("error", [BlockingIOError(), ConnectionAbortedError()], ids=repr)
def test_a_client_that_is_gone_before_it_is_accepted_is_nothing_to_report(error: OSError, stage: Stage) -> None:
    service = stage.service()
    stage.client(service)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "accept", failing(error))
        service.step(0)
    service.step(5)
    assert (stage.said, stage.polls.timeouts, len(stage.served)) == ([], [0, 5000], 1)


# Where something runs short


def test_where_accept_fails_the_service_pauses_for_a_second(stage: Stage) -> None:
    service = stage.service()
    listening = service.listeners[0].sock.fileno()
    stage.client(service)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "accept", failing(OSError(errno.EMFILE, "Too many open files")))
        service.step(0)
    assert stage.said == ["cannot accept a connection: Too many open files; waiting for another one to end"]
    for since, rest in ((0.0, 1000), (0.75, 250)):
        stage.now = 100.0 + since
        service.step(5)
        assert stage.polls.timeouts[-1] == rest
        assert listening not in stage.polls.watched
    service.step(0.125)
    assert stage.polls.timeouts[-1] == 125
    stage.now = 101.0
    service.step(5)
    assert stage.polls.timeouts[-1] == 5000
    assert len(stage.served) == 1


def test_the_end_of_another_connection_ends_the_pause(stage: Stage) -> None:
    service = stage.service()
    service._pause("something is short")
    stage.client(service)
    service.wake()
    service.step(5)
    assert stage.served == []
    service.step(5)
    assert len(stage.served) == 1


def test_a_connection_without_a_thread_waits_and_no_other_is_accepted_before_it(stage: Stage) -> None:
    service = stage.service()
    stage.threads = 0
    stage.client(service)
    stage.client(service)
    service.step(5)
    said = ["cannot serve a connection yet: can't start new thread; waiting for another one to end"]
    assert (stage.said, stage.served, len(service.open)) == (said, [], 1)
    stage.threads = 9
    stage.now += 0.9
    service.step(5)
    assert (stage.said, stage.served, len(service.open)) == (said, [], 1)
    stage.now += 0.1
    service.step(5)
    assert (stage.said, len(stage.served), len(service.open)) == (said, 2, 2)


def test_memory_that_is_short_is_waited_for_as_threads_are(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    service = stage.service()
    monkeypatch.setattr(Connection, "start", failing(MemoryError()))
    stage.client(service)
    service.step(5)
    assert len(stage.said) == 1
    assert service.connections()


# The last call


def test_the_last_call_accepts_what_waits_over_the_limit_and_serves_it_in_turn(stage: Stage) -> None:
    service = stage.service(limit=2)
    address = service.listeners[0].address.path
    clients = [stage.client(service) for _ in range(4)]
    service.last_call()
    assert (len(service.open), len(stage.served)) == (4, 2)
    for done in range(4):
        stage.end(done)
        service.step(0)
        assert len(stage.served) == min(done + 3, 4)
    assert [client.recv(1) for client in clients] == [b""] * 4
    assert service.listeners == []
    assert not Path(address).exists()
    assert stage.said == []


def test_the_last_call_goes_to_each_socket(stage: Stage) -> None:
    service, other = stage.service(), stage.service()
    service.listeners += other.listeners
    for listener in (0, 1, 1):
        stage.client(service, listener)
    service.last_call()
    assert len(stage.served) == 3


def test_clients_that_connect_again_and_again_do_not_keep_the_last_call(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "BACKLOG", 3)
    service = stage.service()
    for _ in range(5):
        stage.client(service)
    service.last_call()
    assert len(stage.served) == 3


def test_the_last_call_goes_on_behind_a_client_that_is_rejected(stage: Stage) -> None:
    service = stage.service(policy=Policy("rejected"))
    clients = [stage.client(service) for _ in range(3)]
    service.last_call()
    assert service.rejected == 3
    assert [client.recv(1) for client in clients] == [b""] * 3


@pytest.mark.parametrize(
    ("error", "lines"), [(BlockingIOError(), 0), (OSError(errno.EMFILE, "Too many open files"), 2)], ids=repr
)
def test_the_last_call_is_over_where_nobody_can_be_accepted(error: OSError, lines: int, stage: Stage) -> None:
    def accept(sock: socket.socket) -> None:
        calls.append(None)
        raise error

    calls: list[None] = []
    service = stage.service()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "accept", accept)
        service.last_call()
    assert (len(calls), len(stage.said)) == (1, lines)


def test_the_last_call_reports_what_it_had_to_turn_away(stage: Stage) -> None:
    service = stage.service()
    service._pause("something is short")
    service.last_call()
    line = "connections that waited to be accepted were turned away: their owners are unknown"
    assert stage.said == ["something is short", line]
    later = stage.service()
    later._pause("something was short")
    stage.now += 1.0
    later.last_call()
    assert stage.said[2:] == ["something was short"]


def test_a_service_that_stops_accepting_refuses_and_removes_its_socket(stage: Stage) -> None:
    service = stage.service()
    listeners = list(service.listeners)
    service.stop_accepting()
    assert service.listeners == []
    assert listeners[0].sock.fileno() == -1
    assert not Path(listeners[0].address.path).exists()


def test_no_socket_listens_any_more_when_the_first_file_is_removed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, other = stage.service(), stage.service()
    service.listeners += other.listeners
    listeners = list(service.listeners)
    open_then: list[int] = []
    monkeypatch.setattr(
        Listener, "close", lambda _: open_then.append(sum(each.sock.fileno() >= 0 for each in listeners))
    )
    service.stop_accepting()
    assert open_then == [0, 0]
