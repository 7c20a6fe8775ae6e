"""What `fastvsock proxy` and `fastvsock listen` share: options, start, run."""

import argparse
from collections.abc import Callable

from ..engines import ENGINES, choose
from ..host import addresses
from ..host.listeners import Listener
from ..services.acceptor import Service
from ..services.announce import check_ready
from ..services.connection import Connection
from ..services.lifecycle import NEVER, Lifetime, Plan
from ..services.limits import MAX_CONNECTIONS, affordable
from ..services.ownership import Family
from ..stdio import fill_closed
from .arguments import Seconds, descriptor, positive

LINGER = (
    "after the end of a connection's input, when nothing has moved either way for so long, half-close it, which makes "
    "a VMM close it whole; 0: at once, inf: never (default 0.5, and inf if there was no input at all)"
)


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
        type=Seconds(infinite=True),
        default=10.0,
        help="time that open connections get after SIGTERM, SIGINT or SIGHUP, or the end of COMMAND (default 10)",
    )
    option(
        "--timeout",
        metavar="SECONDS",
        type=Seconds(positive=True),
        default=10.0,
        help="time for connecting (default 10)",
    )
    option("--linger", metavar="SECONDS", type=Seconds(infinite=True), help=LINGER)
    option("--engine", choices=ENGINES, help="default: FASTVSOCK_ENGINE, or auto")
    option(
        "--stats-interval",
        metavar="SECONDS",
        type=Seconds(positive=True),
        default=NEVER,
        help="one line on stderr so often",
    )
    option("--metrics", metavar="ADDRESS", help="serve Prometheus metrics there, for instance 127.0.0.1:9464")


def begin(options: argparse.Namespace, with_command: bool) -> Lifetime:
    """Check the options and take over the signals, before a service opens anything."""
    fill_closed()
    if options.ready_fd is not None:
        check_ready(options.ready_fd)
    choose(options.engine)  # before the first connection would report a wrong one
    return Lifetime(with_command)


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

        serve_metrics(addresses.parse(options.metrics, remote=options.allow_remote), service)
    return life.run(service, plan)
