"""`fastvsock proxy UDS PORT`: clients of the host reach a guest's port, each connection in a relay of its own."""

import argparse
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from .. import entry, errors
from ..engines import ENGINES, choose
from ..handshake import parse_port
from ..host.processes import Child, spawn
from ..services import announce
from ..services.acceptor import MAX_CONNECTIONS, Connection, Service, affordable, prepare_process, say
from ..services.announce import Address, Listener
from ..services.handlers import Terms, ToGuest
from ..services.lifecycle import NEVER, Lifetime, Plan
from ..services.ownership import Family

SUMMARY = "listen on a port or a Unix socket, and join each connection to a port inside a microVM"
DEFAULT = "127.0.0.1:0"
ADDRESS_LIKE = re.compile(r"[\w.:@/=,%+\[\]{}-]*")  # words in which placeholders are filled in
WAIT = "for each connection: retry so long while the guest is still booting (default 0)"
LONGEST = 1_000_000  # seconds, as for connect: more than a week, and what poll(2) and socket timeouts can take
LINGER = (
    "after the end of a connection's input, when nothing has moved either way for so long, half-close it, which makes "
    "a VMM close it whole; 0: at once, inf: never (default 0.5, and inf if there was no input at all)"
)
EPILOG = """\
With a COMMAND, {port} and {host} (or {uds}, with --listen unix:PATH) become the address in those of its words that
could be one (no blanks, no quotes: what a shell in the guest shall run stays as it is). The address is also in its
environment, as FASTVSOCK_PORT and FASTVSOCK_HOST (or FASTVSOCK_UDS). Signals are passed on to it; connections that are
neither its own nor its descendants' are closed; and its end is the proxy's, with its exit status.

exit status: the COMMAND's, 128+n if signal n ended it; else 0, 1 for a failure that ended the proxy or its --once
connection, told on stderr in one line, 2 for wrong usage, 128+n where a second signal n cut the --grace short.
"""


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    words, command = split(arguments)
    parser = argparse.ArgumentParser(
        "fastvsock proxy",
        usage="fastvsock proxy [options] UDS PORT [-- COMMAND ...]",
        description=SUMMARY[0].upper() + SUMMARY[1:] + ".",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("uds", type=path, metavar="UDS", help="the VMM's vsock Unix socket")
    parser.add_argument("port", metavar="PORT", help="the guest's AF_VSOCK port, 0 to 4294967295")
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        default=DEFAULT,
        help=f"127.0.0.1:PORT, [::1]:PORT or unix:PATH (mode 0600); PORT 0: the kernel chooses (default {DEFAULT}); "
        "sockets passed by systemd (LISTEN_FDS) take its place",
    )
    parser.add_argument(
        "--port-file",
        type=path,
        metavar="F",
        help="write the port there, or the path, once connections are taken; a file is replaced, and removed at the "
        "end, anything else (a FIFO, /dev/stdout) is written to",
    )
    parser.add_argument("--wait", type=seconds, default=0.0, metavar="SECONDS", help=WAIT)
    add_options(parser)
    options = parser.parse_args(words)
    return run(options, command)


def run(options: argparse.Namespace, command: list[str]) -> int:
    """Serve until the end and return the exit status. Raises `FastvsockError`."""
    terms = Terms(options.timeout, options.wait, options.linger, options.engine)
    serve = ToGuest(options.uds, parse_port(options.port), terms)
    life = begin(options, bool(command))
    limit = prepare_process()
    with ExitStack() as closing:
        listeners = announce.passed(os.environ, remote=options.allow_remote)
        if not listeners:
            address = announce.parse(options.listen, remote=options.allow_remote)
            listeners.append(announce.open_listener(address))
        for listener in listeners:
            closing.callback(listener.close)
        plan = Plan(
            once=options.once,
            grace=options.grace,
            stats_interval=options.stats_interval,
            say_where=not command,
            port_file=options.port_file,
            ready_fd=options.ready_fd,
            start=starter(command, listeners[0].address, limit) if command else None,
        )
        return live(options, life, plan, listeners, serve, Family() if command else None)


