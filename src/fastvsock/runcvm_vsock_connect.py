"""`runcvm-vsock-connect UDS PORT`: stdin and stdout joined to a guest's port, and not a module more than that takes.

It starts once for every `kubectl exec`, so it parses its own few options: argparse alone would double the time to the
first byte. `fastvsock connect` is this same code. The process ends by `os._exit`: whatever the interpreter would tidy
up, the kernel tidies up faster, and nothing here waits to be flushed.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Sequence
    from typing import NoReturn
else:
    import _signal  # signal itself imports enum

# ruff: noqa: E402
# Before any other import, so that Ctrl-C ends the program without a traceback from the import that it interrupts. Only
# in the program itself: another one that imports this module has its own handling of SIGINT.
if (__name__ == "__main__" or "".join(sys.argv[:1]).endswith("/runcvm-vsock-connect")) and (
    _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler
):
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import _socket
import errno
import os

from . import __version__, errors, handshake, stdio
from .relaying import Relay, RelayResult, end_output
from .stdio import fill_closed, log

HELP = """\
usage: {prog} [options] UDS PORT [-- COMMAND ...]

Connect stdin and stdout to a port inside a microVM. UDS is the VMM's vsock
Unix socket, PORT the guest's AF_VSOCK port, 0 to 4294967295.

With a COMMAND, replace this process by that command, which inherits the
connection as descriptor 3, so that no forwarder stays in the path. dbclient
uses it with -J '&3'.

options:
  --timeout SECONDS  limit for connecting and the handshake (default 10)
  --wait SECONDS     keep trying for this long while the guest is still booting:
                     no socket yet, refused, reset, or no answer (default 0);
                     a try that can be repeated gets 1 s for its answer, the
                     next one 2 s and so on, the last one all of --timeout
  --linger SECONDS   after the end of stdin, when nothing has moved either way
                     for this long, half-close the connection: Firecracker
                     then closes it and drops a later answer, Cloud Hypervisor
                     from 53.0 passes the half-close on, so that 0 is safe; 0:
                     immediately, inf: never (default 0.5, and inf if stdin was
                     empty)
  --idle-timeout SECONDS
                     give up, with exit status 1, when nothing has moved either
                     way for this long: a paused VMM, a guest or a reader of
                     stdout that has stopped reading (default: no limit)
  --engine ENGINE    auto, splice or copy (default: FASTVSOCK_ENGINE, or auto)
  --raw              put the terminal that is stdin into raw mode until the end,
                     for a shell on the guest's port
  --ignore-sigint    leave Ctrl-C to the other processes of the terminal, such
                     as the ssh client whose ProxyCommand this is
  --fdpass           pass the connected socket over stdout, which must be a
                     socket, and exit: for OpenSSH with ProxyUseFdpass=yes, so
                     that no forwarder stays in the path
  --stats            print one line on stderr at the end: bytes and rate in
                     each direction, the engines, CPU time
  --version          print the version
  -h, --help         print this help

