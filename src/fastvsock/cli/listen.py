"""`fastvsock listen UDS PORT`: the other direction, where the guest connects to a port of the host."""

import argparse
import os
from contextlib import ExitStack

from .. import errors
from ..handshake import parse_port
from ..host import addresses, listeners
from ..host.addresses import Address
from ..services.handlers import Terms, ToCommand, ToSocket, ToStdio
from ..services.lifecycle import Plan
from ..services.limits import prepare_process
from . import description
from .arguments import mode, path, split
from .service import add_options, begin, live

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
        description=description("listen"),
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
        type=mode,
        default=listeners.OWNER_ONLY,
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
    where = None if command or stdio else options.unix or addresses.parse_target("--tcp", options.tcp)
    life = begin(options, with_command=False)
    limit = prepare_process()
    if command:
        serve = ToCommand(command, terms, limit)
    elif where:
        serve = ToSocket(where, terms)
    else:
        serve = ToStdio(terms)
    with ExitStack() as closing:
        listening = listeners.passed(os.environ, remote=options.allow_remote)
        if not listening:
            listening.append(listeners.open_listener(address, options.mode))
        for listener in listening:
            closing.callback(listener.close)
        plan = Plan(
            once=options.once or stdio,
            grace=0 if stdio else options.grace,
            stats_interval=options.stats_interval,
            say_where=not stdio,
            ready_fd=options.ready_fd,
        )
        status = live(options, life, plan, listening, serve)
    return status or (serve.status if options.once and isinstance(serve, ToCommand) else 0)
