"""The umbrella command `fastvsock` for all subcommands whose start may take a moment: output, errors, help."""

import io
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module

from .. import __version__, errors, stdio
from . import COMMANDS

HELP = """\
usage: fastvsock COMMAND ...  (fastvsock COMMAND --help explains)

commands:
{commands}

options:
  -h, --help  print this help; fastvsock help [COMMAND] does too, or a command's
  --version   print the version

environment:
  FASTVSOCK_ENGINE  auto, splice or copy: what moves the bytes (default auto)
  FASTVSOCK_DEBUG   1: a traceback for an error that the program does not know
"""


class Stdout(io.FileIO):
    """Standard output, whose errors differ from those of other files, and are raised only once."""

    reader_left: BrokenPipeError | None = None

    _failed = False

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """Raises `StreamError`, or `Stdout.reader_left` where nobody reads any more."""
        if self._failed:
            return len(data)
        try:
            return super().write(data)
        except BrokenPipeError as error:
            self._failed = True
            Stdout.reader_left = error
            raise
        except OSError as error:
            self._failed = True
            raise errors.StreamError(f"cannot write the output: {error.strerror}", error.errno or 0) from None


def main() -> None:
    """What the console script does. Does not return."""
    try:
        mend_streams()
        os._exit(run(sys.argv[1:]))
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 0)
    except KeyboardInterrupt:  # after all that is to be cleared away
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def mend_streams() -> None:
    """Let what is printed go nowhere where that is closed, and tell of a stdout that fails."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        stdio.fill_closed()
    if sys.stderr is None:
        sys.stderr = io.StringIO()
    if sys.stdout is None:
        sys.stdout = io.StringIO()
    else:
        how = {name: getattr(sys.stdout, name) for name in ("encoding", "errors", "line_buffering")}
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(Stdout(1, "w", closefd=False)), **how)


def run(arguments: list[str]) -> int:
    """Run the subcommand that `arguments` begins with, print what is wrong, and return the exit status."""
    try:
        status = _reported(lambda: _run(arguments))
    except SystemExit as end:  # of argparse, which has said why
        raise SystemExit(_reported(_flush) or end.code) from None
    if not status:
        return _reported(_flush)
    try:
        _flush()
    except OSError:
        pass  # what went wrong first is on stderr already
    return status


def _reported(act: Callable[[], int]) -> int:
    """The status of `act`, or of what is wrong with it, once that is printed."""
    try:
        return act()
    except Exception as error:
        if error is Stdout.reader_left:
            return 0  # the reader, `head` for instance, has read enough
        sentence, status = stdio.message_and_status(error)
        stdio.log(sentence)
        return status


def _flush() -> int:
    sys.stdout.flush()
    return 0


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name == "help" and arguments[1:]:
        name, arguments = arguments[1], [arguments[1], "--help"]
    elif name in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    elif name == "--version":
        print(f"fastvsock {__version__}")
        return 0
    if name not in COMMANDS:
        what = f"unknown command {name!r}" if name else "a command is needed"
        stdio.log(f"{what}\n{_help()}".rstrip())
        return errors.USAGE
    return int(import_module(f".{name}", __package__).main(arguments[1:]))


def _help() -> str:
    width = max(map(len, COMMANDS))
    return HELP.format(commands="\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()))
