"""What commands print of their own: lines to stderr and to other descriptors, and errors as sentences."""

import errno
import os

from . import errors


def log(text: str) -> None:
    """Write one line to stderr, in one write(2), so that threads do not mix their lines."""
    try:
        os.write(2, f"fastvsock: {text}\n".encode(errors="backslashreplace"))
    except OSError:
        pass  # nobody reads stderr, and there is no other place


def message_and_status(error: Exception, *, hints: bool = False) -> tuple[str, int]:
    """The sentence that a command prints for `error`, and its exit status. `hints` adds what its options can do.

    An unexpected exception gets a sentence too, or is raised again where FASTVSOCK_DEBUG=1.
    """
    if isinstance(error, errors.FastvsockError):
        return (f"{error} ({error.hint})" if hints and error.hint else str(error)), error.exit_code
    if os.environ.get("FASTVSOCK_DEBUG") == "1":
        raise error
    return errors.printable(f"unexpected {type(error).__name__}: {error} (FASTVSOCK_DEBUG=1 shows where)"), 1


def fill_closed() -> "list[int]":
    """Open /dev/null where stdin, stdout or stderr is closed, so that no connection takes its number; return which.

    A write to a stdout filled so still fails with EBADF: a closed stdout does not swallow data without end.
    """
    closed = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            open_null(write=number == 2)
            closed.append(number)
    return closed


def open_null(*, write: bool = False) -> int:
    """Open /dev/null, as the lowest descriptor that is free, and not inheritable.

    In a root without /dev it is the end of a pipe whose other end is closed: reading ends at once, writing is EPIPE.
    """
    try:
        return os.open("/dev/null", os.O_WRONLY if write else os.O_RDONLY)
    except FileNotFoundError:
        reading, writing = os.pipe()
    if write:
        os.dup2(writing, reading, inheritable=False)
    os.close(writing)
    return reading


def close_from(first: int) -> None:
    """Close all descriptors from `first` on, in a child that is to keep nothing of its parent's.

    os.closerange() asks for a million numbers one by one, for a tenth of a second, where libc has no close_range: musl.
    """
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return os.closerange(first, 1 << 20)
    for number in numbers:
        if number >= first:
            try:
                os.close(number)
            except OSError:
                pass  # it was the listing's own


def write_line(fd: int, text: str) -> None:
    """Write a line to the descriptor `fd`, and close it unless it is one of the first three. Raises `StreamError`."""
    try:
        os.write(fd, f"{text}\n".encode(errors="surrogateescape"))
        if fd > 2:
            os.close(fd)
    except BrokenPipeError:
        pass  # its reader has gone
    except OSError as error:
        if fd == 1 and error.errno == errno.EBADF:
            return  # it was closed: see fill_closed()
        where = "write the output" if fd == 1 else f"write to descriptor {fd}"
        raise errors.StreamError(f"cannot {where}: {error.strerror}", error.errno or 0) from None
