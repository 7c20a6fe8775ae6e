"""Strangers: they cost little, and what they do never changes the exit status."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastvsock.host.listeners import Listener
from fastvsock.services import acceptor, ownership
from fastvsock.services.connection import Connection
from support import HANG, started
from support import Listener as Vmm
from support.services import FarEnd, connected, eventually, run_proxy, script_command, service_command

NOBODY = 65534
CONNECTED = "import os, socket, sys, time; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
AS_NOBODY = "import os, socket, sys\nos.setuid(int(sys.argv[2]))\n"  # which can import nothing more, perhaps
FLOOD = AS_NOBODY + (
    "for _ in range(80):\n    with socket.socket() as s: s.connect(('127.0.0.1', int(sys.argv[1]))); s.sendall(b'x')\n"
)
STAY = AS_NOBODY + "s = socket.socket(); s.connect(('127.0.0.1', int(sys.argv[1]))); s.sendall(b'x'); s.recv(1)\n"
ASK_UNIX = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    "s.sendall(b'ask'); print(s.recv(3).decode() or 'closed')"
)
NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child"]


def need(before: list[str], what: str) -> None:
    """Skip where `before` cannot run a command."""
    if not shutil.which(before[0]) or subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"this machine: only root can {what}")


@pytest.mark.parametrize("script", [FLOOD, STAY], ids=["connects and closes", "stays"])
def test_another_users_connections_do_not_change_the_commands_status(
    far_end: FarEnd, tmp_path: Path, script: str
) -> None:
    if os.getuid():
        pytest.skip("this machine: only root can be another user")
    port = tmp_path / "port"
    words = service_command("proxy", "--port-file", str(port), "--grace", "0.5", far_end.uds, "7", "--", "cat")
    with started(words) as proxy:
        eventually(lambda: port.exists(), True)
        stranger = [sys.executable, "-c", script, port.read_text().strip(), str(NOBODY)]
        subprocess.run(stranger, stderr=subprocess.DEVNULL, timeout=HANG, check=False)
        _, said = proxy.communicate(timeout=HANG)
        assert proxy.returncode == 0, said
    assert b"rejected: " in said
    assert said.count(b"\n") < 20, "a flood of connections is not a flood of lines"
    assert far_end.taken == 0


def test_a_client_of_unknown_owner_does_not_change_the_commands_status(far_end: FarEnd) -> None:
    bent = "from fastvsock.services import ownership; ownership.other_end = lambda sock: None"
    precious = CONNECTED + "s.sendall(b'precious'); time.sleep(0.3)"
    words = script_command(bent, "proxy", far_end.uds, "7", "--", sys.executable, "-c", precious, "{port}")
    with started(words) as proxy:
        _, said = proxy.communicate(timeout=HANG)
    assert proxy.returncode == 0
    assert b"rejected: the client disconnected before its owner could be determined" in said


def test_the_commands_own_connections_that_the_grace_cuts_off_do(listener: Vmm, tmp_path: Path) -> None:
    # One connection at a time: the others wait, not judged yet, until they are cut off.
    script = "import socket, sys\nfor _ in range(4): s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])"
    options = ("--listen", f"unix:{tmp_path}/u", "--grace", "0.3", "--max-connections", "1")
    for more in ((), ("--timeout", "0.1")):  # the first one has failed by then
        done = run_proxy(*options, *more, listener.uds, "7", "--", sys.executable, "-c", script, "{socket}")
        assert done.returncode == 1
        assert b"--grace expired: closed " in done.stderr


class Bouncer:
    """A policy that rejects everything at once."""

    def on_accept(self, connection: Connection) -> str:
        return "rejected: today is closed"

    def reject_reason(self, connection: Connection) -> str:
        raise AssertionError("asked again")


def test_one_that_is_rejected_at_once_takes_no_thread_and_no_slot(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr(Connection, "start", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        service = acceptor.Service([Listener(server)], refuse, 1, Bouncer())
        for _ in range(3):
            with socket.create_connection(server.getsockname()) as client:
                service.step(HANG)
                client.settimeout(HANG)
                assert client.recv(1) == b""
        assert (service.rejected, service.taken, service.open) == (3, 0, set())
    service.flush_log()
    first, rest = capfd.readouterr().err.splitlines()
    assert first.endswith(": rejected: today is closed")
    assert rest == "fastvsock: 2 more connections were rejected"


class Judge:
    """A policy that knows which connection is a stranger's by its name."""

    def on_accept(self, connection: Connection) -> str:
        return ""

    def reject_reason(self, connection: Connection) -> str:
        return "rejected: a stranger" if connection.name == "stranger" else ""


