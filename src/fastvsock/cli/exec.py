"""`fastvsock exec UDS COMMAND`: a command in the guest, with this process' stdin, stdout, stderr, signals and terminal.

It starts once for every `kubectl exec`, so it is on the hot path as runcvm_vsock_connect.py is: it parses its own
options, and loads nothing that a start does not need.
"""

import os
from time import monotonic

from .. import __version__, errors, handshake, stdio
from ..channels import protocol
from ..channels.client import Channel, Command
from ..channels.protocol import Request
from ..engines import ENGINES
from ..stdio import fill_closed, log
from . import lean

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Iterator, Sequence

    from ..host.terminal import RawMode
else:
    import _signal  # signal itself imports enum

HELP = """\
usage: fastvsock exec [options] UDS [--] COMMAND [ARG ...]

Run a command in the guest behind UDS, the VMM's vsock Unix socket, where
`fastvsock agent` listens. Its stdout, stderr and exit status are this
program's; signals (INT, TERM, HUP, QUIT, USR1, USR2, WINCH) are passed on. One
that comes before the agent has answered ends this program with 128+n. In a
guest that hangs, INT or TERM does, 2 s after a signal that was not taken: 125.

Where this program or its connection ends first (kill -9, a snapshot restored),
the agent ends every process of the command's session: HUP, after 1 s TERM, and
1.5 s later KILL. With `setsid COMMAND` it stays, and with its output in a file.

options:
  -i, --interactive      pass stdin on; without it the command's is empty
  -t, --tty              give the command a terminal; with -i, make this one raw
                         (in a shell's background it stops, until fg)
  -u, --user USER[:GROUP]
                         names or numbers of the guest's (default: the agent's)
  --groups GROUP,...     supplementary groups (default: the user's)
  -w, --workdir DIR      working directory in the guest
  -e, --env NAME=VALUE   a variable for the command; NAME alone: as it is here
  --env-file FILE        such variables, one a line; # begins a comment
  --clear-env            nothing of the agent's own environment
  --preserve-env         all variables of this process, but for _, PWD, OLDPWD and
                         SHLVL, which are its shell's
  --port PORT            the agent's AF_VSOCK port (default 721)
  --timeout SECONDS      time for connecting and the first answer (default 10)
  --wait SECONDS         keep trying while the guest is booting (default 0)
  --or-else PROGRAM [ARG ...] ;
                         become that program, on this machine, where connecting
                         fails: then nothing has been asked of an agent
  --engine ENGINE        auto, splice or copy (default: FASTVSOCK_ENGINE, or auto)
  --stats                one line on stderr at the end: bytes each way, time
  --version              print the version
  -h, --help             print this help

exit status: the command's, 128+n if signal n ended it; 127 the command was not
found, 126 it cannot be run, or not as that user or in that directory; 125
fastvsock itself failed, wrong usage included, explained on stderr in one line.
"""

FLAGS = {"-i": "stdin", "--interactive": "stdin", "-t": "tty", "--tty": "tty"}
FLAGS |= {"--clear-env": "clear_env", "--preserve-env": "preserve_env", "--stats": "stats"}
VALUES = {"-u": "user", "--user": "user", "-w": "workdir", "--workdir": "workdir", "-e": "env", "--env": "env"}
VALUES |= {f"--{name}": name.replace("-", "_") for name in ("groups", "env-file", "port", "timeout", "wait", "engine")}
SHELLS_OWN = (b"_", b"PWD", b"OLDPWD", b"SHLVL")
ENDING: "dict[int, str]" = {_signal.SIGINT: "SIGINT", _signal.SIGTERM: "SIGTERM"}
PATIENCE = 2.0  # seconds in which a guest that works has confirmed a signal
PASSED_ON = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2)


class Options:
    """The command line, with its defaults. Times are in seconds."""

    def __init__(self) -> None:
        self.stdin = self.tty = self.clear_env = self.stats = False
        self.user = self.workdir = self.uds = ""
        self.groups: list[bytes] | None = None
        self.environment: list[bytes] = []
        self.port, self.timeout, self.wait = protocol.PORT, 10.0, 0.0
        self.engine: str | None = None
        self.command: list[str] = []
        self.or_else: list[str] = []

    def take(self, name: str, value: str | None) -> None:
        """Set the option `name`. Raises what ends with `USAGE`."""
        if name == "preserve_env":
            self.environment += [b"=".join(item) for item in os.environb.items() if item[0] not in SHELLS_OWN]
        elif value is None:
            setattr(self, name, True)
        elif name == "env":
            self.environment += _variable(os.fsencode(value))
        elif name == "env_file":
            self.environment += _read_variables(value)
        elif name == "groups":
            self.groups = [os.fsencode(group) for group in value.split(",") if group]
        elif name == "port":
            self.port = handshake.parse_port(value)
        elif name == "engine" and value not in ENGINES:
            raise errors.UnknownEngineError(value, "--engine")
        elif name in ("timeout", "wait"):
            setattr(self, name, lean.seconds(name, value, positive=name == "timeout"))
        else:
            setattr(self, name, value)

    @property
    def request(self) -> Request:
        """What the agent is asked for."""
        flags = protocol.WITH_STDIN * self.stdin | protocol.TERMINAL * self.tty
        variables = list(self.environment)
        size = (0, 0)
        if self.tty:
            from ..host import terminal

            size = terminal.size()
            variables.insert(0, b"TERM=" + os.environb.get(b"TERM", b"xterm"))
        return Request(
            protocol.EXEC,
            arguments=map(os.fsencode, self.command),
            variables=variables,
            directory=os.fsencode(self.workdir),
            user=os.fsencode(self.user),
            groups=self.groups,
            flags=flags | protocol.CLEAR_ENVIRONMENT * self.clear_env,
            size=size,
        )


