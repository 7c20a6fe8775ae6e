"""`fastvsock listen UDS PORT`: the other direction, where the guest connects to a port of the host."""

import argparse
import os
from contextlib import ExitStack

from .. import errors
from ..handshake import parse_port
from ..services import announce
from ..services.acceptor import prepare_process
from ..services.announce import Address
from ..services.handlers import Terms, ToCommand, ToSocket, ToStdio
from ..services.lifecycle import Plan
from .proxy import add_options, begin, live, path, split

SUMMARY = "take the connections that a guest makes to a port of the host (CID 2)"
EPILOG = """\
A VMM passes a guest's connection to CID 2, port PORT, on to the Unix socket UDS_PORT, which this command makes (mode
0600) and removes. Without --tcp, --unix and COMMAND the one connection that is served becomes stdin and stdout.

exit status: 0; 1 for a failure that ended the command or its one connection, told on stderr in one line; with --once
and COMMAND, COMMAND's; 2 for wrong usage; 128+n ended by signal n.
"""


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    words, command = split(arguments)
    parser = argparse.ArgumentParser(
        "fastvsock listen",
        usage="fastvsock listen [options] UDS PORT [-- COMMAND ...]",
        description=SUMMARY[0].upper() + SUMMARY[1:] + ".",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("uds", type=path, metavar="UDS", help="the VMM's vsock Unix socket")
    parser.add_argument("port", metavar="PORT", help="the port that the guest connects to, 0 to 4294967295")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--tcp", metavar="HOST:PORT", help="join each connection to a TCP port")
    where.add_argument("--unix", type=path, metavar="PATH", help="join each connection to a Unix socket")
    parser.add_argument(
        "--mode",
        type=octal,
        default=announce.OWNER_ONLY,
        help="the socket's mode, for a VMM of another user (default 600)",
    )
    add_options(parser)
    options = parser.parse_args(words)
    if command and (options.tcp or options.unix):
        raise errors.UsageError("either --tcp, --unix or a command takes the connections")
    return run(options, command)


def run(options: argparse.Namespace, command: list[str]) -> int:
    """Serve until the end and return the exit status. Raises `FastvsockError`."""
    terms = Terms(timeout=options.timeout, linger=options.linger, engine=options.engine)
    address = Address(path=f"{options.uds}_{parse_port(options.port)}")
    serve: ToSocket | ToCommand | ToStdio
    stdio = not (command or options.tcp or options.unix)
    where = None if command or stdio else target(options)
    life = begin(options, with_command=False)
    limit = prepare_process()
    if command:
        serve = ToCommand(command, terms, limit)
    elif where:
        serve = ToSocket(where, terms)
    else:
        serve = ToStdio(terms)
    with ExitStack() as closing:
        listeners = announce.passed(os.environ, remote=options.allow_remote)
        if not listeners:
            listeners.append(announce.open_listener(address, options.mode))
        for listener in listeners:
            closing.callback(listener.close)
        plan = Plan(
            once=options.once or stdio,
            grace=0 if stdio else options.grace,
            stats_interval=options.stats_interval,
            say_where=not stdio,
            ready_fd=options.ready_fd,
        )
        status = live(options, life, plan, listeners, serve)
    return status or (serve.status if options.once and isinstance(serve, ToCommand) else 0)


def target(options: argparse.Namespace) -> tuple[str, int] | str:
    """The address that connections are joined to. Raises `UsageError`."""
    if options.unix:
        return str(options.unix)
    host, colon, port = str(options.tcp).rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise errors.UsageError(f"--tcp {options.tcp!r} makes no sense: give HOST:PORT, PORT from 1 to 65535")
    return host.strip("[]"), int(port)


def octal(text: str) -> int:
    """A mode of permissions."""
    if not (
        len(text) < 5 and text.isascii() and text.isdigit() and not set(text) & {"8", "9"} and int(text, 8) < 0o1000
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is no mode: give three octal digits, as 660")
    return int(text, 8)
