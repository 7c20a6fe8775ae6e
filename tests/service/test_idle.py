"""`--idle-timeout`, and a client that never reads: connections in which nothing moves end, and free their slots."""

import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from fastvsock.services import hanging_up
from support import HANG, Listener, called, started
from support.listen import listening_on
from support.services import FarEnd, connect, eventually, is_alive, receive, serving

LIMIT = ("--idle-timeout", "0.5", "--max-connections", "1")


def test_a_connection_that_says_nothing_is_ended_and_its_slot_is_free(far_end: FarEnd, engine: str, where: str) -> None:
    with serving("proxy", *LIMIT, "--listen", where, far_end.uds, "7", engine=engine) as proxy:
        with proxy.connect() as silent:
            with proxy.connect() as other:
                other.sendall(b"x")
                assert receive(other, 1) == b"x"
            assert receive(silent) == b""
        status, said = proxy.end()
    assert status == 0
    assert "nothing moved for 0.5 s" in said
    assert "--idle-timeout" in said


def test_a_connection_in_which_something_moves_stays(far_end: FarEnd, engine: str) -> None:
    with serving("proxy", *LIMIT, far_end.uds, "7", engine=engine) as proxy, proxy.connect() as sock:
        for _ in range(8):
            time.sleep(0.2)
            sock.sendall(b"x")
            assert receive(sock, 1) == b"x"
        sock.close()
        assert proxy.end() == (0, "")


def test_a_client_that_never_reads_is_ended_while_the_guest_lives(listener: Listener, engine: str, where: str) -> None:
    with serving("proxy", *LIMIT, "--listen", where, listener.uds, "7", engine=engine) as proxy, proxy.connect():
        with listener.accept() as guest:
            guest.settimeout(HANG)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                guest.sendall(bytes(1 << 26))
        with proxy.connect() as other, listener.accept() as guest:
            guest.sendall(b"x")
            assert receive(other, 1) == b"x"


def test_a_client_that_never_reads_loses_its_slot_after_the_guest_has_closed(
    listener: Listener, engine: str, where: str
) -> None:
    with serving("proxy", *LIMIT, "--listen", where, listener.uds, "7", engine=engine) as proxy, proxy.connect():
        with listener.accept() as guest:
            guest.sendall(bytes(100_000))
        with proxy.connect() as other, listener.accept() as guest:
            guest.sendall(b"x")
            assert receive(other, 1) == b"x"
        status, said = proxy.end()
    assert status == 0
    assert ("closed with data unread" in said) == where.startswith("unix:"), "a TCP client's kernel has it all"


def test_a_guest_that_never_reads_is_ended(tmp_path: Path, engine: str) -> None:
    words = (*LIMIT, str(tmp_path / "v.sock"), "9", "--", "cat", "/dev/zero")
    with serving("listen", *words, engine=engine) as service, connect(service.address):
        assert b"--idle-timeout" in service.child.stderr.readline()
        eventually(lambda: connects(service.address), True)


def connects(address: str) -> bool:
    """Whether a new connection is served."""
    with connect(address) as sock:
        sock.settimeout(0.3)
        try:
            return len(sock.recv(1)) > 0
        except OSError:
            return False


def test_an_idle_child_is_ended_whatever_it_ignores(tmp_path: Path, engine: str) -> None:
    script = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
    words = (*LIMIT, str(tmp_path / "v.sock"), "9", "--", "sh", "-c", script)
    with serving("listen", *words, engine=engine) as service, connect(service.address) as guest:
        pid = int(receive(guest))
        eventually(lambda: is_alive(pid), False)
        assert service.child.poll() is None


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_idle_connection_to_a_socket_of_the_host_is_ended(tmp_path: Path, engine: str, kind: str) -> None:
    with socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX) as server:
        server.bind(("127.0.0.1", 0) if kind == "tcp" else str(tmp_path / "target"))
        server.listen()
        target = f"127.0.0.1:{server.getsockname()[1]}" if kind == "tcp" else str(tmp_path / "target")
        arguments = (*LIMIT, f"--{kind}", target, str(tmp_path / "v.sock"), "9")
        with serving("listen", *arguments, engine=engine) as service, connect(service.address) as guest:
            near, _ = server.accept()
            with near:
                near.settimeout(HANG)
                assert (receive(guest), receive(near)) == (b"", b"")


def test_on_stdin_and_stdout_it_is_a_failure(tmp_path: Path, engine: str) -> None:
    uds = str(tmp_path / "v.sock")
    words = listening_on(uds, "--idle-timeout", "0.5", "--ready-fd", "2", engine=engine)
    with started(words) as child:
        child.stderr.readline()
        with connect(f"unix:{uds}_5201") as guest:
            assert receive(guest) == b""
        assert child.wait(HANG) == 1
        assert b"--idle-timeout" in child.stderr.read()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x"])
@pytest.mark.parametrize("name", ["proxy", "listen"])
def test_a_limit_that_is_not_a_time_is_wrong_usage(name: str, value: str) -> None:
    words = [*called("fastvsock"), name, f"--idle-timeout={value}", "/v.sock", "7"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False)
    assert done.returncode == 2
    assert b"expected a number of seconds more than 0" in done.stderr


def test_a_peer_that_reads_nothing_is_given_up() -> None:
    near, client = socket.socketpair()
    with client:
        near.send(b"x")
        assert hanging_up.hang_up(near, 0.2)
        assert near.fileno() == -1
        assert receive(client) == b"x", "a Unix socket keeps it"


def test_a_peer_that_reads_slowly_is_not() -> None:
    near, client = socket.socketpair()
    client.settimeout(HANG)
    with client:
        for _ in range(8):
            near.send(bytes(1000))
        result: list[bool] = []
        leaving = threading.Thread(target=lambda: result.append(hanging_up.hang_up(near, 0.6)))
        leaving.start()
        for _ in range(8):
            time.sleep(0.2)
            assert len(client.recv(1000)) == 1000
        client.close()
        leaving.join(HANG)
        assert result == [False]


def test_a_peer_that_talks_and_reads_nothing_is_given_up_too() -> None:
    near, client = socket.socketpair()
    near.send(b"x")
    with client, socket.fromfd(client.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as talker:

        def talk() -> None:
            try:
                while True:
                    talker.send(b"y")
                    time.sleep(0.01)
            except OSError:
                pass

        talking = threading.Thread(target=talk)
        talking.start()
        assert hanging_up.hang_up(near, 0.3)
        talking.join(HANG)
        assert not talking.is_alive()
