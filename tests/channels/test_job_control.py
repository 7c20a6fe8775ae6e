"""`fastvsock exec -it` as a job of an interactive shell: in the background, in the foreground again, ended."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from support import HANG
from support.channels import Guest, exec_command, within
from support.terminals import Terminal, in_terminal

SHELL = ["env", "PS1=> ", "bash", "--norc", "--noprofile", "-i"]


@contextmanager
def shell(guest: Guest, words: str, engine: str) -> Iterator[Terminal]:
    """An interactive bash that has started `exec` in the background, where it was stopped for the terminal."""
    with in_terminal(SHELL) as tty:
        tty.expect(b"> ")
        tty.type(shlex.join([*exec_command(guest, "sh", "-c", words, options=["-it"], engine=engine)]).encode())
        tty.type(b" &\n")
        # Until then the shell looks at its jobs where it prompts only.
        assert within(HANG, lambda: state(tty, b"Stopped"))
        yield tty
        tty.type(b"exit 7\n")
        assert tty.child.wait(HANG) == 7


def state(tty: Terminal, word: bytes) -> bool:
    """Whether the shell's list of jobs says so."""
    tty.type(b"jobs; echo list''ed\n")
    return word in tty.expect(b"listed\r\n")


def test_in_the_background_it_is_stopped_and_in_the_foreground_the_terminal_is_raw(guest: Guest, engine: str) -> None:
    with shell(guest, "echo ready; stty -echo; read line; echo got $line; exit 3", engine) as tty:
        tty.type(b"fg\n")
        tty.expect(b"ready\r\n")
        assert within(HANG, lambda: tty.is_raw)
        tty.type(b"typed\n")
        tty.expect(b"got typed\r\n")
        tty.expect(b"> ")
        tty.type(b"echo status $?\n")
        tty.expect(b"status 3\r\n")


def test_sent_to_the_background_it_is_stopped_again_and_comes_back(guest: Guest, engine: str) -> None:
    with shell(guest, "echo ready; read line; echo got $line", engine) as tty:
        tty.type(b"bg\n")
        assert within(HANG, lambda: state(tty, b"Stopped"))
        tty.type(b"fg\n")
        tty.expect(b"ready\r\n")
        assert within(HANG, lambda: tty.is_raw)
        tty.type(b"typed\n")
        tty.expect(b"got typed\r\n")
        tty.expect(b"> ")


def test_stopped_in_the_background_it_can_be_ended(guest: Guest, engine: str) -> None:
    with shell(guest, "sleep 1000", engine) as tty:
        tty.type(b"kill %1\n")
        assert within(HANG, lambda: not state(tty, b"sleep 1000"))
