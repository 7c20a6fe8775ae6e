"""`runcvm-vsock-connect UDS PORT -- COMMAND`: the process becomes the command, with the connection as descriptor 3."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from fastvsock import errors, runcvm_vsock_connect
from support import HANG, Listener, called, command, read_exactly, run, started

OURS = (1 << 31) - 1  # 32 and 33 are the C library's own: its posix_spawn(3), make's for instance, ignores them
SPEAKS = 'read -r line <&3; echo "guest: $line"; cat >&3; exit 7'


def test_the_command_has_the_connection_as_descriptor_3_and_stdin_and_stdout_as_they_were(listener: Listener) -> None:
    words = command(listener.uds, "22", "--", "sh", "-c", SPEAKS)
    with started(words) as child, listener.accept(b"OK 1073741824\nearly") as guest:
        guest.sendall(b" and late\n")
        assert read_exactly(child.stdout.fileno(), 22) == b"guest: early and late\n"
        assert Path(f"/proc/{child.pid}/comm").read_text() == "sh\n", "it became the command, and is no parent of it"
        child.stdin.write(b"typed")
        child.stdin.close()
        assert guest.recv(5) == b"typed"
        assert (child.wait(HANG), child.stderr.read()) == (7, b"")


def test_the_command_inherits_nothing_else(listener: Listener) -> None:
    with started(command(listener.uds, "22", "--", "sh", "-c", "ls /proc/$$/fd; :")) as child, listener.accept():
        assert child.stdout.read().split() == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_descriptor_3_is_the_connection_whatever_it_was(listener: Listener, taken: bool) -> None:
    before = ["sh", "-c", f'exec {"3</dev/null" if taken else "3<&-"}; exec "$@"', "sh"]
    words = [*before, *command(listener.uds, "22", "--", "sh", "-c", "cat <&3")]
    with started(words) as child, listener.accept(b"OK 1073741824\npayload"):
        assert read_exactly(child.stdout.fileno(), 7) == b"payload"


def test_the_command_starts_with_no_signal_blocked_or_ignored(listener: Listener) -> None:
    words = command(listener.uds, "22", "--", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    with started(words) as child, listener.accept():
        masks = [int(line.split()[1], 16) & OURS for line in child.stdout.read().splitlines()]
        assert masks == [0, 0]


def test_a_signal_that_was_ignored_stays_so(listener: Listener) -> None:
    before = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    words = [*before, *command(listener.uds, "22", "--", "grep", "^SigIgn", "/proc/self/status")]
    with started(words) as child, listener.accept():
        assert int(child.stdout.read().split()[1], 16) & OURS == 1 << (signal.SIGHUP - 1)


def test_where_the_guest_cannot_be_reached_no_command_is_run(tmp_path: Path) -> None:
    done = run(str(tmp_path / "none.sock"), "22", "--", "touch", str(tmp_path / "touched"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no such socket" in done.stderr
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("name", "status", "reason"), [("no-such-command", 127, "No such file"), ("/etc/passwd", 126, "Permission denied")]
)
def test_a_command_that_cannot_be_run_is_reported_with_a_shells_status(
    listener: Listener, name: str, status: int, reason: str
) -> None:
    with started(command(listener.uds, "22", "--", name)) as child, listener.accept() as guest:
        _, said = child.communicate(timeout=HANG)
        assert child.returncode == status
        assert said.startswith(f"fastvsock: cannot run {name}: {reason}".encode())
        assert said.count(b"\n") == 1
        assert guest.recv(1) == b"", "the connection is closed"


def test_a_command_on_the_path_is_found(listener: Listener, tmp_path: Path) -> None:
    (tmp_path / "found").write_text('#!/bin/sh\necho "$0 $1"\n')
    (tmp_path / "found").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = command(listener.uds, "22", "--", "found", "--version")
    with started(words, env=environment) as child, listener.accept():
        assert child.stdout.read() == f"{tmp_path}/found --version\n".encode()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["u", "1", "--", "c", "--stats", "--", "x"], ["c", "--stats", "--", "x"]),
        (["--", "u", "1", "--", "c"], ["c"]),
        (["u", "--", "1", "--", "c"], ["c"]),
        (["--", "--stats", "1"], None),
        (["u", "1"], None),
    ],
)
def test_what_follows_uds_port_and_two_dashes_is_the_command(words: list[str], expected: list[str] | None) -> None:
    options = runcvm_vsock_connect.parse(words, "connect")
    assert options is not None
    assert options.command == expected
    assert not options.stats


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["u", "1", "--"], "missing COMMAND after --"),
        (["--", "u", "1", "--"], "missing COMMAND after --"),
        (["u", "--", "c"], "c"),
        (["--fdpass", "u", "1", "--", "c"], "mutually exclusive"),
        (["--raw", "u", "1", "--", "c"], "mutually exclusive"),
        (["u", "1", "c"], "got 3 arguments"),
    ],
)
def test_an_invalid_command_line_is_reported(words: list[str], said: str) -> None:
    with pytest.raises((errors.UsageError, errors.PortError), match=said):
        runcvm_vsock_connect.parse(words, "connect")


def test_the_umbrella_command_does_the_same(listener: Listener) -> None:
    umbrella = [*called("fastvsock"), "connect", listener.uds, "22", "--", "sh", "-c", "cat <&3; exit 5"]
    with started(umbrella) as child:
        with listener.accept(b"OK 1073741824\npayload"):
            pass
        assert (child.stdout.read(), child.wait(HANG)) == (b"payload", 5)
    assert subprocess.run(
        [*called("fastvsock"), "connect", "--help"], capture_output=True, timeout=HANG, check=True
    ).stdout.startswith(b"usage: fastvsock connect [options] UDS PORT [-- COMMAND ...]\n")
