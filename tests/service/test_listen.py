"""What `fastvsock listen` promises: the guest connects to a port of the host, and the host answers.

The guest's call is the guest's own where the test needs no more than what it sends; where it needs the guest's hands,
the test connects to the socket as a VMM does for a guest.
"""

import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import COMMAND, HANG, Child, Endpoint, command, pattern, read_exactly, run, started
from support.services import connect, eventually, is_alive, receive, service_command, serving

PORT = 5201
SIZE = 1_000_000


def call(endpoint: Endpoint, size: int) -> bytes:
    """Let the guest connect to the host's port and send so much; what came of it."""
    return run(endpoint.uds, str(COMMAND), input=b"back %d %d\n" % (PORT, size)).stdout


def listening_on(uds: str, *arguments: str, engine: str = "auto") -> list[str]:
    """The command line; the arguments behind UDS and PORT may be options too."""
    return service_command("listen", uds, str(PORT), *arguments, engine=engine)


@contextmanager
def on_stdio(uds: str, engine: str = "auto") -> Iterator[Child]:
    """The command that makes a connection its stdin and stdout, ready for it."""
    with started(listening_on(uds, "--ready-fd", "2", engine=engine)) as child:
        assert child.stderr.readline().decode() == f"unix:{uds}_{PORT}\n"
        yield child


# Where a connection goes


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


def test_a_child_is_told_when_the_guest_closes(tmp_path: Path, engine: str) -> None:
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


# What it makes and takes away


def test_the_socket_is_its_owners_alone_unless_told_otherwise_and_goes_with_the_service(tmp_path: Path) -> None:
    path = tmp_path / f"v.sock_{PORT}"
    for options, mode in (((), 0o600), (("--mode", "660"), 0o660)):
        with serving("listen", *options, str(tmp_path / "v.sock"), str(PORT), "--", "cat", umask=0) as service:
            assert service.address == f"unix:{path}"
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert service.end() == (0, "")
        assert not path.exists()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(f"{uds}_{PORT}")
    with serving("listen", uds, str(PORT), "--", "cat") as service:
        done = subprocess.run(listening_on(uds), capture_output=True, timeout=HANG, check=False)
        assert done.returncode == 1
        assert b"another process listens on it" in done.stderr
        with connect(service.address) as guest:
            guest.sendall(b"x")
            assert receive(guest, 1) == b"x"


def test_a_signal_ends_it_and_its_socket_goes(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with on_stdio(uds) as child:
        child.send_signal(signal.SIGINT)
        assert child.wait(HANG) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_stdin_and_stdout_are_connected_ends_it_at_once(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with on_stdio(uds) as child, connect(f"unix:{uds}_{PORT}") as guest:
        child.stdin.write(b"x")
        assert receive(guest, 1) == b"x"
        child.terminate()
        assert child.wait(HANG) == 143


def test_children_that_outlast_the_grace_are_ended(tmp_path: Path) -> None:
    script = "echo $$; exec sleep 1000"
    arguments = ("--grace", "0.2", str(tmp_path / "v.sock"), str(PORT), "--", "sh", "-c", script)
    with serving("listen", *arguments) as service, connect(service.address) as guest:
        pid = int(guest.recv(100))
        assert is_alive(pid)
        assert service.end() == (0, "fastvsock: 1 connection was still open: ended\n")
        eventually(lambda: is_alive(pid), False)


# How it ends, and fails


def test_once_ends_with_the_childs_status(tmp_path: Path) -> None:
    with serving("listen", "--once", str(tmp_path / "v.sock"), str(PORT), "--", "sh", "-c", "exit 6") as service:
        connect(service.address).close()
        assert service.outcome()[0] == 6


def test_a_target_that_refuses_closes_the_connection_with_one_line(tmp_path: Path) -> None:
    with serving("listen", "--unix", str(tmp_path / "no"), str(tmp_path / "v.sock"), str(PORT)) as service:
        with connect(service.address) as guest:
            assert receive(guest) == b""
        status, said = service.end()
    assert status == 0
    assert said == f"fastvsock: a connection: cannot connect to {tmp_path / 'no'}: No such file or directory\n"


def test_a_command_that_is_not_there_closes_the_connection_with_one_line(tmp_path: Path) -> None:
    with serving("listen", str(tmp_path / "v.sock"), str(PORT), "--", "no-such-command") as service:
        for _ in range(2):
            with connect(service.address) as guest:
                assert receive(guest) == b""
        status, said = service.end()
    assert status == 0
    assert said == 2 * "fastvsock: a connection: cannot run no-such-command: No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tcp", "x"], "makes no sense: give HOST:PORT"),
        (["--tcp", "127.0.0.1:1", "--", "cat"], "either --tcp, --unix or a command"),
        (["--"], "a command is needed behind --"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = subprocess.run(
        listening_on(str(tmp_path / "v.sock"), *arguments), capture_output=True, timeout=HANG, check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in done.stderr.decode()
    assert list(tmp_path.iterdir()) == []


def test_the_services_stay_out_of_the_way_of_the_connect_program() -> None:
    script = "import sys; from fastvsock import entry; print(*(m for m in sys.modules if 'fastvsock' in m))"
    done = subprocess.run([command()[0], "-c", script], stdout=subprocess.PIPE, timeout=HANG, check=True)
    assert not {b"fastvsock.service", b"fastvsock.proxy", b"fastvsock.listening"} & set(done.stdout.split())
