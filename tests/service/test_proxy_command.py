"""`fastvsock proxy ... -- COMMAND`: a proxy that lives as long as its command."""

import os
import pty
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from support import HANG, Listener, started
from support.services import FarEnd, eventually, is_alive, receive, run_proxy, service_command

CONNECTED = "import os, socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"


def test_the_command_gets_the_address_and_its_exit_status_is_the_proxys(far_end: FarEnd) -> None:
    script = 'echo "$1 $2 $FASTVSOCK_PORT $FASTVSOCK_HOST {port}"; exit 7'
    done = run_proxy(far_end.uds, "7", "--", "sh", "-c", script, "sh", "root@{host}:{port}", "{x}")
    assert (done.returncode, done.stderr) == (7, b"")
    # A word with blanks is a command for the guest, perhaps, and its braces are its own.
    assert re.fullmatch(rb"root@127\.0\.0\.1:(\d+) \{x\} \1 127\.0\.0\.1 \{port\}\n", done.stdout)


def test_the_command_gets_the_path_of_a_unix_socket(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "listen"
    command = ("sh", "-c", "echo $0 $FASTVSOCK_SOCKET", "{socket}")
    done = run_proxy("--listen", f"unix:{path}", far_end.uds, "7", "--", *command)
    assert done.stdout == f"{path} {path}\n".encode()
    assert not path.exists()


def test_a_placeholder_without_a_value_is_reported_in_a_sentence(far_end: FarEnd) -> None:
    done = run_proxy(far_end.uds, "7", "--", "echo", "{uds}")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"{uds} in the command has no value" in done.stderr


def test_a_command_that_is_not_there_is_reported_in_a_sentence(far_end: FarEnd, tmp_path: Path) -> None:
    done = run_proxy("--port-file", str(tmp_path / "port"), far_end.uds, "7", "--", "no-such-command")
    assert done.returncode == 127
    assert done.stderr == b"fastvsock: cannot run no-such-command: No such file or directory\n"
    assert not (tmp_path / "port").exists()


def test_a_command_that_dies_by_a_signal_gives_128_and_its_number(far_end: FarEnd) -> None:
    assert run_proxy(far_end.uds, "7", "--", "sh", "-c", "kill -9 $$").returncode == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on_to_the_command(far_end: FarEnd, number: signal.Signals) -> None:
    script = f"trap 'echo got; exit 9' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.05; done"
    with started(service_command("proxy", far_end.uds, "7", "--", "sh", "-c", script)) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        assert child.stdout.read() == b"got\n"
        assert child.wait(HANG) == 9


def test_the_command_starts_with_no_signal_blocked_or_ignored(far_end: FarEnd) -> None:
    done = run_proxy(far_end.uds, "7", "--", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    masks = [int(line.split()[1], 16) for line in done.stdout.splitlines()]
    ours = (1 << 31) - 1  # 32 and 33 are the C library's own: posix_spawn(3) ignores them
    assert [mask & ours for mask in masks] == [0, 0]


def test_ctrl_c_reaches_the_command_once(far_end: FarEnd) -> None:
    script = (
        "import signal, time; got = []; signal.signal(signal.SIGINT, lambda *_: got.append(1)); "
        "print('ready', flush=True); time.sleep(1); print(f'n={len(got)}')"
    )
    pid, terminal = pty.fork()
    if not pid:
        words = service_command("proxy", far_end.uds, "7", "--", sys.executable, "-c", script)
        os.execv(words[0], words)
    text = b""
    while b"ready" not in text:
        text += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    while b"n=" not in text:
        text += os.read(terminal, 1000)
    assert b"n=1" in text
    assert os.waitpid(pid, 0)[1] == 0
    os.close(terminal)


def test_what_the_command_had_under_way_when_it_ended_is_delivered(listener: Listener, engine: str) -> None:
    # It fills all that lies between, until for half a second nothing fits any more, and is gone.
    script = CONNECTED + (
        "s.settimeout(0.5); sent = 0\n"
        "try:\n"
        "    while True: sent += s.send(bytes(100_000))\n"
        "except TimeoutError: print(sent, flush=True)"
    )
    words = service_command("proxy", listener.uds, "7", "--", sys.executable, "-c", script, "{port}", engine=engine)
    with started(words) as child, listener.accept() as guest:
        sent = int(child.stdout.readline())
        time.sleep(1.5)
        assert len(receive(guest)) == sent
        assert child.wait(HANG) == 0


def test_the_end_of_the_command_ends_what_it_left_open(far_end: FarEnd) -> None:
    # The orphan holds an idle connection: it is not waited for, and loses it.
    script = CONNECTED + "print(os.getpid(), flush=True); s.recv(1)"
    shell = '"$0" -c "$1" "$2" & read line'
    words = service_command(
        "proxy", "--grace", str(2 * HANG), far_end.uds, "7", "--", "sh", "-c", shell, sys.executable, script, "{port}"
    )
    with started(words) as child:
        orphan = int(child.stdout.readline())
        eventually(lambda: far_end.held, 1)
        child.stdin.write(b"\n")
        assert child.wait(HANG) == 0
        eventually(lambda: is_alive(orphan), False)
        eventually(lambda: far_end.held, 0)


def test_a_proxy_for_a_command_leaves_nothing_behind(far_end: FarEnd, tmp_path: Path) -> None:
    before = {entry.name for entry in tmp_path.iterdir()}
    listen, port = tmp_path / "listen", tmp_path / "port"
    arguments = ("--listen", f"unix:{listen}", "--port-file", str(port), far_end.uds, "7")
    done = run_proxy(*arguments, "--", "sh", "-c", f"ls {tmp_path}")
    assert done.stdout.split() == [b"far.sock", b"listen", b"port"]
    assert {entry.name for entry in tmp_path.iterdir()} == before
    assert far_end.held == 0
