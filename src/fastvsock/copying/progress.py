"""One line on a terminal about a copy under way, drawn again a few times a second."""

import os
import stat
from time import monotonic

from .. import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

INTERVAL = 0.1  # seconds
CLEAR = "\r\x1b[K"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


class Line:
    """The line, on the descriptor `fd`. `total` is the bytes of content that are expected, or 0."""

    def __init__(self, fd: int, total: int = 0) -> None:
        self._fd = fd
        self.total = total
        self._started = self._drawn = monotonic()
        self.files = self.content = self.skipped = 0
        self._path = b""

    def update(self, path: bytes = b"") -> None:
        """Draw it again, if the last time was long enough ago; `path` is the file in hand, if that is another one."""
        self._path = path or self._path
        now = monotonic()
        if now - self._drawn >= INTERVAL:
            self._drawn = now
            self._write(CLEAR + self._text(now - self._started, os.fsdecode(self._path)))

    def _text(self, seconds: float, path: str) -> str:
        rate = self.content / seconds
        total = self.total - self.skipped
        of = f" of {amount(total)}" if total >= self.content else ""
        words = [f"{amount(self.content)}{of}", f"{self.files} files", f"{amount(rate)}/s"]
        if of and rate:
            words.append(f"{clock((total - self.content) / rate)} left")
        text = ", ".join(words)
        room = self._width() - len(text) - 3
        shown = errors.printable(path)
        if len(shown) > room:
            shown = f"...{shown[3 - room :]}" if room > 3 else ""
        return f"{text}  {shown}"[: self._width() - 1]

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._fd).columns or 80
        except OSError:
            return 80

    def clear(self) -> None:
        """Leave the line empty, for something else to be printed."""
        self._write(CLEAR)

    def _write(self, text: str) -> None:
        try:
            os.write(self._fd, text.encode(errors="backslashreplace"))
        except OSError:
            pass  # the terminal has gone


def amount(count: float) -> str:
    """A number of bytes, as people read it."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def clock(seconds: float) -> str:
    """A time, as people read it."""
    minutes, rest = divmod(min(int(seconds), 359_999), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def measure(sources: "Sequence[bytes]", tell: "Callable[[int], None]") -> "threading.Thread":
    """Find out, in a thread, how many bytes of content there are, and `tell` it there."""

    import threading  # which a copy without a terminal does without

    def run() -> None:
        tell(sum(map(_size, sources)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _size(path: bytes) -> int:
    total = 0
    to_do = [path]
    while to_do:
        path = to_do.pop()
        try:
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                with os.scandir(path) as found:
                    to_do += [entry.path for entry in found]
            elif stat.S_ISREG(status.st_mode):
                total += status.st_size
        except OSError:
            pass  # the copy will say so
    return total
