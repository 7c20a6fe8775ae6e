"""How subcommands read their arguments by argparse: wrong usage, types that several take, the words behind ``--``."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import errors
from ..stdio import log

LONGEST = 1_000_000  # seconds, as for connect: more than a week, and within the range of poll(2) and socket timeouts
INFINITY = float("inf")


class Parser(argparse.ArgumentParser):
    """Reports wrong usage as the commands do that have no argparse: a sentence, the usage, and the exit status."""

    status = errors.USAGE

    def error(self, message: str) -> NoReturn:
        """Print it with the usage, and exit."""
        log(f"{message}\n{self.format_usage().rstrip()} ({self.prog} --help explains)")
        raise SystemExit(self.status)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[Any]]:
        """Report what is unknown here: argparse has a subparser's reported by its parent, with the parent's usage."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            what = "unknown option" if unknown[0].startswith("-") else "unexpected argument"
            self.error(f"{what} {errors.printable(unknown[0])}")
        return found, unknown


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words before the first ``--``, and the command after it. Raises `UsageError` for an empty command."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    if at + 1 == len(arguments) or not arguments[at + 1]:
        raise errors.UsageError(errors.MISSING_COMMAND)
    return arguments[:at], arguments[at + 1 :]


class Seconds:
    """A number of seconds up to `LONGEST`: from 0, or more than 0 with `positive`; also inf with `infinite`."""

    def __init__(self, *, positive: bool = False, infinite: bool = False) -> None:
        self._positive, self._infinite = positive, infinite

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if (0 <= value <= LONGEST and not (self._positive and not value)) or (self._infinite and value == INFINITY):
            return value
        lowest = "more than 0 and at most" if self._positive else "from 0 to"
        also = " or inf" if self._infinite else ""
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds {lowest} {LONGEST}{also}")


def positive(text: str) -> int:
    """A number from 1 up."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1 to 999999999")
    return int(text)


def descriptor(text: str) -> int:
    """The number of a descriptor."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected the number of a descriptor") from None


def path(text: str) -> str:
    """A path that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def socket_path(text: str) -> str:
    """The path of a Unix socket, or @NAME for an abstract one; neither is empty."""
    if text == "@":
        raise argparse.ArgumentTypeError("'@': expected PATH, or @NAME for an abstract socket")
    return path(text)


def mode(text: str) -> int:
    """Permissions, as three octal digits."""
    if len(text) < 5 and text.isascii() and text.isdigit() and not set(text) & {"8", "9"} and int(text, 8) < 0o1000:
        return int(text, 8)
    raise argparse.ArgumentTypeError(f"{text!r}: expected three octal digits, such as 660")
