"""`fastvsock exec -t`: a terminal in the guest, and ours as it was whatever happens."""

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support import HANG, Listener
from support.channels import Guest, exec_command, exec_in, executing, processes_with, within
from support.terminals import Terminal, in_terminal


@contextmanager
def terminal(
    guest: Guest | Listener, *words: str, options: tuple[str, ...] = ("-it",), engine: str
) -> Iterator[Terminal]:
    """`exec` in a terminal of 30 rows and 100 columns, which is its controlling one."""
    with in_terminal(exec_command(guest, *words, options=options, engine=engine)) as tty:
        yield tty


def test_the_command_has_a_terminal_of_our_size(guest: Guest, engine: str) -> None:
    with terminal(
        guest, "sh", "-c", "test -t 0 && test -t 1 && test -t 2 && stty size; echo $TERM", engine=engine
    ) as tty:
        tty.expect(b"30 100\r\n")
        assert tty.child.wait(HANG) == 0


def test_the_terminal_is_the_commands_own(guest: Guest, engine: str) -> None:
    script = "set -- $(cut -d' ' -f1,5-8 /proc/$$/stat); echo $(($1 == $2 && $2 == $3 && $3 == $5)) >/dev/tty"
    with terminal(guest, "sh", "-c", script, engine=engine) as tty:
        tty.expect(b"1\r\n")


def test_what_is_typed_arrives_and_comes_back(guest: Guest, engine: str) -> None:
    with terminal(guest, "cat", engine=engine) as tty:
        tty.type(b"hello\n")
        tty.expect(b"hello\r\nhello\r\n")
        tty.type(b"\x04")
        assert tty.child.wait(HANG) == 0


@pytest.mark.parametrize("options", [["-t"], ["-t", "-i"]])
def test_a_reader_that_leaves_hangs_up_the_terminal(guest: Guest, engine: str, options: list[str]) -> None:
    with executing(guest, "yes", options=options, engine=engine, stdin=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"y\r\n"
        child.stdout.close()
        assert child.wait(HANG) == 128 + signal.SIGHUP


def test_ctrl_c_goes_to_the_command(guest: Guest, engine: str) -> None:
    with terminal(
        guest, "sh", "-c", "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done", engine=engine
    ) as tty:
        tty.expect(b"ready")
        tty.type(b"\x03")
        tty.expect(b"caught")
        assert tty.child.wait(HANG) == 3


def test_until_the_command_has_started_ctrl_c_ends_exec(listener: Listener, engine: str) -> None:
    with terminal(listener, "true", engine=engine) as tty, listener.accept() as sock:
        sock.recv(1)  # the request, so that the handlers are there
        assert not tty.is_raw
        tty.type(b"\x03")
        assert tty.child.wait(HANG) == 128 + signal.SIGINT


def test_the_size_is_followed(guest: Guest, engine: str) -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"
    with terminal(guest, "sh", "-c", script, engine=engine) as tty:
        tty.expect(b"ready")
        tty.resize(41, 142)
        tty.expect(b"41 142\r\n")


def test_our_terminal_is_raw_meanwhile_and_then_as_it_was(guest: Guest, engine: str) -> None:
    with terminal(guest, "sh", "-c", "echo ready; read line; exit 5", engine=engine) as tty:
        tty.expect(b"ready")
        assert tty.is_raw
        tty.type(b"\n")
        assert tty.child.wait(HANG) == 5
        assert tty.modes == tty.before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_it_is_as_it_was_when_we_are_killed(guest: Guest, engine: str, number: int) -> None:
    with terminal(guest, "sh", "-c", "echo ready; sleep 1000", engine=engine) as tty:
        tty.expect(b"ready")
        assert tty.is_raw
        tty.child.send_signal(number)
        tty.child.wait(HANG)
        assert within(HANG, lambda: tty.modes == tty.before)


def test_it_is_as_it_was_when_the_connection_breaks(engine: str, guest: Guest) -> None:
    mark = uuid.uuid4().hex
    with terminal(guest, "sh", "-c", "echo ready; sleep 1000; true", mark, engine=engine) as tty:
        tty.expect(b"ready")
        for pid in processes_with(mark):
            if pid != tty.child.pid:
                os.kill(pid, signal.SIGKILL)
        assert tty.child.wait(HANG) == 137
        assert tty.modes == tty.before


def test_it_is_as_it_was_while_we_are_stopped(guest: Guest, engine: str) -> None:
    with terminal(guest, "sh", "-c", "echo ready; read line; stty size", engine=engine) as tty:
        tty.expect(b"ready")
        tty.child.send_signal(signal.SIGTSTP)
        assert within(HANG, lambda: tty.modes == tty.before)
        tty.resize(10, 20)
        tty.child.send_signal(signal.SIGCONT)
        assert within(HANG, lambda: tty.is_raw)
        tty.type(b"\n")
        tty.expect(b"10 20")


def test_a_terminal_is_not_needed_here_to_give_one(guest: Guest, engine: str) -> None:
    done = exec_in(guest, "sh", "-c", "tty; cat", input=b"typed\n", options=["-t"], engine=engine)
    assert b"/dev/pts/" in done.stdout
    assert done.stdout.count(b"typed\r\n") == 2, "echoed and read"
    assert done.returncode == 0, "the end of what is passed on is the end of what is typed"


def test_a_command_killed_behind_its_terminal(guest: Guest, engine: str) -> None:
    with terminal(guest, "sh", "-c", "echo ready; kill -KILL $$", engine=engine) as tty:
        tty.expect(b"ready")
        assert tty.child.wait(HANG) == 137


def test_the_last_words_of_a_command_come_out_of_its_terminal(guest: Guest, engine: str) -> None:
    with terminal(guest, "sh", "-c", "sleep 1000 & seq 1 20000", engine=engine) as tty:
        tty.expect(b"\r\n20000\r\n")
        assert tty.child.wait(HANG) == 0
