"""`fastvsock exec -it` as a job of an interactive shell: in the background, in the foreground again, ended."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import HANG
from support.channels import Guest, exec_command, within
from support.terminals import Terminal, in_terminal

SHELL = ["env", "PS1=> ", "bash", "--norc", "--noprofile", "-i"]


@contextmanager
def shell(guest: Guest, words: str, engine: str, option: str = "-it") -> Iterator[Terminal]:
    """An interactive bash that has started `exec` in the background, where it was stopped for the terminal."""
    with in_terminal(SHELL) as tty:
        tty.expect(b"> ")
        tty.type(shlex.join([*exec_command(guest, "sh", "-c", words, options=[option], engine=engine)]).encode())
        tty.type(b" &\n")
        assert within(HANG, lambda: is_stopped(tty, by_typing=option == "-i"))
        yield tty
        tty.type(b"exit 7\n")
        assert tty.child.wait(HANG) == 7


def jobs(tty: Terminal) -> list[str]:
    """The numbers of the shell's children."""
    return Path(f"/proc/{tty.child.pid}/task/{tty.child.pid}/children").read_text().split()


def is_stopped(tty: Terminal, *, by_typing: bool = False) -> bool:
    """Whether the shell's job is stopped, perhaps because it has seen what was typed for the shell."""
    if by_typing:
        tty.type(b"echo ty''ped\n")
        tty.expect(b"typed\r\n")
    return any("\nState:\tT" in Path(f"/proc/{number}/status").read_text() for number in jobs(tty))


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
        tty.expect(b"bg\r\n")
        assert within(HANG, lambda: is_stopped(tty))
        tty.type(b"fg\n")
        tty.expect(b"ready\r\n")
        assert within(HANG, lambda: tty.is_raw)
        tty.type(b"typed\n")
        tty.expect(b"got typed\r\n")
        tty.expect(b"> ")


def test_stopped_in_the_background_it_can_be_ended(guest: Guest, engine: str) -> None:
    with shell(guest, "sleep 1000", engine) as tty:
        tty.type(b"kill %1\n")
        assert within(HANG, lambda: not jobs(tty))  # nothing is typed, which would stop it again


def test_stopped_by_what_was_typed_for_the_shell_it_does_not_wait_for_more_of_it(guest: Guest, engine: str) -> None:
    # Its poll(2) has seen what the shell has read since.
    with shell(guest, "sleep 1; echo la''te", engine, "-i") as tty:
        tty.type(b"fg\n")
        tty.expect(b"late\r\n")
        tty.expect(b"> ")
