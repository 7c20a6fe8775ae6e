"""`fastvsock emulate UDS`: the VMM's side of a hybrid vsock with a guest behind it, without a VM."""

import _thread
import argparse
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from types import FrameType

from ..channels.protocol import PORT as AGENT_PORT
from ..emulator import DEFAULT_SERVICES, VMMS, Emulator, Exec, Service, Tcp, Unix, chargen, discard, echo
from ..emulator.emulator import path_warning
from ..errors import FastvsockError, UsageError, printable
from ..handshake import parse_port
from ..host.addresses import parse_target
from ..host.processes import raise_descriptor_limit
from ..stdio import log
from . import agent
from .arguments import Parser, path

EPILOG = """\
exit status: 128+n ended by signal n (SIGTERM, SIGINT, SIGHUP), after the children have ended and UDS is removed;
1 failure, explained in one line on stderr: UDS cannot be used, for instance; 2 wrong usage.

example:
  fastvsock emulate /tmp/v.sock --exec 1000='tar xf - -C /tmp/guest' &
  tar cf - . | fastvsock connect /tmp/v.sock 1000
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to `parser`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """\
Listen on the Unix socket UDS as a VMM does, with services at the ports of a guest that
does not exist. Closing, half-closing and slow readers are treated as the real VMM treats
them, lost bytes included. Ports 7 (echo), 9 (discard) and 19 (chargen) are served unless
an option gives them another service."""
    parser.epilog = EPILOG
    parser.add_argument("uds", type=path, metavar="UDS", help="the Unix socket to create; a stale one is replaced")
    parser.add_argument(
        "--vmm",
        choices=VMMS,
        default="firecracker",
        help="whose rules to follow (default: firecracker). cloud-hypervisor (53.0) passes half-closes on, both ways, "
        "and accepts a CONNECT line in several pieces",
    )
    group = parser.add_argument_group("guest services (each may be given more than once)")
    option = partial(group.add_argument, action="append", default=[])
    option("--echo", metavar="PORT", help="send back what comes")
    option("--discard", metavar="PORT", help="read until end of file, then answer the count of bytes")
    option("--chargen", metavar="PORT", help="send a pattern: byte i is (i ^ i>>8 ^ i>>16) & 0xff")
    option(
        "--exec",
        metavar="PORT=COMMAND",
        help="run COMMAND (without a shell) for each connection, as its stdin and stdout. To reach a port of the host, "
        "COMMAND connects to the Unix socket ${FASTVSOCK_HOST_SOCKET_PREFIX}_PORT",
    )
    parser.add_argument(
        "--agent",
        action="store_true",
        help=f"run fastvsock agent at port {AGENT_PORT}, so that fastvsock exec, cp and forward work, on this machine",
    )
    option("--tcp", metavar="PORT=HOST:PORT", help="join each connection to a TCP port")
    parser.add_argument("-v", "--verbose", action="store_true", help="log connections to stderr")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP, and return 128 plus its number.

    Raises `UsageError` or `PortError` for a wrong service, `EmulatorError` where `UDS` cannot be used.
    """
    with ExitStack() as stack:
        services = DEFAULT_SERVICES | _services(args)
        if args.agent:
            services[AGENT_PORT] = Unix(stack.enter_context(_agent()))
        raise_descriptor_limit()  # 1,023 connections take more than the usual 1,024 descriptors
        return _serve(args, services)


@contextmanager
def _agent() -> Iterator[str]:
    """A child that is the agent, from before there are threads here; the path of the Unix socket that it listens on."""
    with TemporaryDirectory(prefix="fastvsock-") as folder:
        uds = f"{folder}/agent"
        is_ready, ready = os.pipe()
        parents, ours = os.pipe()  # whose end is that of this process
        pid = os.fork()
        if not pid:
            os.close(is_ready)
            os.close(ours)
            _thread.start_new_thread(_end_with, (parents,))
            os.close(1)  # what it announces is for us alone; its fill_closed() takes the number
            os.setpgid(0, 0)  # a terminal's SIGINT is the emulator's to hand on
            os._exit(agent.main(["--listen", f"unix:{uds}", "--ready-fd", str(ready)]))
        try:
            os.close(ready)
            os.close(parents)
            if not os.read(is_ready, 1):
                raise FastvsockError("the agent did not start")
            yield uds
        finally:
            os.close(is_ready)
            os.close(ours)
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def _end_with(parents: int) -> None:
    """End this process, and all that it has started, as SIGTERM does, once the parent has ended: even by SIGKILL."""
    os.read(parents, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _serve(args: argparse.Namespace, services: dict[int, Service]) -> int:
    emulator = Emulator(args.uds, services, log if args.verbose else None, args.vmm)
    status = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal status
        status = 128 + number
        emulator.stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, and a shell's background jobs, ignore some on purpose
            signal.signal(number, on_signal)
    try:
        emulator.listen()
        if not args.verbose and (warning := path_warning(args.uds)):
            log(warning)
        names = ", ".join(f"{port} {_name(service)}" for port, service in sorted(services.items()))
        print(f"fastvsock emulate: listening on {printable(args.uds)} (ports {names})", flush=True)
        emulator.run()
    finally:
        emulator.close()
    return status


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    parser = Parser("fastvsock emulate", usage="fastvsock emulate [options] UDS")
    configure(parser)
    return run(parser.parse_args(arguments))


def _services(args: argparse.Namespace) -> dict[int, Service]:
    plain = ((args.echo, echo), (args.discard, discard), (args.chargen, chargen))
    asked: list[tuple[int, Service]] = [(parse_port(port), service) for ports, service in plain for port in ports]
    asked += [*map(_exec, args.exec), *map(_tcp, args.tcp)]
    services: dict[int, Service] = {}
    for port, service in asked:
        if args.agent and port == AGENT_PORT:
            raise UsageError(f"guest port {port} is the agent's with --agent: give the other service another port")
        if port in services:
            raise UsageError(f"guest port {port} has two services: give it one")
        services[port] = service
    return services


def _exec(option: str) -> tuple[int, Service]:
    text, _, command = option.partition("=")
    port = parse_port(text)
    try:
        service = Exec.parse(command)
    except ValueError as error:
        raise UsageError(f"invalid --exec {option!r}: expected PORT=COMMAND ({error})") from None
    if not shutil.which(service.argv[0]):
        raise UsageError(f"invalid --exec {option!r}: no such program: {service.argv[0]!r}")
    return port, service


def _tcp(option: str) -> tuple[int, Service]:
    port, _, target = option.partition("=")
    return parse_port(port), Tcp(*parse_target(f"--tcp {option!r}, its target", target))


def _name(service: Service) -> str:
    return service.__name__ if hasattr(service, "__name__") else type(service).__name__.lower()
