"""What `fastvsock listen` promises: the guest connects to a port of the host, and the host answers.

The guest's call is the guest's own where the test needs no more than what it sends; where it needs the guest's hands,
the test connects to the socket as a VMM does for a guest.
"""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from support import COMMAND, HANG, Endpoint, pattern, read_exactly, run
from support.listen import PORT, on_stdio
from support.services import connect, eventually, receive, serving

SIZE = 1_000_000


def call(endpoint: Endpoint, size: int) -> bytes:
    """Let the guest connect to the host's port and send so much; what came of it."""
    return run(endpoint.uds, str(COMMAND), input=b"back %d %d\n" % (PORT, size)).stdout


def test_a_connection_is_stdin_and_stdout(endpoint: Endpoint, engine: str) -> None:
    size = endpoint.size(SIZE)
    with on_stdio(endpoint.uds, engine) as child:
        result: list[bytes] = []
        guest = threading.Thread(target=lambda: result.append(call(endpoint, size)))
        guest.start()
        assert read_exactly(child.stdout.fileno(), size + 1) == pattern(size)
        guest.join()
        assert (child.wait(HANG), child.stderr.read()) == (0, b"")
    assert result == [b"back ok\n"]
    assert not os.path.exists(f"{endpoint.uds}_{PORT}")


def test_stdin_goes_to_the_guest_as_it_comes(tmp_path: Path, engine: str) -> None:
    uds = str(tmp_path / "v.sock")
    with on_stdio(uds, engine) as child:
        with connect(f"unix:{uds}_{PORT}") as guest:
            child.stdin.write(b"to the guest")
            assert receive(guest, 12) == b"to the guest"
            guest.sendall(b"to the host")
            assert read_exactly(child.stdout.fileno(), 11) == b"to the host"
            eventually(lambda: os.path.exists(f"{uds}_{PORT}"), False)  # stdin and stdout are enough for one
        assert child.wait(HANG) == 0


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_connection_is_joined_to_a_socket_of_the_host(
    endpoint: Endpoint, engine: str, tmp_path: Path, kind: str
) -> None:
    size = endpoint.size(SIZE)
    with socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX) as server:
        server.settimeout(HANG)
        server.bind(("127.0.0.1", 0) if kind == "tcp" else str(tmp_path / "target"))
        server.listen()
        target = f"127.0.0.1:{server.getsockname()[1]}" if kind == "tcp" else str(tmp_path / "target")
        with serving("listen", f"--{kind}", target, endpoint.uds, str(PORT), engine=engine) as service:
            for _ in range(2):
                guest = threading.Thread(target=call, args=(endpoint, size))
                guest.start()
                with server.accept()[0] as near:
                    assert receive(near) == pattern(size)
                guest.join()
            assert service.end() == (0, "")


def test_a_connection_gets_a_child_of_its_own(endpoint: Endpoint, engine: str, tmp_path: Path) -> None:
    size = endpoint.size(SIZE)
    script = f"cat >{tmp_path}/part.$$; mv {tmp_path}/part.$$ {tmp_path}/got.$$"
    with serving("listen", endpoint.uds, str(PORT), "--", "sh", "-c", script, engine=engine) as service:
        for _ in range(3):
            assert call(endpoint, size) == b"back ok\n"
        eventually(lambda: len(list(tmp_path.glob("got.*"))), 3)
        assert service.end() == (0, "")
    assert [path.read_bytes() for path in tmp_path.glob("got.*")] == [pattern(size)] * 3


def test_a_childs_last_words_reach_the_guest(tmp_path: Path, engine: str) -> None:
    # It reads nothing and ends at once, with most of what it said still in the pipe.
    size = 900_000
    uds = str(tmp_path / "v.sock")
    script = f"exec 0<&-; head -c {size} /dev/zero"
    with (
        serving("listen", uds, str(PORT), "--", "sh", "-c", script, engine=engine) as service,
        connect(service.address) as guest,
    ):
        guest.sendall(b"what nobody reads")
        time.sleep(0.3)
        assert len(receive(guest)) == size


def test_what_a_child_did_not_read_is_no_error_for_the_guest(tmp_path: Path, engine: str) -> None:
    uds = str(tmp_path / "v.sock")
    with serving("listen", uds, str(PORT), "--", "sh", "-c", "exec 0<&-; printf x", engine=engine) as service:
        for _ in range(50):
            with connect(service.address) as guest:
                guest.sendall(b"what nobody reads")
                assert receive(guest) == b"x"  # and no ECONNRESET, as after a close with unread input


def test_a_child_reads_an_end_of_file_when_the_guest_closes(tmp_path: Path, engine: str) -> None:
    uds = str(tmp_path / "v.sock")
    script = f"cat >/dev/null; echo ended >{tmp_path}/ended"
    with serving("listen", uds, str(PORT), "--", "sh", "-c", script, engine=engine) as service:
        connect(service.address).close()
        eventually(lambda: (tmp_path / "ended").exists(), True)
        assert service.end() == (0, "")


def test_a_child_can_be_talked_with(tmp_path: Path, engine: str) -> None:
    with serving("listen", str(tmp_path / "v.sock"), str(PORT), "--", "cat", engine=engine) as service:
        guests = [connect(service.address) for _ in range(5)]
        for number, guest in enumerate(guests):
            guest.sendall(b"%d" % number)
        assert [receive(guest, 1) for guest in guests] == [b"0", b"1", b"2", b"3", b"4"]
        for guest in guests:
            guest.close()
        assert service.end() == (0, "")


def test_a_child_starts_with_no_signal_blocked_and_nothing_open(tmp_path: Path) -> None:
    script = "grep SigBlk /proc/self/status; exec ls /proc/self/fd"
    with (
        serving("listen", str(tmp_path / "v.sock"), str(PORT), "--", "sh", "-c", script) as service,
        connect(service.address) as guest,
    ):
        assert receive(guest).split() == [b"SigBlk:", b"0" * 16, b"0", b"1", b"2", b"3"], "3 is ls' own"
