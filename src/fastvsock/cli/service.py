"""What `fastvsock proxy`, `listen` and `forward` share: options, start, run."""

import argparse
import os
from collections.abc import Callable, Sequence

from .. import errors
from ..engines import ENGINES, choose
from ..host import addresses, listeners
from ..host.addresses import Address
from ..host.listeners import OWNER_ONLY, Listener
from ..services.acceptor import Service
from ..services.announce import check_ready
from ..services.connection import Connection
from ..services.lifecycle import NEVER, Lifetime, Plan
from ..services.limits import MAX_CONNECTIONS, affordable
from ..services.ownership import Family
from ..services.terms import Terms
from ..stdio import fill_closed, log
from .arguments import Seconds, descriptor, mode, positive

LINGER = (
    "after a connection's input ends, half-close it once both directions have been idle for SECONDS, which makes most "
    "VMMs close it completely; 0: immediately, inf: never (default 0.5; inf if there was no input at all)"
)
IDLE_TIMEOUT = (
    "end a connection in which no byte has moved in either direction for SECONDS, for instance because the VM is "
    "paused or one side does not read (default: never)"
)


def add_options(parser: argparse.ArgumentParser, *, over_limit: str, ends: str = "", linger: bool = True) -> None:
    """The options that every service has.

    `over_limit`: what happens to connections over --max-connections; `ends`: what ends the service beside a signal;
    `linger`: whether there is a VMM that may take a half-close for a close.
    """
    option = parser.add_argument
    option("--mode", type=mode, metavar="MODE", help="mode of the Unix socket, to let others connect (default 600)")
    option("--allow-remote", action="store_true", help="allow addresses that other machines can reach")
    option("--once", action="store_true", help="serve one connection, then end with its result")
    option(
        "--ready-fd",
        metavar="N",
        type=descriptor,
        help="write the address to descriptor N as soon as connections are accepted",
    )
    option(
        "--max-connections",
        metavar="N",
        type=positive,
        default=MAX_CONNECTIONS,
        help=f"serve at most N connections at a time; {over_limit} (default {MAX_CONNECTIONS}, the VMM's own limit)",
    )
    option(
        "--grace",
        metavar="SECONDS",
        type=Seconds(infinite=True),
        default=10.0,
        help=f"how long open connections may go on after SIGTERM, SIGINT or SIGHUP{ends} (default 10)",
    )
    option(
        "--timeout",
        metavar="SECONDS",
        type=Seconds(positive=True),
        default=10.0,
        help="time for connecting (default 10)",
    )
    if linger:
        option("--linger", metavar="SECONDS", type=Seconds(infinite=True), help=LINGER)
    else:
        parser.set_defaults(linger=None)
    option("--idle-timeout", metavar="SECONDS", type=Seconds(positive=True), help=IDLE_TIMEOUT)
    option("--engine", choices=ENGINES, help="how bytes are moved (default: FASTVSOCK_ENGINE, or auto)")
    option(
        "--stats-interval",
        metavar="SECONDS",
        type=Seconds(positive=True),
        default=NEVER,
        help="print statistics to stderr every SECONDS",
    )
    option("--metrics", metavar="ADDRESS", help="serve Prometheus metrics at ADDRESS, for instance 127.0.0.1:9464")


def terms_of(options: argparse.Namespace, *, wait: float = 0.0) -> Terms:
    """How the options want connections to be made and relayed."""
    return Terms(options.timeout, wait, options.linger, options.engine, options.idle_timeout)


def prepare_service(options: argparse.Namespace, with_command: bool) -> Lifetime:
    """Check the options and take over the signals, before a service opens anything."""
    fill_closed()
    if options.ready_fd is not None:
        check_ready(options.ready_fd)
    choose(options.engine)  # before the first connection would report a wrong one
    return Lifetime(with_command)


def open_listeners(options: argparse.Namespace, address: Callable[[], Address]) -> list[Listener]:
    """The sockets passed by systemd, or one that listens on `address()`. Raises `FastvsockError`."""
    passed = listeners.passed(os.environ, remote=options.allow_remote)
    if passed:
        return passed
    where = address()
    if warning := addresses.path_warning(where.path):
        log(warning)
    check_mode(options, [where])
    return [listeners.open_listener(where, OWNER_ONLY if options.mode is None else options.mode)]


def check_mode(options: argparse.Namespace, where: Sequence[Address]) -> None:
    """Raise `UsageError` for a mode where no Unix socket is among the addresses to listen on."""
    if options.mode is not None and not any(address.path for address in where):
        raise errors.UsageError(f"invalid --mode for {where[0]}: expected an address unix:PATH")


def run_service(
    options: argparse.Namespace,
    life: Lifetime,
    plan: Plan,
    listening: list[Listener],
    serve: Callable[[Connection], object],
    *,
    family: Family | None = None,
    queue: bool,
) -> int:
    """Run the service that the options and the plan describe, to its end, and return the exit status."""
    limit = 1 if plan.once else affordable(options.max_connections, queue=queue)
    service = Service(listening, serve, limit, family, queue=queue or plan.once)
    if options.metrics is not None:
        from ..services.metrics import serve_metrics  # slow to import, and rarely needed

        address = addresses.parse(options.metrics, remote=options.allow_remote, option="--metrics")
        serve_metrics(address, service)
    return life.run(service, plan)
