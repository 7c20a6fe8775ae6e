"""Options without argparse, which costs as much as the rest of a start: for `exec`, which starts often, and `agent`,
which stays in memory."""

import errno
import os

from .. import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def take_option(
    word: str, rest: "Iterator[str]", flags: "Mapping[str, str]", values: "Mapping[str, str]"
) -> "Iterator[tuple[str, str | None]]":
    """What one word of options says: names of `flags` with None, and of `values` with theirs, from `rest` perhaps.

    The word is ``--name``, ``--name=value``, or letters, of which the last may have its value right behind it. Raises
    `UsageError`.
    """
    name, equals, value = word.partition("=")
    if not word.startswith("--"):
        name, value = word[:2], word[2:].removeprefix("=")
        equals = word[2:]
        if name in flags and equals:
            yield flags[name], None
            yield from take_option(f"-{word[2:]}", rest, flags, values)
            return
    if name in flags and not equals:
        yield flags[name], None
    elif name in values:
        found = value if equals else next(rest, None)
        if found is None:
            raise errors.UsageError(f"{name} needs a value")
        yield values[name], found
    else:
        raise errors.UsageError(f"unknown option {errors.printable(word)}")


def seconds(name: str, text: str, *, positive: bool = False) -> float:
    """A number of seconds up to 1,000,000, from 0 or more than that. Raises `UsageError`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6 or (positive and not value):
        lowest = "more than 0 and at most" if positive else "from 0 to"
        raise errors.UsageError(f"--{name} {text!r}: expected a number of seconds {lowest} 1000000")
    return value


def put(text: str) -> None:
    """Write to stdout, which may be closed, and whose reader may have gone. Raises `StreamError`."""
    try:
        os.write(1, text.encode())
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EPIPE):
            raise errors.StreamError(f"cannot write the output: {error.strerror}", error.errno or 0) from None
