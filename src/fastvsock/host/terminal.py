"""The terminal of this process: its size, and raw mode, with its own mode back whatever ends the program."""

import fcntl
import os
import termios

from ..stdio import close_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable

    Mode = list[int | list[bytes | int]]
else:
    import _signal  # signal itself imports enum, and `exec -t` starts often

RAW_INPUT = (
    termios.IGNBRK
    | termios.BRKINT
    | termios.PARMRK
    | termios.ISTRIP
    | termios.INLCR
    | termios.IGNCR
    | termios.ICRNL
    | termios.IXON
)
RAW_LOCAL = termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN


def size(fds: "tuple[int, ...]" = (0, 1, 2)) -> tuple[int, int]:
    """Rows and columns of the first of `fds` that is a terminal; 0 and 0 where none is."""
    for fd in fds:
        try:
            found = fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
        except OSError:
            continue
        rows, columns = (int.from_bytes(found[at : at + 2], "little") for at in (0, 2))
        return rows, columns
    return 0, 0


class RawMode:
    """The terminal `fd` in raw mode, from `enter` to `leave` or for the length of a ``with`` block, in the main thread.

    Every byte that is typed arrives at once, Ctrl-C and Ctrl-Z included, and none is echoed. While the process is
    stopped (SIGTSTP), the terminal has its own mode; when it goes on (SIGCONT), raw mode again, and `on_return` is
    called. In the background the terminal belongs to somebody else: there the kernel stops the process (SIGTTOU), as
    it stops ssh, until the shell's `fg`; it goes on there only while `is_ending` says that it is about to end. A
    process that is killed restores nothing, so a guardian does: a child that sleeps until this process has ended, and
    leaves a terminal alone whose mode somebody has changed since.
    """

    def __init__(
        self,
        fd: int,
        on_return: "Callable[[], object]" = lambda: None,
        is_ending: "Callable[[], object]" = lambda: False,
    ) -> None:
        self._fd, self._on_return, self._is_ending = fd, on_return, is_ending
        self._is_raw = False
        self._usual = termios.tcgetattr(fd)
        self._raw = _raw(self._usual)
        self._handlers = {number: _signal.getsignal(number) for number in (_signal.SIGTSTP, _signal.SIGCONT)}
        self._guard = -1

    def __enter__(self) -> "RawMode":
        self.enter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Make the terminal raw."""
        self._guard = self._watch()
        _signal.signal(_signal.SIGTSTP, self._stop)
        _signal.signal(_signal.SIGCONT, self._go_on)
        self._make_raw()

    def leave(self) -> None:
        """Make the terminal what it was."""
        for number, handler in self._handlers.items():
            _signal.signal(number, handler)
        self._make_usual()
        os.close(self._guard)

    def _stop(self, number: int, frame: object) -> None:
        self._make_usual()
        os.kill(os.getpid(), _signal.SIGSTOP)

    def _go_on(self, number: int, frame: object) -> None:
        if not (self._is_ending() and _is_in_background(self._fd)):
            self._make_raw()
            self._on_return()

    def _make_raw(self) -> None:
        if _set(self._fd, self._raw):
            self._is_raw = True
        # else the process has been stopped for it and goes on: the handler of SIGCONT, which runs now, tries again

    def _make_usual(self) -> None:
        """Give the terminal its own mode, also from the background, if it is raw because of this process."""
        if self._is_raw:
            _set_unasked(self._fd, self._usual)
        self._is_raw = False

    def _watch(self) -> int:
        """Start the guardian, which ends when the descriptor returned is closed."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        if os.fork():
            os.close(read_end)
            return write_end
        try:
            os.setpgid(0, 0)  # what a terminal sends to our group is not for it
            for number in (_signal.SIGTTIN, _signal.SIGHUP, _signal.SIGTERM):
                _signal.signal(number, _signal.SIG_IGN)
            terminal, ended = os.dup(self._fd), os.dup(read_end)
            os.dup2(terminal, 0)
            os.dup2(ended, 1)
            close_from(2)
            os.read(1, 1)
            if termios.tcgetattr(0)[:4] == self._raw[:4]:
                _set_unasked(0, self._usual)
        finally:
            os._exit(0)


def _is_in_background(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:
        return False  # it controls no session, or not this one


def _set(fd: int, mode: "Mode") -> bool:
    """Whether the terminal has the mode now: it may have been hung up, or the process is not in its foreground."""
    try:
        termios.tcsetattr(fd, termios.TCSANOW, mode)
    except termios.error:
        return False
    return True


def _set_unasked(fd: int, mode: "Mode") -> None:
    # A process in the background that sets a terminal's mode is stopped for it, unless it ignores SIGTTOU.
    before = _signal.signal(_signal.SIGTTOU, _signal.SIG_IGN)
    _set(fd, mode)
    _signal.signal(_signal.SIGTTOU, before)


def _raw(usual: "Mode") -> "Mode":
    """What cfmakeraw(3) makes of a mode."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, characters = usual
    assert isinstance(iflag, int)
    assert isinstance(oflag, int)
    assert isinstance(cflag, int)
    assert isinstance(lflag, int)
    assert isinstance(characters, list)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    characters = list(characters)
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    return [iflag & ~RAW_INPUT, oflag & ~termios.OPOST, cflag, lflag & ~RAW_LOCAL, ispeed, ospeed, characters]
