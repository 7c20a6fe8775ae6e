"""The terminal at the host's side of `exec -t`: raw while the command runs, and as it was before whatever happens."""

import fcntl
import os
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # signal itself imports enum

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
    """The terminal `fd` in raw mode, from `enter` to `leave`, and not while the process is stopped.

    A process of ours that is killed restores nothing, so a guardian does: a child that sleeps until this process has
    ended. It leaves a terminal alone that somebody has changed since.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before = termios.tcgetattr(fd)
        self._raw = _raw(self._before)
        self._guard = -1

    def enter(self) -> None:
        """Make the terminal raw. Raises `OSError` where that cannot be."""
        if self._guard < 0:
            self._guard = self._watch()
        _set(self._fd, self._raw)

    def leave(self) -> None:
        """Make the terminal what it was."""
        try:
            _set(self._fd, self._before)
        except OSError:
            pass  # it has gone
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1

    def stop(self) -> None:
        """Let SIGTSTP stop this process as it would have, with the terminal as it was meanwhile."""
        _set(self._fd, self._before)
        os.kill(os.getpid(), _signal.SIGSTOP)
        _set(self._fd, self._raw)

    def _watch(self) -> int:
        """Start the guardian, which ends when the descriptor returned is closed."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        if os.fork():
            os.close(read_end)
            return write_end
        try:
            os.setpgid(0, 0)  # what a terminal sends to our group is not for it
            for number in (_signal.SIGTTOU, _signal.SIGTTIN, _signal.SIGHUP, _signal.SIGTERM):
                _signal.signal(number, _signal.SIG_IGN)
            terminal, ended = os.dup(self._fd), os.dup(read_end)
            os.dup2(terminal, 0)
            os.dup2(ended, 1)
            os.closerange(2, 1 << 20)
            os.read(1, 1)
            if termios.tcgetattr(0)[:4] == self._raw[:4]:
                _set(0, self._before)
        finally:
            os._exit(0)


def _raw(before: "list[int | list[bytes | int]]") -> "list[int | list[bytes | int]]":
    """The attributes of raw mode, as cfmakeraw(3) has them."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = before
    assert isinstance(iflag, int)
    assert isinstance(oflag, int)
    assert isinstance(lflag, int)
    assert isinstance(cc, list)
    control = list(cc)
    control[termios.VMIN], control[termios.VTIME] = 1, 0
    return [iflag & ~RAW_INPUT, oflag & ~termios.OPOST, cflag, lflag & ~RAW_LOCAL, ispeed, ospeed, control]


def _set(fd: int, attributes: "list[int | list[bytes | int]]") -> None:
    try:
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
    except termios.error as error:
        raise OSError(*error.args) from None
