"""A program in a terminal of the test's, as a person has it."""

import fcntl
import os
import struct
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from support import Child, started, write_all


class Terminal:
    """A terminal of the test's, with the real command in it. `before` are its modes before that has started."""

    def __init__(self, ours: int, its: int, child: Child, before: list[object]) -> None:
        self.ours, self.its, self.child, self.before = ours, its, child, before
        self.seen = b""

    def expect(self, text: bytes) -> bytes:
        """Read until `text` has come, and return what came before it."""
        while text not in self.seen:
            self.seen += os.read(self.ours, 4096)
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: bytes) -> None:
        write_all(self.ours, text)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def modes(self) -> list[object]:
        return termios.tcgetattr(self.its)

    @property
    def is_raw(self) -> bool:
        flags = self.modes[3]
        assert isinstance(flags, int)
        return not flags & (termios.ICANON | termios.ECHO | termios.ISIG)


@contextmanager
def in_terminal(command: Sequence[str]) -> Iterator[Terminal]:
    """The command in a terminal of 30 rows and 100 columns, which is its controlling one."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    before = termios.tcgetattr(its)
    kinds = {"stdin": its, "stdout": its, "stderr": its, "start_new_session": True}
    try:
        with started(command, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **kinds) as child:
            yield Terminal(ours, its, child, before)
    finally:
        os.close(ours)
        os.close(its)
