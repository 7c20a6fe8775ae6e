"""How a service ends, and what is under way then: nothing is lost in silence, and no signal is."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import HANG, Listener, descriptors, started
from support.services import (
    FarEnd,
    Running,
    ask,
    children_of,
    connect,
    eventually,
    receive,
    run_proxy,
    script_command,
    service_command,
    serving,
)

CONNECTED = "import os, socket, sys, time; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
PRECIOUS = CONNECTED + "s.sendall(b'precious')\n"


# A grace without end


def test_a_grace_without_end_is_over_with_the_last_connection(far_end: FarEnd) -> None:
    with serving("proxy", "--grace", "inf", far_end.uds, "7") as proxy, proxy.connect() as sock:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        proxy.child.terminate()
        sock.close()
        assert proxy.outcome() == (0, "")


def test_a_grace_without_end_ends_with_the_command(far_end: FarEnd) -> None:
    done = run_proxy("--grace", "inf", far_end.uds, "7", "--", "sh", "-c", "exit 3")
    assert (done.returncode, done.stderr) == (3, b"")


def test_the_service_manager_is_notified_of_the_stop_once(far_end: FarEnd, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(HANG)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with serving("proxy", "--grace", "inf", far_end.uds, "7", env=environment) as proxy, proxy.connect() as sock:
            sock.sendall(b"x")
            assert receive(sock, 1) == b"x"
            proxy.child.terminate()
            assert manager.recv(4096).startswith(b"READY=1")
            assert manager.recv(4096) == b"STOPPING=1"
            sock.sendall(b"y")
            assert receive(sock, 1) == b"y"
            sock.close()
            assert proxy.outcome() == (0, "")
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)


# What the command has connected and sent when it ends


def test_a_client_that_closes_at_once_is_not_lost_in_silence(far_end: FarEnd) -> None:
    served = 0
    for _ in range(10):
        far_end.heard.clear()
        done = run_proxy(far_end.uds, "7", "--", sys.executable, "-c", PRECIOUS + "s.close()", "{port}")
        assert done.returncode == 0
        if done.stderr:
            assert b"what it sent was discarded" in done.stderr
        else:
            eventually(lambda: far_end.heard, [b"precious"])
            served += 1
    assert served, "as a rule the kernel is asked in time"


def test_what_waits_in_the_backlog_when_the_command_ends_is_delivered(far_end: FarEnd, tmp_path: Path) -> None:
    script = (
        "import socket, sys\n"
        "for i in range(30): s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'%02d' % i)"
    )
    for limit in ("1023", "2"):
        far_end.heard.clear()
        options = ("--listen", f"unix:{tmp_path}/u", "--max-connections", limit)
        done = run_proxy(*options, far_end.uds, "7", "--", sys.executable, "-c", script, "{socket}")
        assert (done.returncode, done.stderr) == (0, b"")
        eventually(lambda: sorted(far_end.heard), [b"%02d" % i for i in range(30)])


def test_a_connection_whose_handshake_outlasts_the_command_is_served(listener: Listener) -> None:
    words = service_command("proxy", listener.uds, "7", "--", sys.executable, "-c", PRECIOUS, "{port}")
    with started(words) as child:
        guest, _ = listener._socket.accept()
        eventually(lambda: children_of(child.pid), [])
        time.sleep(0.8)  # longer than what counts as silence
        guest.sendall(b"OK 1073741824\n")
        assert receive(guest) == b"CONNECT 7\nprecious"
        guest.close()
        assert child.wait(HANG) == 0
        assert child.stderr.read() == b""


def test_a_handshake_that_outlasts_the_grace_is_no_success(listener: Listener) -> None:
    done = run_proxy("--grace", "0.3", listener.uds, "7", "--", sys.executable, "-c", PRECIOUS, "{port}")
    assert done.returncode == 1
    assert done.stderr == b"fastvsock: --grace expired: closed 1 open connection\n"


# Signals


def test_a_signal_after_the_commands_end_ends_at_once(listener: Listener) -> None:
    options = ("--grace", str(2 * HANG), "--timeout", str(2 * HANG))
    words = service_command("proxy", *options, listener.uds, "7", "--", sys.executable, "-c", PRECIOUS, "{port}")
    with started(words) as child:
        guest, _ = listener._socket.accept()
        eventually(lambda: children_of(child.pid), [])
        time.sleep(0.2)
        child.send_signal(signal.SIGWINCH)  # of no account
        child.terminate()
        assert child.wait(HANG) == 143
        assert child.stderr.read() == b"fastvsock: closed 1 open connection\n"
        guest.close()


def test_a_signal_that_comes_before_all_is_ready_is_not_lost(far_end: FarEnd) -> None:
    script = (
        "import os, time; from fastvsock.services import lifecycle; init = lifecycle.Lifetime.__init__\n"
        "def bent(self, *arguments): init(self, *arguments); os.kill(os.getpid(), 15); time.sleep(0.2)\n"
        "lifecycle.Lifetime.__init__ = bent"
    )
    for command, status in ((), 0), (("--", "echo", "started"), 143):
        with started(script_command(script, "proxy", far_end.uds, "7", *command)) as child:
            out, said = child.communicate(timeout=HANG)
        assert (child.returncode, said, b"started" in out) == (status, b"", False)


def test_a_signal_right_after_the_socket_file_was_made_leaves_none(far_end: FarEnd, tmp_path: Path) -> None:
    script = (
        "import os, time; from fastvsock.host import listeners; opened = listeners.open_listener\n"
        "def bent(*arguments): listener = opened(*arguments); os.kill(os.getpid(), 15); return listener\n"
        "listeners.open_listener = bent"
    )
    words = script_command(script, "proxy", "--listen", f"unix:{tmp_path}/u", far_end.uds, "7", "--", "sleep", "100")
    with started(words) as child:
        assert child.wait(HANG) == 143
    assert not (tmp_path / "u").exists()


def test_a_hang_up_reaches_the_command_once(far_end: FarEnd, tmp_path: Path) -> None:
    # Files, since a write to the terminal may fail once that is closed.
    ready, counts = tmp_path / "ready", tmp_path / "counts"
    script = (
        "import signal, sys, time; got = []; signal.signal(signal.SIGHUP, lambda *_: got.append(1)); "
        "open(sys.argv[1], 'w').close()\n"
        "while not got: time.sleep(0.02)\n"
        "time.sleep(0.5); open(sys.argv[2], 'w').write(f'n={len(got)}')"
    )
    pid, terminal = pty.fork()
    if not pid:
        words = service_command("proxy", far_end.uds, "7", "--", sys.executable, "-c", script, str(ready), str(counts))
        os.execv(words[0], words)
    eventually(ready.exists, True)
    os.close(terminal)
    try:
        eventually(lambda: counts.exists() and counts.read_text(), "n=1")
    finally:
        for process in [*children_of(pid), pid]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended meanwhile
        os.waitpid(pid, 0)


# A command that the proxy cannot handle


def test_a_signal_that_may_not_be_passed_on_is_reported_and_the_command_goes_on(far_end: FarEnd) -> None:
    script = "import os; kill = os.kill\ndef bent(pid, number):\n    if number: raise PermissionError\nos.kill = bent"
    words = script_command(script, "proxy", far_end.uds, "7", "--", "sh", "-c", "echo ready; read x; exit 5")
    with started(words) as child:
        assert child.stdout.readline() == b"ready\n"
        child.terminate()
        assert re.match(rb"fastvsock: cannot pass SIGTERM on to the command, process \d+: ", child.stderr.readline())
        child.stdin.write(b"\n")
        assert child.wait(HANG) == 5


def test_whatever_goes_wrong_the_command_is_not_left_alone(far_end: FarEnd, tmp_path: Path) -> None:
    script = (
        "from fastvsock.services import acceptor; step = acceptor.Service.step\n"
        "def bent(self, timeout): step(self, 0.2); raise RuntimeError('bent')\n"
        "acceptor.Service.step = bent"
    )
    shell = f"trap 'touch {tmp_path}/ended; exit' TERM; echo ready; while :; do sleep 0.05; done"
    with started(script_command(script, "proxy", far_end.uds, "7", "--", "sh", "-c", shell)) as child:
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.5)
        child.terminate()
        child.communicate(timeout=HANG)
    assert (tmp_path / "ended").exists()


# Closed standard descriptors


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_nothing_of_the_services_takes_the_place_of_a_closed_descriptor(
    far_end: FarEnd, tmp_path: Path, closed: str
) -> None:
    shell = f'exec "$@" {closed}'
    look = f"for n in 0 1 2; do readlink /proc/$$/fd/$n; done >{tmp_path}/seen"
    words = service_command("proxy", far_end.uds, "7", "--", "sh", "-c", look)
    subprocess.run(["sh", "-c", shell, "sh", *words], capture_output=True, timeout=HANG, check=True)
    seen = (tmp_path / "seen").read_text().splitlines()
    assert len(seen) == 3
    assert not any(name.startswith("socket:") for name in seen)


def test_with_stderr_closed_what_is_said_goes_nowhere(tmp_path: Path) -> None:
    words = service_command("listen", "--tcp", "127.0.0.1:1", str(tmp_path / "v.sock"), "9")
    with started(["sh", "-c", 'exec "$@" 2>&-', "sh", *words]) as child:
        address = child.stdout.readline().decode().split()[-1]
        assert descriptors(child.pid)["2"] == "/dev/null"
        with connect(address) as guest:
            assert receive(guest) == b""


def test_once_serves_one_connection_and_turns_others_away(far_end: FarEnd, engine: str) -> None:
    with serving("proxy", "--once", far_end.uds, "7", engine=engine) as proxy:
        with proxy.connect() as sock:
            sock.sendall(b"x")
            assert receive(sock, 1) == b"x"
            eventually(lambda: refuses(proxy), True)
            sock.sendall(b"y")
            assert receive(sock, 1) == b"y"
        assert proxy.outcome() == (0, "")


def test_once_ends_with_the_failure_of_its_connection(far_end: FarEnd) -> None:
    with serving("proxy", "--once", far_end.uds, "0") as proxy:
        assert ask(proxy.address, b"x") == b""
        status, said = proxy.outcome()
    assert status == 1
    assert "guest port 0 refused" in said
    assert said.count("\n") == 1


def test_sigterm_stops_accepting_and_lets_open_relays_finish(far_end: FarEnd, engine: str) -> None:
    with serving("proxy", "--grace", str(HANG), far_end.uds, "7", engine=engine) as proxy, proxy.connect() as sock:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        proxy.child.terminate()
        eventually(lambda: refuses(proxy), True)
        sock.sendall(b"y")
        assert receive(sock, 1) == b"y"
        sock.close()
        assert proxy.outcome() == (0, "")


def refuses(proxy: Running) -> bool:
    """Whether nobody listens any more. Looked up: a connection to find out would be served."""
    return f"0100007F:{proxy.port:04X} 00000000:0000 0A" not in Path("/proc/net/tcp").read_text()


def test_a_second_sigterm_ends_at_once(far_end: FarEnd) -> None:
    with serving("proxy", "--grace", "inf", far_end.uds, "7") as proxy, proxy.connect() as sock:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        proxy.child.terminate()
        eventually(lambda: refuses(proxy), True)
        assert proxy.end() == (143, "fastvsock: closed 1 open connection\n")


def test_when_the_grace_is_over_open_relays_are_ended(far_end: FarEnd) -> None:
    with serving("proxy", "--grace", "0.3", far_end.uds, "7") as proxy, proxy.connect() as sock:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        assert proxy.end() == (0, "fastvsock: --grace expired: closed 1 open connection\n")
        assert receive(sock) == b""
