"""The socket of `fastvsock listen`: made, replaced, and taken away with the service."""

import signal
import socket
import stat
import subprocess
from pathlib import Path

from support import HANG
from support.listen import PORT, listening_on, on_stdio
from support.services import connect, eventually, is_alive, receive, serving


def test_the_socket_is_its_owners_alone_unless_asked_otherwise_and_goes_with_the_service(tmp_path: Path) -> None:
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
        assert service.end() == (0, "fastvsock: --grace expired: closed 1 open connection\n")
        eventually(lambda: is_alive(pid), False)
