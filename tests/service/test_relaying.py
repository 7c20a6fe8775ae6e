"""Connections through a service: no byte is lost, and one connection's failure is its own."""

import re
import socket
import threading
import time
from pathlib import Path

import pytest

from fastvsock.services import acceptor, hanging_up
from support import COMMAND, ECHO, HANG, LATE_SOURCE, NOTHING, SOURCE, SOURCE_SIZE, Endpoint, Listener, pattern, summary
from support.services import FarEnd, Running, eventually, receive, serving


def test_every_connection_is_relayed(endpoint: Endpoint, engine: str, where: str) -> None:
    payload = pattern(endpoint.size(8_000_000))
    with serving("proxy", "--listen", where, endpoint.uds, str(ECHO), engine=engine) as proxy:
        answers: list[bytes] = []
        threads = [threading.Thread(target=lambda: answers.append(echoed(proxy, payload))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [payload] * 3
        assert proxy.end() == (0, "")


def echoed(proxy: Running, payload: bytes) -> bytes:
    with proxy.connect() as sock:
        feeder = threading.Thread(target=sock.sendall, args=(payload,))
        feeder.start()
        data = receive(sock, len(payload))
        feeder.join()
        return data


def test_a_client_gets_everything_although_the_guest_read_nothing_of_what_it_sent(
    endpoint: Endpoint, engine: str, where: str
) -> None:
    # To close a socket with unread input resets the connection, and a reset takes away what is still under way.
    with serving("proxy", "--listen", where, endpoint.uds, str(SOURCE), engine=engine) as proxy:
        with proxy.connect() as sock:
            feeder = threading.Thread(target=send_until_broken, args=(sock, bytes(16_000_000)))
            feeder.start()
            time.sleep(0.3)
            assert receive(sock) == pattern(SOURCE_SIZE)
            sock.shutdown(socket.SHUT_RDWR)
            feeder.join()
        assert proxy.end()[0] == 0


def send_until_broken(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        pass


def test_the_last_words_of_a_client_that_is_gone_reach_the_guest(listener: Listener, engine: str, where: str) -> None:
    payload = pattern(6_000_000)
    with serving("proxy", "--listen", where, listener.uds, "7", engine=engine) as proxy:
        client = proxy.connect()
        guest = listener.accept()
        feeder = threading.Thread(target=send_and_close, args=(client, payload))
        feeder.start()
        with guest:
            guest.sendall(b"what nobody will read")
            time.sleep(0.3)  # the client is stuck, or gone, with much of it in the sockets between
            assert receive(guest) == payload
        feeder.join()
        assert proxy.end() == (0, "")


def send_and_close(sock: socket.socket, data: bytes) -> None:
    with sock:
        sock.sendall(data)
        sock.recv(21)


def test_a_peer_that_never_ends_talking_is_left_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging_up, "FAREWELL", 0.3)
    near, client = socket.socketpair()
    talker = threading.Thread(target=talk, args=(client,))
    talker.start()
    hanging_up.hang_up(near)
    assert near.fileno() == -1
    talker.join(HANG)
    assert not talker.is_alive()
    client.close()


def talk(sock: socket.socket) -> None:
    while True:
        try:
            sock.sendall(b"x")
        except OSError:
            return


def test_a_peer_that_has_not_read_everything_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging_up, "FAREWELL", 0.1)
    monkeypatch.setattr(hanging_up, "SILENCE", 0.1)
    near, client = socket.socketpair()
    near.send(b"x")
    leaving = threading.Thread(target=hanging_up.hang_up, args=(near,))
    leaving.start()
    leaving.join(0.5)
    assert leaving.is_alive()
    assert receive(client) == b"x"
    leaving.join(HANG)
    assert not leaving.is_alive()
    client.close()


def test_a_client_that_closes_without_a_word_is_gone_at_once(far_end: FarEnd, engine: str, where: str) -> None:
    with serving("proxy", "--listen", where, far_end.uds, "7", engine=engine) as proxy:
        for _ in range(5):
            proxy.connect().close()
        eventually(lambda: far_end.taken, 5)
        eventually(lambda: far_end.held, 0)
        assert proxy.end() == (0, "")


def test_a_half_close_of_the_client_does_not_cost_the_answer(endpoint: Endpoint, engine: str, where: str) -> None:
    payload = pattern(endpoint.size(8_000_000))
    arguments = ("--linger", endpoint.linger, "--listen", where, endpoint.uds, str(COMMAND))
    with serving("proxy", *arguments, engine=engine) as proxy, proxy.connect() as sock:
        sock.sendall(b"sink %d\n" % len(payload) + payload)
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock) == summary(payload)


def test_a_client_that_only_receives_waits_as_long_as_it_takes(endpoint: Endpoint, engine: str) -> None:
    with serving("proxy", endpoint.uds, str(LATE_SOURCE), engine=engine) as proxy, proxy.connect() as sock:
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock) == pattern(SOURCE_SIZE)


def test_a_client_that_reads_no_more_can_still_send(listener: Listener, engine: str) -> None:
    with serving("proxy", "--listen", f"unix:{listener.uds}.p", listener.uds, "7", engine=engine) as proxy:
        client = proxy.connect()
        with client, listener.accept() as guest:
            client.shutdown(socket.SHUT_RD)
            guest.sendall(b"what nobody will read")
            time.sleep(0.2)
            client.sendall(b"more")
            assert receive(guest, 4) == b"more"


def test_a_guest_that_refuses_gives_a_closed_connection_and_one_line(endpoint: Endpoint, where: str) -> None:
    with serving("proxy", "--listen", where, endpoint.uds, str(NOTHING)) as proxy:
        with proxy.connect() as sock:
            sock.sendall(b"SSH-2.0-hello\r\n")
            assert receive(sock) == b""
        status, said = proxy.end()
    assert status == 0
    assert said.count("\n") == 1
    assert re.match(rf"fastvsock: .*: {endpoint.uds}: guest port {NOTHING} refused: ", said)


def test_one_connections_failure_never_touches_another(listener: Listener, engine: str) -> None:
    with serving("proxy", listener.uds, "7", engine=engine) as proxy:
        with proxy.connect() as good, listener.accept() as guest:
            with proxy.connect() as refused:
                listener.accept(b"").close()
                assert receive(refused) == b""
            with proxy.connect() as garbled:
                listener.accept(b"garbage\n").close()
                assert receive(garbled) == b""
            with proxy.connect(), listener.accept() as reset:
                reset.close()
            aborted = proxy.connect()
            with listener.accept() as orphan:
                aborted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                aborted.close()
                assert receive(orphan) == b""
            guest.sendall(b"still there")
            assert receive(good, 11) == b"still there"
        status, said = proxy.end()
    assert status == 0
    assert said.count("\n") == 2, said


def test_a_vmm_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    with serving("proxy", "--wait", str(HANG), str(tmp_path / "late.sock"), "7") as proxy, proxy.connect() as sock:
        sock.sendall(b"x")
        time.sleep(0.1)
        far_end = FarEnd(tmp_path / "late.sock")
        assert receive(sock, 1) == b"x"
        sock.close()
        far_end.close()


def test_tcp_clients_are_not_delayed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        sock, address = server.accept()
        with sock:
            assert acceptor._prepare(sock, address) == f"127.0.0.1 port {address[1]}"
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
