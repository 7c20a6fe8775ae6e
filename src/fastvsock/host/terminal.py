"""Raw mode for a terminal, and its own mode back, whatever ends the program."""

import os
import signal
import termios


class RawMode:
    """The terminal `fd` in raw mode for the length of a `with` block, entered in the main thread.

    Every byte that is typed arrives at once, Ctrl-C and Ctrl-Z included, and none is echoed. While the process is
    stopped (SIGTSTP), the terminal has its own mode; when it goes on (SIGCONT), raw mode again.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._usual = termios.tcgetattr(fd)
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGTSTP, signal.SIGCONT)}

    def __enter__(self) -> "RawMode":
        signal.signal(signal.SIGTSTP, self._stop)
        signal.signal(signal.SIGCONT, self._go_on)
        self._set(_raw(self._usual))
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._set(self._usual)

    def _stop(self, number: int, frame: object) -> None:
        self._set(self._usual)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _go_on(self, number: int, frame: object) -> None:
        self._set(_raw(self._usual))

    def _set(self, mode: "list[int | list[bytes | int]]") -> None:
        # A process in the background that sets a terminal's mode is stopped for it, unless it ignores SIGTTOU.
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, mode)
        except termios.error:
            pass  # it was hung up
        finally:
            signal.signal(signal.SIGTTOU, before)


def _raw(usual: "list[int | list[bytes | int]]") -> "list[int | list[bytes | int]]":
    """What cfmakeraw(3) makes of a mode."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, characters = usual
    assert isinstance(iflag, int)
    assert isinstance(oflag, int)
    assert isinstance(cflag, int)
    assert isinstance(lflag, int)
    assert isinstance(characters, list)
    iflag &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    oflag &= ~termios.OPOST
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    characters = list(characters)
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, characters]
