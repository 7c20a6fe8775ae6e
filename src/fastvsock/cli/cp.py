"""`fastvsock cp UDS SOURCE ... TARGET`: files and trees to a guest and from it."""

import argparse
import errno
import json
import os
import signal
from time import monotonic
from types import FrameType

from .. import errors, handshake, stdio
from ..channels import protocol
from ..copying import entries
from ..copying.client import Copy
from ..copying.options import Options
from ..copying.progress import Line, measure
from ..copying.report import Report
from ..engines import ENGINES
from ..stdio import log
from . import arguments, description
from .arguments import Seconds, path

EPILOG = """\
A path in the guest begins with a colon: :/srv/www. A TARGET that is a folder gets the sources under their own names,
any other TARGET is the name of the one SOURCE; a SOURCE that ends in /. means what is in the folder. A lone - for
SOURCE or TARGET is a tar stream on stdin or stdout, for the other is in the guest.

--exclude leaves out a name at any depth (*.o, node_modules) or, where PATTERN has a slash in front of or inside it, a
path counted from SOURCE (/build, src/*.o). *, ? and [...] match slashes too, as those of tar do; a slash at the end
changes nothing. With a folder all that is in it is left out. Quote a PATTERN, so that no shell expands it.

Modes and times are kept, and owners where the receiving side is root: with them setuid and setgid bits, as cp -a keeps
them and scp does not. --no-owner leaves both out. A file appears under its name when it is whole.
Devices and sockets are left out, and count as missing.

A file goes where a TARGET that is a symbolic link leads; in a TARGET that is a folder, a file replaces a link, and a
folder is copied into no link but with --keep-dirlinks. A TARGET that is a device or a FIFO, such as :/dev/null or
/dev/stdout, takes the content. In a folder, nothing is copied over devices, FIFOs and sockets.

A copy that is interrupted leaves the begun part of a large file beside its TARGET, as .fastvsock-....part: --resume
goes on with it or removes it. A folder's files of such names are not copied, and count as missing.

exit status: 0 everything is at TARGET; 1 something is not, each by name on stderr; 125 fastvsock itself failed, wrong
usage included; 126 not as that USER.
"""
RESUME = (
    "the same command with --resume goes on from there, and removes the .fastvsock-....part that a large file may have "
    "left beside its target"
)
ENDING = (signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal is to end the program, once what is under way is cleared away: the argument is its number."""


def make_parser() -> arguments.Parser:
    """The options of the command."""
    parser = arguments.Parser(
        "fastvsock cp",
        usage="fastvsock cp [options] UDS SOURCE ... TARGET",
        description=description("cp"),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.status = errors.NO_CHANNEL
    parser.add_argument("uds", type=path, metavar="UDS", help="the VMM's vsock Unix socket")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="what to copy")
    parser.add_argument("target", metavar="TARGET", help="where to")
    parser.add_argument(
        "--resume", action="store_true", help="skip files of the same size and time, continue large ones"
    )
    parser.add_argument(
        "--checksum",
        action="store_true",
        help="compare the SHA-256 of every file on both sides: of copied files and, with --resume, of those to skip",
    )
    parser.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="leave out; may be repeated")
    parser.add_argument("--follow", action="store_true", help="copy what symbolic links lead to")
    parser.add_argument("--no-owner", action="store_true", help="files become the receiving user's")
    parser.add_argument("--xattrs", action="store_true", help="keep extended attributes where both sides may")
    parser.add_argument(
        "--keep-dirlinks", action="store_true", help="copy a folder into the one that a link of its name leads down to"
    )
    parser.add_argument("--fsync", action="store_true", help="wait for the disk, file by file")
    parser.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="who to be in the guest")
    parser.add_argument("--dry-run", action="store_true", help="print what would be copied, and copy nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress on a terminal")
    parser.add_argument("--stats", action="store_true", help="one line on stderr at the end: files, bytes, time")
    parser.add_argument("--json", action="store_true", help="an object a line on stdout for each entry, and a summary")
    parser.add_argument("--port", default=str(protocol.PORT), help="the agent's AF_VSOCK port (default 721)")
    parser.add_argument(
        "--timeout", type=Seconds(positive=True), default=10.0, help="seconds to connect and be answered (default 10)"
    )
    parser.add_argument("--wait", type=Seconds(), default=0.0, help="retry for so many seconds while the guest boots")
    parser.add_argument("--engine", choices=ENGINES, help="default: FASTVSOCK_ENGINE, or auto")
    return parser


def main(words: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    options = make_parser().parse_args(words)
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        return run(options)
    except Interrupted as end:
        signal.signal(end.args[0], signal.SIG_DFL)
        os.kill(os.getpid(), end.args[0])
        raise
    except errors.FastvsockError as error:
        if isinstance(error, errors.StreamError) and error.errno == errno.EPIPE:  # of a tar stream, as tar does
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGPIPE)
        log(stdio.message_and_status(error, hints=True)[0])
        is_start = isinstance(error, (errors.StartError, errors.StreamError))
        return error.exit_code if is_start else errors.NO_CHANNEL


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def run(options: argparse.Namespace) -> int:
    """Copy, print what becomes of it, and return the exit status. Raises `FastvsockError`."""
    sources, target, is_get = _paths(options.sources, options.target)
    printer = Printer(options, sources if not is_get else [], _shown(target, in_guest=not is_get))
    copy = Copy(
        options.uds,
        _wanted(options, measure=is_get and _shows_progress(options)),
        printer,
        user=options.user,
        port=handshake.parse_port(options.port),
        timeout=options.timeout,
        wait=options.wait,
        engine=options.engine,
    )
    is_tree = not options.dry_run and b"-" not in (*sources, target)
    try:
        if is_get:
            _get(copy, sources, target)
        else:
            _put(copy, sources, target)
    except (Interrupted, KeyboardInterrupt):
        log(f"interrupted{f' ({RESUME})' if is_tree else ''}")
        raise
    except errors.ChannelBrokenError as error:
        error.hint = RESUME if is_tree else ""
        raise
    finally:
        copy.close()
        printer.finish()
    return 1 if printer.failures else 0


def _shown(target: bytes, *, in_guest: bool) -> str:
    return errors.printable(os.fsdecode(target)) + (" in the guest" if in_guest else "")


def _shows_progress(options: argparse.Namespace) -> bool:
    return not options.quiet and not options.json and os.isatty(2)


def _wanted(options: argparse.Namespace, *, measure: bool) -> Options:
    return Options(
        owner=not options.no_owner,
        follow=options.follow,
        checksum=options.checksum,
        resume=options.resume,
        dry_run=options.dry_run,
        fsync=options.fsync,
        xattrs=options.xattrs,
        keep_dirlinks=options.keep_dirlinks,
        measure=measure,
        exclude=tuple(map(os.fsencode, options.exclude)),
    )


def _get(copy: Copy, sources: list[bytes], target: bytes) -> None:
    if target == b"-":
        from ..copying.tars import get_tar

        get_tar(copy, sources, 1)
    else:
        copy.get(sources, target)


def _put(copy: Copy, sources: list[bytes], target: bytes) -> None:
    if sources == [b"-"]:
        from ..copying.tars import put_tar

        put_tar(copy, 0, target)
    else:
        copy.put(sources, target)


def _paths(sources: list[str], target: str) -> tuple[list[bytes], bytes, bool]:
    """The sources, the target, and whether the guest has the sources; colons are gone. Raises `UsageError`."""
    in_guest = [source.startswith(":") for source in sources]
    is_get = all(in_guest)
    if is_get == target.startswith(":") or (not is_get and any(in_guest)):
        raise errors.UsageError("either every SOURCE or TARGET is in the guest, and begins with a colon, such as :/srv")
    if "-" in sources and len(sources) > 1:
        raise errors.UsageError("a tar stream on stdin is the only SOURCE")
    words = [
        os.fsencode(word.removeprefix(":") if guest else word) for word, guest in zip(sources, in_guest, strict=True)
    ]
    where = os.fsencode(target if is_get else target.removeprefix(":"))
    for word, guest in [*zip(words, in_guest, strict=True), (where, not is_get)]:
        if not word:
            place, example = ("in the guest", ":/srv") if guest else ("on this host", "./srv")
            raise errors.UsageError(f"the path {place} is empty: give one such as {example}")
    return words, where, is_get


class Printer(Report):
    """Prints what becomes of the entries, as the options ask for it."""

    def __init__(self, options: argparse.Namespace, sources: list[bytes], target: str) -> None:
        self._target = target
        self._json, self._dry, self._stats = options.json, options.dry_run, options.stats
        self._started = monotonic()
        self.files = self.skips = self.failures = self.content = 0
        self._line: Line | None = None
        if _shows_progress(options):
            self._line = Line(2)
            measure([source for source in sources if source != b"-"], self.expect)

    def expect(self, content: int) -> None:
        """So much is to be moved."""
        if self._line:
            self._line.total = content

    def copied(self, path: bytes, size: int) -> None:
        """An entry is there."""
        self.files += 1
        self.content += size
        if self._line:
            self._line.files = self.files
            self._line.update(path)
        self._tell("copied", path, bytes=size)

    def skipped(self, path: bytes, size: int) -> None:
        """A file was there already."""
        self.skips += 1
        if self._line:
            self._line.skipped += size
        self._tell("skipped", path)

    def failed(self, path: bytes, kind: int, number: int) -> None:
        """An entry has not been copied."""
        self.failures += 1
        reason = entries.describe(kind, number, self._target)
        if self._line:
            self._line.clear()
        log(f"{errors.printable(os.fsdecode(path))}: {reason}")
        if self._json:
            self._tell("failed", path, reason=reason, errno=number)

    def _tell(self, event: str, path: bytes, **more: object) -> None:
        if self._json:
            self._print_object(self._name(event), path=os.fsdecode(path), **more)
        elif self._dry and event == "copied":
            _print(errors.printable(os.fsdecode(path)))

    def _name(self, event: str) -> str:
        """What is said of entries that this became of, or would become of."""
        return {"copied": "would-copy", "skipped": "would-skip"}.get(event, event) if self._dry else event

    def _print_object(self, event: str, **more: object) -> None:
        dry: dict[str, object] = {"dry_run": True} if self._dry else {}
        _print(json.dumps({"event": event, **dry, **more}))

    def progress(self, content: int) -> None:
        """Content has been moved."""
        if self._line:
            self._line.content = content
            self._line.update()

    def finish(self) -> None:
        """Print how much it was."""
        if self._line:
            self._line.clear()
        seconds = monotonic() - self._started
        counts = {"copied": self.files, "skipped": self.skips, "failed": self.failures}
        counts = {self._name(event): count for event, count in counts.items()}
        if self._json:
            self._print_object("end", **counts, bytes=self.content, seconds=round(seconds, 3))
        if self._stats:
            rate = f", {self.content / seconds / (1 << 20):.0f} MiB/s" if not self._dry else ""
            shown = ", ".join(f"{count} {event.replace('would-', 'to ')}" for event, count in counts.items())
            log(f"{shown}; {self.content} bytes, {seconds:.3f} s{rate}")


def _print(line: str) -> None:
    """Print it; a copy goes on when its reader has gone, `head` for instance."""
    try:
        print(line)
    except BrokenPipeError:
        pass  # which standard output says once