def _variable(text: bytes) -> list[bytes]:
    """``NAME=VALUE``, or the variable of this process that is called so, if there is one. Raises `UsageError`."""
    name, equals, _ = text.partition(b"=")
    if not name:
        raise errors.UsageError(f"invalid variable {errors.printable(os.fsdecode(text))!r}: expected NAME=VALUE")
    if equals:
        return [text]
    value = os.environb.get(name)
    return [] if value is None else [name + b"=" + value]


def _read_variables(path: str) -> list[bytes]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
        finally:
            os.close(fd)
    except OSError as error:
        raise errors.UsageError(f"cannot read --env-file {errors.printable(path)}: {error.strerror}") from None
    lines = (line.lstrip().rstrip(b"\r") for line in text.split(b"\n"))
    return [found for line in lines if line and not line.startswith(b"#") for found in _variable(line)]


def main(arguments: "Sequence[str]") -> int:
    """Run the subcommand and return the exit status."""
    try:
        options = parse(arguments)
        return 0 if options is None else Execution(options).run()
    except Exception as error:
        sentence, status = stdio.message_and_status(error, hints=True)
        if status == errors.USAGE:
            sentence += f"\n{HELP.partition(chr(10))[0]} (fastvsock exec --help explains)"
        log(sentence)
        return status if isinstance(error, (errors.StartError, errors.CommandError)) else errors.NO_CHANNEL


def parse(arguments: "Sequence[str]") -> Options | None:
    """The options of a command line; None where help or version were printed. Raises what ends with `USAGE`."""
    options = Options()
    rest = iter(arguments)
    for word in rest:
        if word in ("-h", "--help", "--version"):
            lean.put(f"fastvsock {__version__}\n" if word == "--version" else HELP)
            return None
        if word == "--" and options.uds:
            options.command = list(rest)
        elif word == "--or-else":
            options.or_else = _until_semicolon(rest)
        elif word.startswith("-") and word != "-":
            for name, value in () if word == "--" else lean.take_option(word, rest, FLAGS, VALUES):
                options.take(name, value)
        elif options.uds:
            options.command = [word, *rest]
        else:
            options.uds = word
            if not word:
                raise errors.EmptyPathError(word, options.port)
    if not options.uds or not options.command:
        raise errors.UsageError("expected UDS and COMMAND")
    return options


def _until_semicolon(rest: "Iterator[str]") -> list[str]:
    """The words before one that is a semicolon, as `find -exec` has them. Raises `UsageError`."""
    words: list[str] = []
    for word in rest:
        if word == ";" and words:
            return words
        words.append(word)
    raise errors.UsageError("--or-else needs a program, and a word ';' after its arguments")


class Execution:
    """One run of the command, with our signals and our terminal."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._command: Command | None = None
        self._raw: RawMode | None = None

    def run(self) -> int:
        """The exit status. Raises `FastvsockError`."""
        options = self._options
        _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
        for number in (*PASSED_ON, _signal.SIGWINCH):
            if _signal.getsignal(number) != _signal.SIG_IGN:  # nohup, and a shell's background jobs, mean it so
                _signal.signal(number, self._pass_on)
        fill_closed()
        started = monotonic()
        channel = self._channel()
        _signal.set_wakeup_fd(channel.wakeup, warn_on_full_buffer=False)
        try:
            files = 0 if options.stdin else None, 1, None if options.tty else 2
            self._command = Command(channel, files)
            status = self._command.run(on_start=self._on_start) or 0
            return 128 - status if status < 0 else status
        finally:
            if self._raw:
                self._raw.leave()
            if options.stats:
                log(_stats(channel, monotonic() - started))

    def _channel(self) -> Channel:
        options = self._options
        try:
            return Channel(
                options.uds,
                options.request,
                port=options.port,
                timeout=options.timeout,
                wait=options.wait,
                engine=options.engine,
            )
        except errors.ConnectError:  # before the request was sent
            if options.or_else:
                from ..runcvm_vsock_connect import become

                become(options.or_else)
            raise

    def _pass_on(self, number: int, frame: object) -> None:
        command = self._command
        if command is None or not command.channel.order.has_started:
            if number != _signal.SIGWINCH:
                os._exit(128 + number)
        elif number in ENDING and command.unanswered >= PATIENCE:
            raise errors.UnansweredSignalError(ENDING[number], command.unanswered)
        else:
            command.signal(number)

    def _on_start(self) -> None:
        """Follow the size of our terminal, and make it raw if the command gets what is typed there.

        Not before there is a command: Ctrl-C ends this program until then.
        """
        if not self._options.tty:
            return
        from ..host import terminal

        command = self._command
        assert command

        def resize(*signal: object) -> None:
            command.resize(*terminal.size())

        _signal.signal(_signal.SIGWINCH, resize)
        if self._options.stdin and os.isatty(0):
            self._raw = terminal.RawMode(0, on_return=resize, is_ending=lambda: command.channel.order.signals)
            self._raw.enter()
        resize()  # it may have changed since the request


def _stats(channel: Channel, seconds: float) -> str:
    times = os.times()
    ways = (
        f"{way} {count} bytes, {count / max(seconds, 1e-9) / 2**20:.1f} MiB/s, {channel.exchange.engine}"
        for way, count in zip(("up", "down"), channel.exchange.moved, strict=True)
    )
    return f"{'; '.join(ways)}; {seconds:.3f} s, CPU {times.user + times.system:.3f} s"
