"""`fastvsock proxy UDS PORT`: clients of the host reach a guest's port, each connection in a relay of its own."""

import argparse
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from .. import errors
from ..handshake import parse_port
from ..host import addresses
from ..host.addresses import Address
from ..host.processes import Child, spawn
from ..services.handlers import ToGuest
from ..services.lifecycle import Plan
from ..services.limits import prepare_process
from ..services.ownership import Family
from ..stdio import log
from . import description
from .arguments import Parser, Seconds, path, split
from .service import add_options, open_listeners, prepare_service, run_service, terms_of

DEFAULT = "127.0.0.1:0"
ADDRESS_LIKE = re.compile(r"[\w.:@/=,%+\[\]{}-]*")  # words in which placeholders are expanded
PLACEHOLDER = re.compile(r"\{(host|port|socket|uds)\}")
WAIT = "for each connection: retry for SECONDS while the guest is still booting (default 0)"
EPILOG = """\
With a COMMAND, {port} and {host} (with --listen unix:PATH: {socket}) stand for the address that the proxy listens on,
in arguments without spaces or quotes; in others, such as a shell command for the guest, they stay as they are. The
address is also in COMMAND's environment, as FASTVSOCK_PORT and FASTVSOCK_HOST (FASTVSOCK_SOCKET). COMMAND gets the
proxy's signals. Connections of other processes than COMMAND and its descendants are rejected. The proxy ends when
COMMAND does.

exit status: COMMAND's, or 128+n if signal n ended it. Without COMMAND: 0; 1 for a failure of the proxy or of its --once
connection, explained in one line on stderr; 2 for wrong usage; 128+n if a second signal n ended the --grace period.
"""


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    words, command = split(arguments)
    parser = Parser(
        "fastvsock proxy",
        usage="fastvsock proxy [options] UDS PORT [-- COMMAND ...]",
        description=description("proxy"),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("uds", type=path, metavar="UDS", help="the VMM's vsock Unix socket")
    parser.add_argument("port", metavar="PORT", help="the guest's AF_VSOCK port, 0 to 4294967295")
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        default=DEFAULT,
        help=f"127.0.0.1:PORT, [::1]:PORT or unix:PATH; PORT 0: the kernel chooses (default {DEFAULT}); "
        "sockets passed by systemd (LISTEN_FDS) are used instead",
    )
    parser.add_argument(
        "--port-file",
        type=path,
        metavar="FILE",
        help="write the port, or the path of the Unix socket, to FILE as soon as connections are accepted; a regular "
        "file is replaced, and removed at the end; a FIFO or /dev/stdout is written to",
    )
    parser.add_argument("--wait", type=Seconds(), default=0.0, metavar="SECONDS", help=WAIT)
    add_options(parser, over_limit="others wait", ends=", or the end of COMMAND")
    options = parser.parse_args(words)
    return run(options, command)


def run(options: argparse.Namespace, command: list[str]) -> int:
    """Serve until the end and return the exit status. Raises `FastvsockError`."""
    serve = ToGuest(options.uds, parse_port(options.port), terms_of(options, wait=options.wait))
    life = prepare_service(options, bool(command))
    limit = prepare_process()
    with ExitStack() as closing:
        listening = open_listeners(options, lambda: addresses.parse(options.listen, remote=options.allow_remote))
        for listener in listening:
            closing.callback(listener.close)
        plan = Plan(
            once=options.once,
            grace=options.grace,
            stats_interval=options.stats_interval,
            announce=not command,
            port_file=options.port_file,
            ready_fd=options.ready_fd,
            launch=command_launcher(command, listening[0].address, limit) if command else None,
        )
        family = Family() if command else None
        return run_service(options, life, plan, listening, serve, family=family, queue=True)


def command_launcher(command: list[str], address: Address, limit: tuple[int, int]) -> Callable[[], Child]:
    """Return what starts `command` with the address filled in. Raises `UsageError` for a placeholder without a value.

    Only words that look like an address are expanded: a remote command is one word with spaces, and its braces belong
    to the guest. {uds} and FASTVSOCK_UDS are the names that {socket} and FASTVSOCK_SOCKET had in 0.1.
    """
    if address.path:
        values = {"socket": address.path, "uds": address.path}
    else:
        values = {"host": address.host, "port": str(address.port)}

    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise errors.UsageError(f"{found[0]} in the command has no value: the proxy listens on {address}")
        return values[found[1]]

    words = [PLACEHOLDER.sub(value, word) if ADDRESS_LIKE.fullmatch(word) else word for word in command]
    left = [found for word in command for found in PLACEHOLDER.findall(word) if found in values]
    if words == command and left:
        log(
            f"warning: {{{left[0]}}} was left as is: placeholders are expanded only in arguments without spaces or "
            f"quotes; inside a shell command use $FASTVSOCK_{left[0].upper()}"
        )
    environment = os.environ | {f"FASTVSOCK_{name.upper()}": value for name, value in values.items()}
    return partial(spawn, words, limit=limit, environment=environment)