exit status: 0 the guest closed, or nobody reads stdout any more; 1 a failure,
explained on stderr in one line; 2 wrong usage; 128+n ended by signal n. With a
COMMAND: its own status, 127 if it is not found, 126 if it cannot be run.
"""

SECONDS = {  # what each option takes
    "--timeout": "more than 0 and at most 1000000",
    "--wait": "0 to 1000000",
    "--linger": "0 to 1000000 or inf",
    "--idle-timeout": "more than 0 and at most 1000000",
}
SIGNALS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)
CUT_OFF = (
    "the guest sent nothing after the connection was half-closed at the end of stdin: if an answer is missing, the VMM "
    "has dropped it (--linger SECONDS waits longer for an answer, --linger inf without limit)"
)
COMMANDS_FD = 3  # the first that is nobody's by custom


class Options:
    """The command line, with its defaults. Times are in seconds."""

    uds = ""
    port = 0
    timeout = 10.0
    wait = 0.0
    linger: "float | None" = None
    idle_timeout: "float | None" = None
    engine: "str | None" = None
    stats = False
    fdpass = False
    raw = False
    ignore_sigint = False
    command: "list[str] | None" = None


class Ending:
    """What the signal handlers know: with a relay they stop it, without they end the process."""

    relay: "Relay | None" = None
    signal = 0

    def __call__(self, number: int, frame: object) -> None:
        self.signal = number
        if self.relay is None:
            os._exit(128 + number)
        self.relay.stop()


def main() -> None:
    """The console script. Does not return."""
    os._exit(run(sys.argv[1:], "runcvm-vsock-connect"))


def run(arguments: "Sequence[str]", prog: str) -> int:
    """Do what the command line says and return the exit status. `prog` is the name that the help shows."""
    try:
        options = parse(arguments, prog)
        return 0 if options is None else _connect(options)
    except Exception as error:
        sentence, status = stdio.message_and_status(error, hints=True)
        if status == errors.USAGE:
            sentence += f"\nusage: {prog} [options] UDS PORT [-- COMMAND ...] ({prog} --help explains)"
        log(sentence)
        return status


def parse(arguments: "Sequence[str]", prog: str) -> "Options | None":
    """The options of a command line; None where help or version were printed. Raises what ends with `USAGE`."""
    options = Options()
    words: list[str] = []
    options_over = False
    rest = iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--" and len(words) == 2:
            options.command = _command(list(rest), options)
        elif (
            options_over or not word.startswith("-") or word[1:2].isdigit()
        ):  # -1 is not an option, but an invalid port
            words.append(word)
        elif word == "--":
            options_over = True
        elif word in ("-h", "--help"):
            _print(HELP.format(prog=prog))
            return None
        elif word == "--version":
            _print(f"{prog} {__version__}\n")
            return None
        elif word in ("--stats", "--fdpass", "--raw", "--ignore-sigint"):
            setattr(options, word[2:].replace("-", "_"), True)
        elif name == "--engine" or name in SECONDS:
            setattr(options, name[2:].replace("-", "_"), _value(name, value if equals else next(rest, None)))
        else:
            raise errors.UsageError(f"unknown option {errors.printable(word)}")
    if len(words) != 2:
        raise errors.UsageError(f"expected UDS and PORT, got {len(words)} argument{'s' * (len(words) != 1)}")
    options.uds, options.port = words[0], handshake.parse_port(words[1])
    return options


def _command(words: "list[str]", options: Options) -> "list[str]":
    if not words:
        raise errors.UsageError(errors.MISSING_COMMAND)
    if options.fdpass:
        raise errors.UsageError("--fdpass and COMMAND are mutually exclusive")
    if options.raw:
        raise errors.UsageError("--raw and COMMAND are mutually exclusive")
    return words


def _value(name: str, text: "str | None") -> "str | float":
    if text is None:
        raise errors.UsageError(f"{name} needs a value")
    if name == "--engine":
        if text not in ("auto", "splice", "copy"):
            raise errors.UnknownEngineError(text, "--engine")
        return text
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if name == "--linger" and seconds == float("inf"):
        return seconds
    if not 0 <= seconds <= 1e6 or (name in ("--timeout", "--idle-timeout") and not seconds):
        raise errors.UsageError(f"invalid {name} {text!r}: expected seconds, {SECONDS[name]}")
    return seconds


def _connect(options: Options) -> int:
    ending = Ending()
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    for number in SIGNALS:
        if _signal.getsignal(number) != _signal.SIG_IGN:  # nohup, and a shell's background jobs, mean it so
            _signal.signal(number, ending)
    if options.ignore_sigint and not options.command:
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    closed = fill_closed()
    sock = handshake.connect(options.uds, options.port, options.timeout, options.wait)
    if options.fdpass:
        return _hand_over(sock)
    if options.command:
        _give(sock)
        become(options.command)
    relay = Relay(
        sock,
        0,
        1,
        linger=options.linger,
        idle_timeout=options.idle_timeout,
        engine=options.engine,
        notice=_explain if os.isatty(2) else None,
        end_output=lambda: end_output(1),
    )
    ending.relay = relay
    result = _run_raw(relay, ending) if options.raw and os.isatty(0) else relay.run()
    if options.stats:
        log(_stats(result))
    if ending.signal:
        return 128 + ending.signal
    if result.cut_off:
        log(CUT_OFF)
    if result.error is None or (1 in closed and result.error.errno == errno.EBADF):
        return 0  # nobody reads a closed stdout: see fill_closed()
    sentence, status = stdio.message_and_status(result.error, hints=True)
    log(sentence)
    return status


def _run_raw(relay: Relay, ending: Ending) -> RelayResult:
    from .host.terminal import RawMode

    _signal.signal(_signal.SIGQUIT, ending)
    with RawMode(0, is_ending=lambda: ending.signal):
        return relay.run()


def _hand_over(sock: _socket.socket) -> int:
    """Pass the connection to the process at the other end of stdout, with one byte: mm_receive_fd() of OpenSSH."""
    rights = sock.fileno().to_bytes(4, sys.byteorder)
    try:
        stdout = _socket.socket(fileno=os.dup(1))
        stdout.sendmsg([b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    except OSError as error:
        raise errors.FastvsockError(
            f"--fdpass cannot pass the connection over stdout ({error.strerror}): it is for OpenSSH's ProxyCommand "
            "with ProxyUseFdpass=yes, where stdout is a Unix socket"
        ) from None
    return 0


def _give(sock: _socket.socket) -> None:
    """Have the program that this one becomes inherit `sock`."""
    if sock.fileno() == COMMANDS_FD:
        os.set_inheritable(COMMANDS_FD, True)
    else:
        os.dup2(sock.fileno(), COMMANDS_FD)


def become(command: "list[str]") -> "NoReturn":
    """Become `command`. exec(3) itself takes back the signal handlers. Raises `CommandError`."""
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores these
        _signal.signal(number, _signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise errors.CommandError(command[0], error) from None


def _explain() -> None:
    log("stdin has ended; waiting for the guest to close the connection (Ctrl-C ends it now, see --linger)")


def _stats(result: RelayResult) -> str:
    times = os.times()
    ways = (
        f"{way} {count} bytes, {count / max(result.seconds, 1e-9) / 2**20:.1f} MiB/s, {engine}"
        for way, count, engine in (("up", result.sent, result.up), ("down", result.received, result.down))
    )
    return f"{'; '.join(ways)}; {result.seconds:.3f} s, CPU {times.user + times.system:.3f} s"


def _print(text: str) -> None:
    """Write to stdout, which may be closed, and whose reader may have gone. Raises `StreamError`."""
    try:
        os.write(1, text.encode())
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EPIPE):
            raise errors.StreamError(f"cannot write the output: {error.strerror}", error.errno or 0) from None


if __name__ == "__main__":
    main()
