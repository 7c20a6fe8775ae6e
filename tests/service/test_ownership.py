"""Whose connection it is: clients that are gone, and processes that /proc hides."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastvsock.host import process_tree, sock_diag
from fastvsock.services import ownership
from fastvsock.services.connection import Connection
from support import HANG, started
from support.services import FarEnd, connected, pass_as, service_command

ASK = (
    "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); "
    "s.sendall(b'ask'); print(s.recv(3).decode())"
)
ASK_UNIX = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    "s.sendall(b'ask'); print(s.recv(3).decode())"
)


def judged(family: ownership.Family, connection: Connection) -> str:
    """Why the connection is rejected, if it is."""
    return family.on_accept(connection) or family.reject_reason(connection)


def test_a_client_that_has_closed_since_it_was_met_is_known_by_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    family = ownership.Family()
    with connected() as (client, accepted):
        connection = Connection(accepted, "it")
        assert family.on_accept(connection) == ""
        client.close()
        assert family.reject_reason(connection) == ""
        monkeypatch.setattr(os, "getuid", lambda: 4711)
        assert family.reject_reason(connection) == ownership.STRANGER
        assert not connection.unidentified


@pytest.mark.parametrize("remnant", [(sock_diag.TIME_WAIT, 0, 0), (sock_diag.FIN_WAIT2, 0, 0), None])
def test_a_client_that_was_gone_before_is_unidentified(
    monkeypatch: pytest.MonkeyPatch, remnant: sock_diag.Found | None
) -> None:
    monkeypatch.setattr(ownership, "other_end", lambda _: remnant)
    family = ownership.Family()
    with connected() as (client, accepted):
        connection = Connection(accepted, "it")
        assert (judged(family, connection), connection.unidentified) == (ownership.CLOSED, True)
        client.sendall(b"x")
        assert (judged(family, connection), connection.unidentified) == (ownership.DISCARDED, True)


def test_a_client_that_reset_the_connection_is_rejected() -> None:
    family = ownership.Family()
    with connected() as (client, accepted):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()  # a reset
        connection = Connection(accepted, "it")
        assert (judged(family, connection), connection.unidentified) == (ownership.BROKEN, False)


@pytest.mark.parametrize(("release", "refusal"), [("6.16.0", ownership.CLOSED), ("6.17.0-rc1", "")])
def test_user_0_of_a_closed_socket_counts_only_where_the_kernel_keeps_users(
    monkeypatch: pytest.MonkeyPatch, release: str, refusal: str
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(os, "uname", lambda: type("", (), {"release": release}))
    with connected() as (_, accepted):
        monkeypatch.setattr(ownership, "other_end", lambda _: (sock_diag.FIN_WAIT1, 0, 0))
        family = ownership.Family()
        assert judged(family, Connection(accepted, "it")) == refusal


def test_where_the_kernel_does_not_answer_that_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(ownership, "other_end", broken)
    with connected() as (_, accepted):
        family = ownership.Family()
        connection = Connection(accepted, "it")
        assert judged(family, connection) == ownership.UNKNOWN
        assert connection.unidentified


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError], ids=["hidepid=1", "hidepid=2"])
def test_a_descendant_that_proc_hides_is_taken_for_root_or_ourselves(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    with started(["sleep", str(HANG)]) as hidden, connected() as (_, accepted):
        listdir, read = os.listdir, process_tree._read

        def hide(path: str) -> str:
            if path.startswith(f"/proc/{hidden.pid}"):
                raise error
            return path

        monkeypatch.setattr(os, "listdir", lambda path: listdir(hide(path)))
        monkeypatch.setattr(process_tree, "_read", lambda path: read(hide(path)))
        monkeypatch.setattr(os.path, "exists", lambda path: not path.startswith(f"/proc/{hidden.pid}"))
        family = ownership.Family()
        assert family.reject_reason(Connection(accepted, "it")) == ownership.STRANGER, (
            "sleep was there before the family"
        )
        family._strangers = set()
        assert family.reject_reason(Connection(accepted, "it")) == ""
        assert process_tree.users_of(hidden.pid) == {0, os.getuid()}


def test_a_zombie_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def listdir(path: str) -> list[str]:
        raise PermissionError  # what everybody but root gets for it

    monkeypatch.setattr(os, "listdir", listdir)
    assert process_tree.has_open(pid, 1) is False
    os.waitpid(pid, 0)


@pytest.mark.parametrize("where", ["127.0.0.1:0", "unix"])
def test_without_proc_the_same_user_decides(far_end: FarEnd, tmp_path: Path, where: str) -> None:
    inside = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine: only root can take /proc away")
    listen, script, address = ("127.0.0.1:0", ASK, "{port}")
    if where == "unix":
        listen, script, address = (f"unix:{tmp_path}/u", ASK_UNIX, "{socket}")
    words = service_command("proxy", "--listen", listen, far_end.uds, "7", "--", sys.executable, "-c", script, address)
    done = subprocess.run([*inside, *words], capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ask\n", b"")


def test_a_passed_socket_for_both_families_serves_the_commands_ipv4_client(far_end: FarEnd) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as passed:
        words = service_command("proxy", "--allow-remote", far_end.uds, "7", "--", sys.executable, "-c", ASK, "{port}")
        done = subprocess.run(
            [*pass_as(passed.fileno(), 3), *words],
            capture_output=True,
            pass_fds=[passed.fileno()],
            env=os.environ | {"LISTEN_FDS": "1"},
            timeout=HANG,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ask\n", b"")
