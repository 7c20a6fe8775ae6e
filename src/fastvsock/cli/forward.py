"""`fastvsock forward UDS [ADDRESS:]LOCAL:PORT ...`: connections here reach TCP ports and Unix sockets in a guest."""

import argparse
from contextlib import ExitStack

from .. import errors
from ..channels.protocol import PORT
from ..handshake import parse_port
from ..host import addresses, listeners
from ..services.handlers import ToAddress
from ..services.lifecycle import Plan
from ..services.limits import prepare_process
from . import description
from .arguments import Parser, Seconds, path
from .service import add_options, check_mode, prepare_service, run_service, terms_of

EPILOG = """\
Each FORWARD is kubectl's LOCAL:PORT, PORT for the same number on both sides, or :PORT for a local port that the kernel
chooses; with ADDRESS: in front for another address than 127.0.0.1. unix:PATH may stand for either side. Each address
that is listened on is printed, in order, as "listening on ADDRESS". Both half-closes pass through.

exit status: 0, 1 for a failure that ended it or its --once connection, explained on stderr in one line, 2 for wrong
usage, 128+n where a second signal n cut the --grace short.
"""


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    parser = Parser(
        "fastvsock forward",
        usage="fastvsock forward [options] UDS FORWARD [FORWARD ...]",
        description=description("forward"),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("uds", type=path, metavar="UDS", help="the VMM's vsock Unix socket")
    parser.add_argument("forwards", metavar="FORWARD", nargs="+", help="[ADDRESS:]LOCAL:PORT, see below")
    parser.add_argument("--port", default=str(PORT), help=f"the agent's AF_VSOCK port (default {PORT})")
    parser.add_argument(
        "--wait",
        type=Seconds(),
        default=0.0,
        metavar="SECONDS",
        help="for each connection: keep trying while the guest is still booting (default 0)",
    )
    add_options(parser, over_limit="others wait", linger=False)
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Serve until the end and return the exit status. Raises `FastvsockError`."""
    forwards = [parse(forward, remote=options.allow_remote) for forward in options.forwards]
    check_mode(options, [here for here, _ in forwards])
    agent_port = parse_port(options.port)
    life = prepare_service(options, False)
    prepare_process()
    with ExitStack() as closing:
        listening, targets = [], {}
        for here, there in forwards:
            listener = listeners.open_listener(here, listeners.OWNER_ONLY if options.mode is None else options.mode)
            closing.callback(listener.close)
            listening.append(listener)
            address = listener.address
            targets[address.path or (address.host, address.port)] = there
        plan = Plan(
            once=options.once, grace=options.grace, stats_interval=options.stats_interval, ready_fd=options.ready_fd
        )
        serve = ToAddress(options.uds, agent_port, targets, terms_of(options, wait=options.wait))
        return run_service(options, life, plan, listening, serve, queue=True)


def parse(forward: str, *, remote: bool = False) -> tuple[addresses.Address, str]:
    """Where to listen, and what to ask the agent for. Raises `UsageError`."""
    local, colon, target = forward.rpartition(":unix:")
    if colon:
        there, port = f"unix:{target}", ""
    else:
        local, colon, port = forward.rpartition(":")
        there = f"tcp:127.0.0.1:{port}"
        if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 1 << 16):
            raise errors.UsageError(f"invalid FORWARD {forward!r}: expected [ADDRESS:]LOCAL:PORT with PORT 1 to 65535")
    if not colon:
        local = port  # PORT alone
    if not local.startswith("unix:"):
        host, _, number = local.rpartition(":")
        local = f"{host or '127.0.0.1'}:{number or 0}"
    if there == "unix:":
        raise errors.UsageError(f"invalid FORWARD {forward!r}: the path is empty")
    return addresses.parse(local, remote=remote, option=f"FORWARD {forward!r}, its local side"), there
