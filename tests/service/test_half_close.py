"""Half-closes through the services: both ways, and a peer that sends no more goes on reading."""

import re
import socket
import threading
from pathlib import Path

import pytest

from support import HANG, Listener, pattern, read_exactly
from support.listen import on_stdio
from support.services import connect, receive, serving

SIZE = 3_000_000


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send and half-close."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_a_guest_that_sends_no_more_still_gets_everything(listener: Listener, engine: str, where: str) -> None:
    with serving("proxy", "--listen", where, listener.uds, "7", engine=engine) as proxy:
        with proxy.connect() as client, listener.accept() as guest:
            guest.shutdown(socket.SHUT_WR)
            assert receive(client) == b"", "the client reads the guest's end of file while it still sends"
            feeder = threading.Thread(target=send_all, args=(client, pattern(SIZE)))
            feeder.start()
            assert receive(guest) == pattern(SIZE)
            feeder.join()
        assert proxy.end() == (0, "")


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_listen_passes_half_closes_both_ways(tmp_path: Path, engine: str, kind: str) -> None:
    with socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX) as server:
        server.settimeout(HANG)
        server.bind(("127.0.0.1", 0) if kind == "tcp" else str(tmp_path / "target"))
        server.listen()
        target = f"127.0.0.1:{server.getsockname()[1]}" if kind == "tcp" else str(tmp_path / "target")
        arguments = (f"--{kind}", target, str(tmp_path / "v.sock"), "9")
        with serving("listen", *arguments, engine=engine) as service:
            for silent_first in ("guest", "host"):
                with connect(service.address) as guest, server.accept()[0] as host:
                    host.settimeout(HANG)
                    guest.sendall(b"hello")
                    assert receive(host, 5) == b"hello"
                    one, other = (guest, host) if silent_first == "guest" else (host, guest)
                    send_all(one, b"the last of it")
                    assert receive(other) == b"the last of it"
                    feeder = threading.Thread(target=send_all, args=(other, pattern(SIZE)))
                    feeder.start()
                    assert receive(one) == pattern(SIZE)
                    feeder.join()
            assert service.end() == (0, "")


def test_a_child_reads_the_guests_end_and_can_still_answer(tmp_path: Path, engine: str) -> None:
    uds = str(tmp_path / "v.sock")
    script = f"wc -c; sleep 1; head -c {SIZE} /dev/zero"
    with serving("listen", uds, "9", "--", "sh", "-c", script, engine=engine) as service:
        with connect(service.address) as guest:
            feeder = threading.Thread(target=send_all, args=(guest, pattern(SIZE)))
            feeder.start()
            answer = receive(guest)
            feeder.join()
        assert answer == b"%d\n" % SIZE + bytes(SIZE)
        assert service.end() == (0, "")


def test_stdout_ends_with_the_guests_half_close_and_stdin_goes_on(tmp_path: Path, engine: str) -> None:
    uds = str(tmp_path / "v.sock")
    with on_stdio(uds, engine) as child, connect(f"unix:{uds}_5201") as guest:
        send_all(guest, b"hello")
        assert read_exactly(child.stdout.fileno(), 100) == b"hello"
        child.stdin.write(b"more")
        child.stdin.close()
        assert receive(guest) == b"more"
        guest.close()
        assert child.wait(HANG) == 0


def test_an_answer_that_the_half_close_cut_off_is_reported(listener: Listener, engine: str, where: str) -> None:
    with serving("proxy", "--linger", "0.2", "--listen", where, listener.uds, "7", engine=engine) as proxy:
        with proxy.connect() as client, listener.accept() as guest:
            send_all(client, b"question")
            assert receive(guest) == b"question"
            guest.close()  # as a VMM that takes a half-close for a close
            assert receive(client) == b""
        status, said = proxy.end()
    assert status == 0
    assert re.fullmatch(r"fastvsock: .*: the guest sent nothing after .* half-closed .*--linger SECONDS.*\n", said)


def test_a_client_that_left_after_its_half_close_misses_no_answer(listener: Listener, engine: str, where: str) -> None:
    with serving("proxy", "--linger", "0.2", "--listen", where, listener.uds, "7", engine=engine) as proxy:
        client = proxy.connect()
        with listener.accept() as guest:
            send_all(client, b"question")
            assert receive(guest) == b"question"
            client.close()
        assert proxy.end() == (0, "")


def test_a_client_that_has_left_misses_no_answer(listener: Listener, engine: str, where: str) -> None:
    with serving("proxy", "--linger", "0.2", "--listen", where, listener.uds, "7", engine=engine) as proxy:
        client = proxy.connect()
        with listener.accept() as guest:
            client.sendall(b"question")
            client.close()
            assert receive(guest) == b"question"
        assert proxy.end() == (0, "")
