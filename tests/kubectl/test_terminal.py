"""`kubectl exec -it`: a terminal around kubectl, one in the guest, and what passes between them."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support import HANG, Child, started
from support.apiserver import NAME, take_terminal
from support.kubectl import Pod

# The size every second, until a line is typed.
SHOW_SIZE = "tty; while ! read -t 1 line; do stty size; done; echo got $line; exit 5"


class Terminal:
    """A terminal, its keys and its screen."""

    def __init__(self, rows: int, columns: int) -> None:
        self.master, self.slave = pty.openpty()
        self.screen = b""
        self.resize(rows, columns)

    def resize(self, rows: int, columns: int) -> None:
        """Give it another size; its programs get a SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        """Press keys."""
        os.write(self.master, text)

    def read_until(self, pattern: bytes) -> None:
        """Wait until it has shown that."""
        limit = time.monotonic() + HANG
        while not re.search(pattern, self.screen):
            ready, _, _ = select.select([self.master], [], [], max(0.0, limit - time.monotonic()))
            assert ready, self.screen
            self.screen += os.read(self.master, 4096)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal of 30 lines and 100 columns."""
    terminal = Terminal(30, 100)
    yield terminal
    os.close(terminal.master)
    os.close(terminal.slave)


@contextmanager
def interactive(pod: Pod, terminal: Terminal, script: str) -> Iterator[Child]:
    """`kubectl exec -it` of a script, in that terminal."""
    command = pod.kubectl("exec", "-it", NAME, "--", "sh", "-c", script)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.slave)
    with started(command, start_new_session=True, preexec_fn=take_terminal, **streams) as child:
        yield child


def test_the_guests_terminal_has_the_size_of_this_one_and_follows_it(pod: Pod, terminal: Terminal) -> None:
    with interactive(pod, terminal, SHOW_SIZE) as child:
        terminal.read_until(rb"/dev/pts/\d+\r\n")
        terminal.read_until(rb"30 100\r\n")
        terminal.resize(41, 121)
        terminal.read_until(rb"41 121\r\n")
        terminal.type(b"enough\r")
        terminal.read_until(rb"got enough\r\n")
        assert child.wait(HANG) == 5


def test_an_interrupt_that_is_typed_ends_the_command(pod: Pod, terminal: Terminal) -> None:
    with interactive(pod, terminal, SHOW_SIZE) as child:
        terminal.read_until(rb"30 100\r\n")
        terminal.type(b"\x03")
        status = child.wait(HANG)
        assert status == 130 if pod.way.signals else status in (0, 130)


def test_the_terminal_is_as_before_when_the_command_has_ended(pod: Pod, terminal: Terminal) -> None:
    before = termios.tcgetattr(terminal.slave)
    with interactive(pod, terminal, "read line; exit 3") as child:
        terminal.type(b"\r")
        assert child.wait(HANG) == 3
    assert termios.tcgetattr(terminal.slave) == before
