"""`fastvsock listen UDS PORT`: the other direction, where the guest connects to a port of the host."""

import argparse
from contextlib import ExitStack

from .. import errors
from ..handshake import parse_port
from ..host import addresses
from ..host.addresses import Address
from ..services.handlers import ToCommand, ToSocket, ToStdio
from ..services.lifecycle import Plan
from ..services.limits import prepare_process
from . import description
from .arguments import Parser, path, socket_path, split
from .service import add_options, open_listeners, prepare_service, run_service, terms_of

EPILOG = """\
A VMM passes a guest's connection to CID 2, port PORT, on to the Unix socket UDS_PORT, which this command makes (mode
0600) and removes. Without --tcp, --unix, --unix-datagram and COMMAND, one connection is served, as stdin and stdout.

With --unix-datagram, what the guest sends on one connection is delivered as one message, after its end of file. Where a
VMM hides the guest's half-close, the message ends --idle-timeout SECONDS (default 5) after its last byte. Nothing is
delivered of a connection that breaks.

exit status: 0; 1 for a failure of the command or of its one connection, explained in one line on stderr; COMMAND's,
with --once and COMMAND; 2 for wrong usage; 128+n if signal n ended it.
"""


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    words, command = split(arguments)
    parser = Parser(
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
    where.add_argument(
        "--unix",
        type=socket_path,
        metavar="PATH",
        help="join each connection to a Unix socket, which may be for streams or for datagrams; @NAME: an abstract one",
    )
    where.add_argument(
        "--unix-datagram",
        type=socket_path,
        metavar="PATH",
        help="deliver each connection as one message to a Unix datagram socket, such as $NOTIFY_SOCKET",
    )
    add_options(parser, over_limit="others are closed, since a VMM with all its connections would wait for a queue")
    options = parser.parse_args(words)
    if command and (options.tcp or options.unix or options.unix_datagram):
        raise errors.UsageError("--tcp, --unix, --unix-datagram and COMMAND are mutually exclusive")
    return run(options, command)


def run(options: argparse.Namespace, command: list[str]) -> int:
    """Serve until the end and return the exit status. Raises `FastvsockError`."""
    terms = terms_of(options)
    address = Address(path=f"{options.uds}_{parse_port(options.port)}")
    serve: ToSocket | ToCommand | ToStdio
    target = options.unix or options.unix_datagram or (options.tcp and addresses.parse_target("--tcp", options.tcp))
    on_stdio = not (command or target)
    life = prepare_service(options, with_command=False)
    limit = prepare_process()
    if command:
        serve = ToCommand(command, terms, limit)
    elif target:
        serve = ToSocket(target, terms, datagrams=bool(options.unix_datagram))
    else:
        serve = ToStdio(terms)
    with ExitStack() as closing:
        listening = open_listeners(options, lambda: address)
        for listener in listening:
            closing.callback(listener.close)
        plan = Plan(
            once=options.once or on_stdio,
            grace=0 if on_stdio else options.grace,
            stats_interval=options.stats_interval,
            announce=not on_stdio,
            ready_fd=options.ready_fd,
        )
        status = run_service(options, life, plan, listening, serve, queue=False)
    return status or (serve.status if options.once and isinstance(serve, ToCommand) else 0)