@pytest.mark.parametrize(
    ("name", "admitted", "is_ours"),
    [
        ("ours", True, True),
        ("ours", None, True),
        ("stranger", None, False),
        ("stranger", False, False),
        ("judged a stranger's before", False, False),
    ],
)
def test_of_connections_that_are_cut_off_only_those_of_the_command_count(
    name: str, admitted: bool | None, is_ours: bool
) -> None:
    service = acceptor.Service([], lambda _: None, 1, Judge())
    sock, client = socket.socketpair()
    with sock, client:
        connection = Connection(sock, name)
        connection.admitted = admitted
        service.open.add(connection)
        assert service.cut() is is_ours
        assert client.recv(1) == b""


def test_the_uid_is_compared_before_any_descendant_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object) -> bool:
        raise AssertionError("the descriptors of a descendant were read")

    monkeypatch.setattr(ownership, "has_open", look)
    family = ownership.Family()
    with started(["sleep", str(HANG)]) as descendant, connected() as (_, accepted):
        monkeypatch.setattr(ownership, "other_end", lambda _: (1, NOBODY, 4711))
        assert family.on_accept(Connection(accepted, "it")) == ownership.STRANGER
        monkeypatch.setattr(ownership, "users_of", lambda pid: {NOBODY} if pid == descendant.pid else set())
        assert family.on_accept(Connection(accepted, "it")) == "", (
            "a descendant that runs as another user, as with sudo"
        )


def test_a_peer_outside_of_the_pid_namespace_is_no_descendant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "peer_credentials", lambda _: (0, os.getuid(), os.getgid()))
    family = ownership.Family()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert family.on_accept(Connection(ours, "it")) == ownership.STRANGER
        assert family.reject_reason(Connection(ours, "it")) == ownership.STRANGER
        monkeypatch.setattr(ownership, "is_own_proc", lambda: False)
        assert family.reject_reason(Connection(ours, "it")) == ownership.STRANGER, "nor where /proc shows nothing"


@pytest.mark.parametrize("proc", [["--mount-proc"], []], ids=["with its own /proc", "with another one's /proc"])
def test_in_a_pid_namespace_the_command_is_served_and_the_outside_is_not(
    far_end: FarEnd, tmp_path: Path, proc: list[str]
) -> None:
    need(NAMESPACE, "make a pid namespace")
    path = tmp_path / "u"
    shell = 'python=$1; "$python" -c "$2" "$3"; echo; read line; "$python" -c "$2" "$3"'
    words = service_command(
        "proxy", "--listen", f"unix:{path}", far_end.uds, "7", "--", "sh", "-c", shell, "sh", sys.executable, ASK_UNIX
    )
    with started([*NAMESPACE, *proc, *words, "{socket}"]) as proxy:
        assert proxy.stdout.readline() == b"ask\n"
        outside = subprocess.run(
            [sys.executable, "-c", ASK_UNIX, str(path)], capture_output=True, timeout=HANG, check=False
        )
        assert b"ask" not in outside.stdout
        out, said = proxy.communicate(b"\n", timeout=HANG)
        assert (proxy.returncode, out) == (0, b"\nask\n")
    assert ownership.STRANGER.encode() in said
