"""`fastvsock proxy UDS PORT`: clients of the host reach a guest's port, each connection in a relay of its own."""

import argparse
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from .. import errors
from ..handshake import parse_port
from ..host import addresses, listeners
from ..host.addresses import Address
from ..host.processes import Child, spawn
from ..services.handlers import Terms, ToGuest
from ..services.lifecycle import Plan
from ..services.limits import prepare_process
from ..services.ownership import Family
from ..stdio import log
from . import description
from .arguments import Seconds, path, split
from .service import add_options, begin, live

DEFAULT = "127.0.0.1:0"
ADDRESS_LIKE = re.compile(r"[\w.:@/=,%+\[\]{}-]*")  # words in which placeholders are filled in
WAIT = "for each connection: retry so long while the guest is still booting (default 0)"
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
    parser.add_argument("--wait", type=Seconds(), default=0.0, metavar="SECONDS", help=WAIT)
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
        listening = listeners.passed(os.environ, remote=options.allow_remote)
        if not listening:
            address = addresses.parse(options.listen, remote=options.allow_remote)
            listening.append(listeners.open_listener(address))
        for listener in listening:
            closing.callback(listener.close)
        plan = Plan(
            once=options.once,
            grace=options.grace,
            stats_interval=options.stats_interval,
            say_where=not command,
            port_file=options.port_file,
            ready_fd=options.ready_fd,
            start=starter(command, listening[0].address, limit) if command else None,
        )
        return live(options, life, plan, listening, serve, Family() if command else None)


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
        log(
            "no placeholder of the command was filled in: that is done only in words without blanks and quotes; "
            "a shell finds the address in its environment"
        )
    environment = os.environ | {f"FASTVSOCK_{name.upper()}": value for name, value in values.items()}
    return partial(spawn, words, limit=limit, environment=environment)