def begin(options: argparse.Namespace, with_command: bool) -> Lifetime:
    """What a service does before it opens anything: find out what cannot be, and take the signals."""
    entry.fill_closed()
    if options.ready_fd is not None:
        announce.check_ready(options.ready_fd)
    choose(options.engine)  # a wrong one shall not be told by the first connection
    return Lifetime(with_command)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first ``--``, and the command behind it. Raises `UsageError` where that is empty."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    if at + 1 == len(arguments) or not arguments[at + 1]:
        raise errors.UsageError("a command is needed behind --")
    return arguments[:at], arguments[at + 1 :]


def starter(command: list[str], address: Address, limit: tuple[int, int]) -> Callable[[], Child]:
    """What starts `command` with the address filled in. Raises `UsageError` for a placeholder that has no value.

    Only words that look like an address are filled in: a remote command is one word with blanks, and its braces are
    its own.
    """
    values = {"uds": address.path} if address.path else {"host": address.host, "port": str(address.port)}
    words = []
    for word in command:
        for name in ("uds", "host", "port") if ADDRESS_LIKE.fullmatch(word) else ():
            if f"{{{name}}}" in word and name not in values:
                raise errors.UsageError(f"{{{name}}} in the command has no value: the proxy listens on {address}")
            word = word.replace(f"{{{name}}}", values.get(name, ""))
        words.append(word)
    if words == command and any(f"{{{name}}}" in word for word in command for name in values):
        say(
            "no placeholder of the command was filled in: that is done only in words without blanks and quotes; "
            "a shell finds the address in its environment"
        )
    environment = os.environ | {f"FASTVSOCK_{name.upper()}": value for name, value in values.items()}
    return partial(spawn, words, limit=limit, environment=environment)


def live(
    options: argparse.Namespace,
    life: Lifetime,
    plan: Plan,
    listeners: list[Listener],
    serve: Callable[[Connection], object],
    family: Family | None = None,
) -> int:
    """Run the service that the options and the plan describe, to its end, and return the exit status."""
    service = Service(listeners, serve, 1 if plan.once else affordable(options.max_connections), family)
    if options.metrics is not None:
        from ..services.metrics import serve_metrics  # its start is not for those who do not ask

        serve_metrics(announce.parse(options.metrics, remote=options.allow_remote), service)
    return life.run(service, plan)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every service has."""
    option = parser.add_argument
    option("--allow-remote", action="store_true", help="allow addresses that other machines can reach")
    option("--once", action="store_true", help="serve one connection, then end with its result")
    option(
        "--ready-fd", metavar="N", type=descriptor, help="write the address to descriptor N once connections are taken"
    )
    option(
        "--max-connections",
        metavar="N",
        type=positive,
        default=MAX_CONNECTIONS,
        help=f"at once; more wait their turn (default {MAX_CONNECTIONS}, the VMM's own limit)",
    )
    option(
        "--grace",
        metavar="SECONDS",
        type=seconds_or_inf,
        default=10.0,
        help="time that open connections get after SIGTERM, SIGINT or SIGHUP, or the end of COMMAND (default 10)",
    )
    option("--timeout", metavar="SECONDS", type=some_seconds, default=10.0, help="time for connecting (default 10)")
    option("--linger", metavar="SECONDS", type=seconds_or_inf, help=LINGER)
    option("--engine", choices=ENGINES, help="default: FASTVSOCK_ENGINE, or auto")
    option("--stats-interval", metavar="SECONDS", type=some_seconds, default=NEVER, help="one line on stderr so often")
    option("--metrics", metavar="ADDRESS", help="serve Prometheus metrics there, for instance 127.0.0.1:9464")


def seconds(text: str) -> float:
    """A number of seconds from 0 to `LONGEST`."""
    value = _number(text)
    if not 0 <= value <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to {LONGEST}")
    return value


def seconds_or_inf(text: str) -> float:
    """The same, or inf."""
    value = _number(text)
    if not (0 <= value <= LONGEST or value == NEVER):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to {LONGEST}, nor inf")
    return value


def some_seconds(text: str) -> float:
    """The same, but more than 0."""
    value = _number(text)
    if not 0 < value <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds more than 0 and up to {LONGEST}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def positive(text: str) -> int:
    """A number from 1 up."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 999999999")
    return int(text)


def descriptor(text: str) -> int:
    """The number of a descriptor."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a descriptor") from None


def path(text: str) -> str:
    """A path, which is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text
